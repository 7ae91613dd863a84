"""The step-aware form: what the optimizer will make of a gradient in its next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ._adam_displacement import adam_displacement
from ._curvature import CallRows, Curvature, CurvatureKind
from ._extrapolation import Extrapolation
from ._plain_optimizer import plain_optimizer
from ._recorder import Recorder, without_parameters
from ._trial import stepped_copies, trying
from ._types import TensorMetric
from .errors import StateMismatchError

if TYPE_CHECKING:
    from ._cache import GradientCache

ReferencePoint = Literal["now", "look_ahead", "extrapolated"]

_POINTS = ("now", "look_ahead", "extrapolated")


class StepModel:
    """The effect of a gradient on the reference loss through the next step of a live optimizer.

    Adding k to the gradient of a step moves the weights by -S k more, to first order, with

        SGD    S = lr·(1 - dampening), times 1 + momentum·(1 - dampening) under Nesterov
               (no dampening before there is momentum)
        Adam   S = lr·(1 - β₁) / (1 - β₁ᵗ⁺¹) / (√v̂ + ε), with v̂ the corrected second moment of now

    so with the reference gradient c, and H its curvature,

        φ = ⟨c, S k⟩ - ½ ⟨S k, H S k⟩

    is the predicted drop of the reference loss, in loss units, that is due to having the candidate
    in that step. Decoupled weight decay, and the momentum of now, move the weights with and without
    the candidate and are no part of S. Left out: gradient clipping, and what momentum carries into
    later steps.

    S takes Adam's second moments as they are (`displacement="linear"`), which fits a candidate that
    is small beside them. Where it is not, early in training or for rarely active weights,
    `displacement="exact"` replaces S k by what Adam makes of it, which saturates.

    Where c is taken (`reference_at`) decides whether φ sees the rest of the batch, whose own step u
    changes the reference gradient to c - H u before the candidate counts (the cross term):

        "now"           At the weights of now. With a curvature, the cross term - ⟨H u, S k⟩ is
                        added, u being the step that the optimizer would take on the `.grad` of
                        now; parameters without `.grad` are taken as not moved.
        "look_ahead"    After the step u, see `reference_gradients`: holds the cross term exactly.
        "extrapolated"  From the last two states of the cache, as if the next step changed it like
                        the last one: no further pass. Worth it where the reference batch stays
                        the same; noise between batches is extrapolated too. Takes one cache.

    Wherever `.grad` is read it has to be unscaled, if a loss scaler is in use. With several
    processes, each estimates the curvature from its own rows.

    Args:
        optimizer: SGD, Adam or AdamW, a subclass that inherits their update, or a wrapper such as
            accelerate's. Read anew each time, so learning-rate schedules are followed.
        unit_weight: Factor between the loss whose gradient is scored and its share of the training
            loss; 1 if the candidate's loss is normalised as in training.
        reference_at: Where the reference gradient is taken.
        curvature: `"none"`, or an estimate of H from the reference rows: `"scalar"`, `"diagonal"`
            or `"kfac"`. Fed by `reference_gradients`, or by the reference rows in `GhostScorer`.
            Matters where the candidate is a large part of the step.
        displacement: `"linear"` or `"exact"`, the same for SGD. Exact takes `.grad` as the gradient
            of the rest of the batch (none counts as zero).
        curvature_decay: Weight of the old estimate of H.

    Raises:
        TypeError: If the optimizer is of another kind, or a subclass that changes the update.
        ValueError: If it maximises, or an option is unknown.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        unit_weight: float = 1.0,
        reference_at: ReferencePoint = "now",
        curvature: Literal["none"] | CurvatureKind = "none",
        displacement: Literal["linear", "exact"] = "linear",
        curvature_decay: float = 0.9,
    ) -> None:
        optimizer = plain_optimizer(optimizer)
        if reference_at not in _POINTS:
            raise ValueError(f"`reference_at` must be one of {_POINTS}, got {reference_at!r}")
        if displacement not in ("linear", "exact"):
            raise ValueError(f"`displacement` must be 'linear' or 'exact', got {displacement!r}")
        self.optimizer = optimizer
        self._groups()
        self.displacement: Literal["linear", "exact"] = displacement
        self.unit_weight = float(unit_weight)
        self.reference_at: ReferencePoint = reference_at
        self.curvature = (
            None if curvature == "none" else Curvature(curvature, decay=curvature_decay)
        )
        self._extrapolation = Extrapolation() if reference_at == "extrapolated" else None

    @property
    def is_linear(self) -> bool:
        """Whether φ = ⟨S c, k⟩ for some c: then no unit's gradient has to be formed."""
        return self.curvature is None and self.displacement == "linear"

    @property
    def is_metric_only(self) -> bool:
        """Whether φ = ⟨S c, k⟩ with the cache c as it is: one pass over memory."""
        return self.is_linear and self.reference_at != "extrapolated"

    def metric(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None] | None = None,
    ) -> list[TensorMetric]:
        """Return the diagonal S of each parameter; zero for those the optimizer does not move.

        That are also those on which Adam has taken no step, since none has had a gradient.

        Args:
            parameters: Name to parameter; the optimizer's own objects.
            gradients: What is to be weighed, by name.

        Raises:
            ValueError: If Adam has taken no step yet, or none on a parameter with a gradient that
                is not zero (unless the displacement is exact), or nothing is moved at all.
        """
        groups = self._groups()
        moved = [name for name, parameter in parameters.items() if id(parameter) in groups]
        if not moved:
            raise ValueError("the optimizer moves none of the cached parameters")
        if not any(self._has_started(parameters[name]) for name in moved):
            raise _no_step_yet(moved[0])
        if gradients is not None and self.displacement == "linear":
            self._check_started(gradients, parameters)
        return [self._tensor_metric(p, groups.get(id(p))) for p in parameters.values()]

    def directions(
        self,
        tensors: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        *,
        power: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return Sᵖ x for tensors x by name; a copy of them in float32 (or float64).

        Args:
            tensors: x by name.
            parameters: Name to parameter.
            power: p. With 0.5 on both sides, ⟨S½ c, S½ k⟩ = ⟨c, S k⟩: to be preferred where both
                are sketched, since Adam's S c has few huge entries, whose collisions are costly.

        Raises:
            ValueError: If Adam has taken no step on a parameter whose x is not zero.
        """
        scaled = {}
        groups = self._groups()
        self._check_started(tensors, parameters)
        for name, tensor in tensors.items():
            metric = self._tensor_metric(parameters[name], groups.get(id(parameters[name])))
            x = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            if metric.second_moment is not None:
                v = metric.second_moment.to(x.dtype)
                root = (v / metric.bias_correction).sqrt_().add_(metric.eps)
                x.div_(root if power == 1.0 else root.pow_(power))
            scaled[name] = x.mul_(metric.scale**power)
        return scaled

    def reference(self, cache: GradientCache) -> dict[str, Tensor]:
        """Return the reference gradient that candidates are compared with, by parameter name.

        The cache itself, or the cache extrapolated, or the cache with the cross term.

        Raises:
            ValueError: If a cache in mode "mean" is to be extrapolated, or another than before.
        """
        cached = {name: cache[name] for name in cache.names}
        if self._extrapolation is not None:
            return self._extrapolation.ahead(cache)
        if self.reference_at == "look_ahead" or self.curvature is None:
            return cached
        moved = self.batch_step(cache.parameters)
        if not moved:
            return cached
        change = self.curvature.times(moved)
        return {
            name: c - change[name].to(c.dtype) if name in change else c
            for name, c in cached.items()
        }

    def effect(
        self,
        reference: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> float:
        """Return φ of a candidate, or of the part of it that belongs to some layers.

        φ is a sum over layers, so it may be computed layer by layer.

        Args:
            reference: The reference gradient, from `reference`.
            gradients: The candidate's gradient by name, for whole layers.
            parameters: Name to parameter, at least those of `gradients`.
        """
        parameters = {name: parameters[name] for name in gradients}
        if self.displacement == "exact" and not isinstance(self.optimizer, SGD):
            moved = self._adam_displacements(gradients, parameters)
        else:
            moved = self.directions(gradients, parameters)
        first_order = sum(
            float((reference[name].to(x.dtype) * x).sum(dtype=torch.float64))
            for name, x in moved.items()
        )
        return first_order - (
            0.0 if self.curvature is None else 0.5 * self.curvature.quadratic(moved)
        )

    def reference_gradients(
        self, model: nn.Module, reference_loss: Callable[[], Tensor]
    ) -> dict[str, Tensor | None]:
        """Return the gradient of the reference loss where `reference_at` says, for the cache.

        With "look_ahead" the weights are those after the optimizer's step on the `.grad` of now; so
        call it after the backward pass of the batch without the candidate. With a curvature, the
        rows of the loss (entries along the first axis of every layer's input) feed its estimate;
        layers that `GhostScorer` does not know count as flat.
        One forward and one backward pass. Parameters, buffers, `.grad`, modes and the random state
        stay, and graphs built before remain good for their backward pass.

        Args:
            model: Whose parameters get a gradient.
            reference_loss: Returns the scalar loss at the weights it finds.

        Returns:
            Parameter name to gradient; None where the loss does not depend on it.
        """
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        values = stepped_copies(self.optimizer) if self.reference_at == "look_ahead" else {}
        with trying(values, self.optimizer, model), torch.enable_grad():
            found: tuple[Tensor | None, ...]
            if self.curvature is None:
                found = torch.autograd.grad(
                    reference_loss(), list(named.values()), allow_unused=True
                )
            else:
                found = self._observe(self.curvature, named, reference_loss)
        return dict(zip(named, found, strict=True))

    @contextmanager
    def look_ahead(self, model: nn.Module | None = None) -> Iterator[None]:
        """Give the weights the values after the optimizer's step on the `.grad` of now, in a block.

        A reference gradient taken inside belongs to the weights after the step that is taken
        without the candidate; it holds the interplay of the candidate with the rest of the batch.
        The step is taken on copies, and parameters point to them meanwhile; `.grad` is None in the
        block. Everything is put back when it ends, and graphs built before remain good.

        Args:
            model: Restore its buffers and modes too.
        """
        with trying(stepped_copies(self.optimizer), self.optimizer, model):
            yield

    def batch_step(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return u, by how much the optimizer's step on the `.grad` of now lowers each parameter.

        Args:
            parameters: Name to parameter; those without `.grad` are left out.
        """
        chosen = {name: p for name, p in parameters.items() if p.grad is not None}
        after = stepped_copies(self.optimizer, set(chosen.values()))
        return {name: p.detach() - after.get(p, p.detach()) for name, p in chosen.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learnt about the curvature and the cache's course."""
        return {
            "reference_at": self.reference_at,
            "curvature": None if self.curvature is None else self.curvature.state_dict(),
            "extrapolation": (
                None if self._extrapolation is None else self._extrapolation.state_dict()
            ),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved with other options.
        """
        expected = self.state_dict()
        for key in ("curvature", "extrapolation"):
            if (state[key] is None) != (expected[key] is None):
                raise StateMismatchError(
                    f"the saved step model and this one differ in whether they have {key}"
                )
        if state["reference_at"] != self.reference_at:
            raise StateMismatchError(
                f"the saved step model has reference_at={state['reference_at']!r}, this one "
                f"{self.reference_at!r}"
            )
        if self.curvature is not None:
            self.curvature.load_state_dict(state["curvature"])
        if self._extrapolation is not None:
            self._extrapolation.load_state_dict(state["extrapolation"])

    @staticmethod
    def _observe(
        curvature: Curvature,
        named: Mapping[str, Tensor],
        reference_loss: Callable[[], Tensor],
    ) -> tuple[Tensor | None, ...]:
        """Return gradients, and feed the curvature from the same backward pass."""
        recorder = Recorder(named)
        recorder.start()
        try:
            loss = reference_loss()
        finally:
            recorder.stop()
        calls = without_parameters(recorder.calls, recorder.unrecorded(loss))
        places: list[Any] = [*named.values(), *(call.edge for call in calls)]
        found = torch.autograd.grad(loss, places, allow_unused=True)
        with torch.no_grad():
            curvature.update(
                CallRows(
                    call,
                    torch.arange(len(call.inputs), device=grads.device),
                    grads.reshape(call.output_shape),
                )
                for call, grads in zip(calls, found[len(named) :], strict=True)
                if grads is not None
            )
        return found[: len(named)]

    def _adam_displacements(
        self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return by how much more Adam's next step lowers the weights with the candidate."""
        groups = self._groups()
        moved = {}
        for name, gradient in gradients.items():
            parameter, group = parameters[name], groups.get(id(parameters[name]))
            if group is None:
                moved[name] = torch.zeros_like(gradient)
                continue
            # Before PyTorch 2.7 AdamW was a class of its own and did not say so in its groups.
            decoupled = isinstance(self.optimizer, AdamW) or group.get("decoupled_weight_decay")
            moved[name] = adam_displacement(
                gradient.to(torch.promote_types(gradient.dtype, torch.float32)) * self.unit_weight,
                parameter,
                self.optimizer.state.get(parameter, {}),
                {**group, "decoupled_weight_decay": decoupled},
            )
        return moved

    def _groups(self) -> dict[int, dict[str, Any]]:
        """Return the group of each parameter that the optimizer moves, by the parameter's id."""
        # Read anew each time: groups are added, and their settings changed, while a model trains.
        if any(group.get("maximize") for group in self.optimizer.param_groups):
            raise ValueError("`optimizer` maximises; scores are about lowering a loss")
        return {id(p): group for group in self.optimizer.param_groups for p in group["params"]}

    def _has_started(self, parameter: Tensor) -> bool:
        """Whether the optimizer's state says what it makes of a gradient of the parameter."""
        state = self.optimizer.state.get(parameter)
        return isinstance(self.optimizer, SGD) or bool(state and float(state["step"]) > 0)

    def _check_started(
        self, gradients: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor]
    ) -> None:
        groups = self._groups()
        for name, parameter in parameters.items():
            if id(parameter) not in groups or self._has_started(parameter):
                continue
            gradient = gradients.get(name)
            # NaN is no error, but a score.
            if gradient is not None and bool(gradient.any() & gradient.isfinite().all()):
                raise _no_step_yet(name)

    def _tensor_metric(self, parameter: Tensor, group: Mapping[str, Any] | None) -> TensorMetric:
        if group is None or not self._has_started(parameter):
            return TensorMetric(scale=0.0)
        state = self.optimizer.state.get(parameter, {})
        scale = float(group["lr"]) * self.unit_weight
        if isinstance(self.optimizer, SGD):
            started = state.get("momentum_buffer") is not None
            taken_in = 1.0 - group["dampening"] if group["momentum"] and started else 1.0
            if group["nesterov"]:
                return TensorMetric(scale * (1.0 + group["momentum"] * taken_in))
            return TensorMetric(scale * taken_in)
        n_steps = float(state["step"])
        beta_1, beta_2 = (float(beta) for beta in group["betas"])
        return TensorMetric(
            scale=scale * (1 - beta_1) / (1 - beta_1 ** (n_steps + 1)),
            second_moment=state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"],
            bias_correction=1 - beta_2**n_steps,
            eps=float(group["eps"]),
        )


def _no_step_yet(name: str) -> ValueError:
    return ValueError(
        f"Adam has taken no step on {name!r} yet, so there are no second moments; score with "
        "'cosine' until it has, or with displacement='exact' if it has on others"
    )
