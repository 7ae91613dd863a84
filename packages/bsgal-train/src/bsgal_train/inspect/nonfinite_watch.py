"""Find out where in a training step a number first stops being finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bsgal_train.data import TrainingSample
from bsgal_train.detector.row_losses import BACKGROUND, RowLosses, recorded

__all__ = ["BadLoss", "BadOutput", "NonFiniteWatch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadOutput:
    """The first output of a module that is not finite.

    Attributes:
        module: Its name in the detector; empty is the detector itself.
        kind: Its class.
        finite_inputs: All that it was given was finite.
        n_bad: Elements that are not.
        n: Elements of the output.
    """

    module: str
    kind: str
    finite_inputs: bool
    n_bad: int
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLoss:
    """Rows of a loss that are not finite: all of them, one object's or an image's background.

    Attributes:
        name: Of the loss.
        image_id: As in the annotation file; None where every row of the batch is bad.
        instance: Id of the pasted instance; `real` for annotated objects, `background` for rows
            that stand for none.
        n_rows: How many there are.
    """

    name: str
    image_id: int | None
    instance: str
    n_rows: int


class NonFiniteWatch:
    """Watch a detector while the block runs.

    Nothing that is computed changes; a step takes longer by one look at every output.

    Args:
        detector: From `build_detector`.
        samples: What the step is taken on.

    Attributes:
        weights: Names of the parameters that were not finite when the block began.
        first_output: In order of computation, in scoring and training passes.
        first_gradient: Name of the parameter whose gradient was the first one, from the loss
            backwards, to hold a number that is not finite. Gradients that only a score is made of
            are not looked at.
    """

    def __init__(self, detector: nn.Module, samples: Sequence[TrainingSample]) -> None:
        self._detector = detector
        self._samples = samples
        self._handles: list[RemovableHandle] = []
        self._recording = recorded()
        self._rows: list[RowLosses] = []
        # Of each whole pass: its inputs, and where its losses begin and end among the rows.
        self._passes: list[tuple[Sequence[Mapping[str, Any]], int, int | None]] = []
        self.weights: tuple[str, ...] = ()
        self.first_output: BadOutput | None = None
        self.first_gradient: str | None = None

    def __enter__(self) -> NonFiniteWatch:
        self.weights = tuple(
            name for name, p in self._detector.named_parameters() if not _is_finite(p)
        )
        self._rows = self._recording.__enter__()
        for name, module in self._detector.named_modules():
            self._handles.append(module.register_forward_hook(self._output_hook(name)))
        self._handles.append(self._detector.register_forward_pre_hook(self._begin_pass))
        self._handles.append(self._detector.register_forward_hook(self._end_pass))
        for name, parameter in self._detector.named_parameters():
            if parameter.requires_grad:
                register: Any = parameter.register_post_accumulate_grad_hook
                self._handles.append(register(self._gradient_hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recording.__exit__(kind, error, trace)

    def bad_losses(self) -> list[BadLoss]:
        """Return whose rows are not finite in the passes over the step's own images."""
        found: dict[tuple[str, int | None, str], int] = {}
        for inputs, first, end in self._passes:
            for one in self._rows[first:end]:
                bad = ~torch.isfinite(one.per_row.detach())
                if bool(bad.all()):
                    found[one.name, None, "every row"] = len(bad)
                    continue
                images, sources = one.rows.image[bad].tolist(), one.rows.source[bad].tolist()
                for image, source in zip(images, sources, strict=True):
                    given = inputs[image]
                    key = one.name, given["image_id"], self._instance(given, source)
                    found[key] = found.get(key, 0) + 1
        return [
            BadLoss(name=name, image_id=image_id, instance=instance, n_rows=n)
            for (name, image_id, instance), n in found.items()
            if n
        ]

    def _instance(self, given: Mapping[str, Any], source: int) -> str:
        if source < 0:
            return "background" if source == BACKGROUND else "real"
        sample = next(sample for sample in self._samples if sample.pasted.image is given["image"])
        return sample.pastes[source].instance_id

    def _output_hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.first_output is not None:
                return
            n = n_bad = 0
            for tensor in _tensors(output):
                n += tensor.numel()
                n_bad += int((~torch.isfinite(tensor)).sum())
            if n_bad:
                self.first_output = BadOutput(
                    module=name,
                    kind=type(module).__name__,
                    finite_inputs=all(_is_finite(one) for one in _tensors(inputs)),
                    n_bad=n_bad,
                    n=n,
                )

        return look

    def _gradient_hook(self, name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if self.first_gradient is None and not _is_finite(parameter.grad):
                self.first_gradient = name

        return look

    def _begin_pass(self, module: nn.Module, inputs: Any) -> None:
        self._passes.append((inputs[0], len(self._rows), None))

    def _end_pass(self, module: nn.Module, inputs: Any, output: Any) -> None:
        given, first, _ = self._passes[-1]
        self._passes[-1] = (given, first, len(self._rows))


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor.detach()).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a module of detectron2 takes or returns."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "get_fields"):
        yield from _tensors(value.get_fields())
    elif hasattr(value, "tensor"):
        # Boxes, and lists of images.
        yield from _tensors(value.tensor)
