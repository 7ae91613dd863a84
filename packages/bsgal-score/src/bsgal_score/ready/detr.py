"""Units of detection transformers whose queries are matched with objects (DETR in transformers)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .._unit_index import IGNORED


class MatchedQueries:
    """Note which object each query is matched with, in a forward pass with labels.

        queries = MatchedQueries()
        with queries, scorer:
            loss = model(pixel_values, labels=labels).loss
            scores = scorer.score(loss, queries.detr_index(unit_of_object, 100), unit_axis=0)

    A query's unit is that of the object it was matched with. Queries that no object was matched
    with count nowhere. The units are those of the heads: queries see one another in the decoder
    below, so that its gradients cannot be told apart by rows; `scorer.reject` holds for the whole
    model.
    """

    def __init__(self) -> None:
        self.matches: list[list[tuple[Tensor, Tensor]]] = []
        """For each output that is matched, by image, indices of queries and of their objects.

        That of the last layer is first, then those of the layers before it in order.
        """
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> MatchedQueries:
        """Begin to listen to Hungarian matchers, which the loss makes anew in every pass."""
        self.matches = []
        self._handle = register_module_forward_hook(self._note)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to listen; the matches of the last pass can still be had."""
        assert self._handle is not None
        self._handle.remove()

    def units(self, unit_of_object: Sequence[Tensor], n_queries: int) -> list[Tensor]:
        """Return the unit of every query, int64 (batch, queries), for each of `matches`.

        Args:
            unit_of_object: For each image the unit of each of its labels' objects, int64, in their
                order; `REFERENCE` for real ones that feed the cache, `IGNORED` for none.
            n_queries: Queries of an image.

        Raises:
            ValueError: If nothing was matched, or the units do not fit what was.
        """
        if not self.matches:
            raise ValueError(
                "no matching was seen: run the model with labels inside `with queries:`"
            )
        found = []
        for match in self.matches:
            if len(match) != len(unit_of_object):
                raise ValueError(
                    f"`unit_of_object` has {len(unit_of_object)} images, the pass had {len(match)}"
                )
            units = torch.full((len(match), n_queries), IGNORED)
            for image, (own, (queries, objects)) in enumerate(
                zip(unit_of_object, match, strict=True)
            ):
                if own.dtype != torch.int64 or (len(objects) and len(own) <= int(objects.max())):
                    raise ValueError(
                        f"`unit_of_object[{image}]` must be int64 with a unit for each object of "
                        f"the image's labels; got {own.dtype} of shape {tuple(own.shape)}"
                    )
                units[image, queries] = own.cpu()[objects]
            found.append(units)
        return found

    def detr_index(
        self, unit_of_object: Sequence[Tensor], n_queries: int
    ) -> dict[str, list[Tensor]]:
        """Return the `unit_index` of DetrForObjectDetection's heads, for names of the whole model.

        With an auxiliary loss the heads are called again, on the outputs of all decoder layers, the
        last of which that loss leaves out. Pass `unit_axis=0` to `score`: the axes are (batch,
        queries) and (layers, batch, queries), whatever their lengths.

        Arguments and errors are those of `units`.
        """
        last, *before = self.units(unit_of_object, n_queries)
        calls = [last]
        if before:
            calls.append(torch.stack([*before, torch.full_like(last, IGNORED)]))
        return {"class_labels_classifier": calls, "bbox_predictor": calls}

    def _note(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if type(module).__name__.endswith("HungarianMatcher"):
            self.matches.append([(queries.cpu(), objects.cpu()) for queries, objects in outputs])
