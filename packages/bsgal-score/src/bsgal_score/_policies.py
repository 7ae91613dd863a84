"""Policies that turn a contribution into a verdict.

Every policy has `decide`, `step` (called once per training step), `state_dict` and
`load_state_dict`. A policy that resumes from its state decides bit for bit like one that went on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ._verdict import Decision, Verdict
from .errors import StateMismatchError

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Policy(Protocol):
    """What `PerGroup` asks of the policies it holds."""

    def decide(self, contribution: float | None) -> Decision:
        """Judge one unit; None means that there is no evidence."""
        ...

    def decide_many(self, contributions: Sequence[float | None]) -> list[Decision]:
        """Judge the units of a step, whose order must not matter."""
        ...

    def step(self) -> None:
        """Note that a training step is over."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that later decisions depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        ...


def judge(contribution: float | None, threshold: float) -> Decision:
    """Compare a contribution with a threshold: ties accept, NaN and Inf are never accepted."""
    if contribution is None:
        verdict = Verdict.NO_EVIDENCE
    elif not math.isfinite(contribution):
        verdict = Verdict.NONFINITE
    else:
        verdict = Verdict.ACCEPT if contribution >= threshold else Verdict.REJECT
    return Decision(verdict, threshold, contribution)


class FixedThreshold:
    """Accept a unit if its contribution is at least `threshold`.

    Args:
        threshold: Finite number; slightly negative drops clearly harmful units only.

    Example:
        >>> FixedThreshold(-0.05).decide(-0.05).verdict.value
        'accept'
        >>> FixedThreshold(-0.05).decide(None).verdict.value
        'no_evidence'
    """

    def __init__(self, threshold: float) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"`threshold` must be finite, got {threshold}")
        self.threshold = float(threshold)

    def decide(self, contribution: float | None) -> Decision:
        """Judge one unit; None means that there is no evidence."""
        return judge(contribution, self.threshold)

    def decide_many(self, contributions: Sequence[float | None]) -> list[Decision]:
        """Judge the units of a step."""
        return [self.decide(contribution) for contribution in contributions]

    def step(self) -> None:
        """Do nothing: this threshold never moves."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` checks: this policy learns nothing."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a saved state came from the same threshold.

        Raises:
            StateMismatchError: If it did not.
        """
        check_settings(state, self.state_dict(), ("threshold",))


class LinearSchedule:
    """A number that moves linearly from `start` to `end` over `total_steps` calls of `step`.

    Pass it as `kept_share` of a `QuantileThreshold`, which then steps it.

    Args:
        start: Value before the first step.
        end: Value after `total_steps` steps and ever after.
        total_steps: At least 1.

    Example:
        >>> schedule = LinearSchedule(1.0, 0.5, total_steps=2)
        >>> schedule.step()
        >>> schedule.value
        0.75
    """

    def __init__(self, start: float, end: float, total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
        self.start, self.end, self.total_steps = float(start), float(end), int(total_steps)
        self.n_steps = 0

    @property
    def value(self) -> float:
        """The number now."""
        done = min(self.n_steps / self.total_steps, 1.0)
        return self.start + (self.end - self.start) * done

    def step(self) -> None:
        """Move on by one step."""
        self.n_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the number of steps."""
        return {
            "start": self.start,
            "end": self.end,
            "total_steps": self.total_steps,
            "n_steps": self.n_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved by another schedule.
        """
        check_settings(state, self.state_dict(), ("start", "end", "total_steps"))
        self.n_steps = int(state["n_steps"])


class _OfWindow(ABC):
    """A threshold that is a quantile of the contributions in a window."""

    def __init__(self, window: int, initial_threshold: float) -> None:
        if not math.isfinite(initial_threshold):
            raise ValueError(f"`initial_threshold` must be finite, got {initial_threshold}")
        self.initial_threshold = float(initial_threshold)
        self._recent = _Window(window)

    @property
    @abstractmethod
    def kept_share(self) -> float:
        """The share to accept now."""

    @property
    def window(self) -> int:
        """Number of contributions remembered."""
        return self._recent.size

    @property
    def threshold(self) -> float:
        """What the next contribution will be compared with."""
        return self._recent.quantile(1.0 - self.kept_share, self.initial_threshold)


class QuantileThreshold(_OfWindow):
    """Accept about the best `kept_share` of units, measured on the last `window` contributions.

    The threshold is the (1 - kept_share) quantile of the window (linear between neighbours, as
    `numpy.quantile`), read before the new contribution enters the window. Rejected contributions
    enter too; units without evidence and non-finite contributions do not.

    Args:
        kept_share: Share to accept, in [0, 1], or a `LinearSchedule` of it.
        window: Number of contributions remembered, at least 1.
        initial_threshold: Threshold until the window holds a contribution.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        kept_share: float | LinearSchedule,
        window: int = 1000,
        *,
        initial_threshold: float = 0.0,
    ) -> None:
        ends: tuple[float, ...]
        if isinstance(kept_share, LinearSchedule):
            ends = (kept_share.start, kept_share.end)
        else:
            ends = (kept_share,)
        if not all(0.0 <= share <= 1.0 for share in ends):
            raise ValueError(f"`kept_share` must lie in [0, 1], got {' to '.join(map(str, ends))}")
        super().__init__(window, initial_threshold)
        self._kept_share = kept_share

    @property
    def kept_share(self) -> float:
        """The share to accept now."""
        if isinstance(self._kept_share, LinearSchedule):
            return self._kept_share.value
        return self._kept_share

    def decide(self, contribution: float | None) -> Decision:
        """Judge one unit, then remember its contribution; None means that there is no evidence."""
        return self.decide_many([contribution])[0]

    def decide_many(self, contributions: Sequence[float | None]) -> list[Decision]:
        """Judge the units of a step by one threshold, then remember their contributions.

        Neither the decisions nor what is remembered depend on the order of the units.
        """
        threshold = self.threshold
        decisions = [judge(contribution, threshold) for contribution in contributions]
        self._recent.add_many(contributions)
        return decisions

    def step(self) -> None:
        """Move the schedule of the kept share on by one training step, if there is one."""
        if isinstance(self._kept_share, LinearSchedule):
            self._kept_share.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the window, oldest contribution first."""
        share = self._kept_share
        return {
            "kept_share": None if isinstance(share, LinearSchedule) else share,
            "schedule": share.state_dict() if isinstance(share, LinearSchedule) else None,
            "window": self.window,
            "initial_threshold": self.initial_threshold,
            "recent": self._recent.values(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved with other settings.
        """
        expected = self.state_dict()
        check_settings(state, expected, ("kept_share", "window", "initial_threshold"))
        if isinstance(self._kept_share, LinearSchedule):
            if state["schedule"] is None:
                raise StateMismatchError("the saved policy has no schedule, this one has")
            self._kept_share.load_state_dict(state["schedule"])
        self._recent = _Window(self.window, state["recent"])


class ReferenceQuantile(_OfWindow):
    """Accept a unit that does as well as `kept_share` of real data does.

    The threshold is the (1 - kept_share) quantile of the last `window` contributions of reference
    units, which `observe` takes: it sets the share of good units that is lost, whatever the share
    of bad ones. What is judged does not move it.

    Args:
        kept_share: Share of real units that would be accepted, in [0, 1].
        window: Number of reference contributions remembered, at least 1.
        initial_threshold: Threshold until there is a reference contribution.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> policy = ReferenceQuantile(0.75)
        >>> policy.observe([0.1, 0.5, 0.6, 0.7, 0.9])
        >>> policy.threshold, policy.decide(0.4).verdict.value
        (0.5, 'reject')
    """

    def __init__(
        self, kept_share: float = 0.99, window: int = 1000, *, initial_threshold: float = 0.0
    ) -> None:
        if not 0.0 <= kept_share <= 1.0:
            raise ValueError(f"`kept_share` must lie in [0, 1], got {kept_share}")
        super().__init__(window, initial_threshold)
        self._kept_share = float(kept_share)

    @property
    def kept_share(self) -> float:
        """Share of real units that would be accepted."""
        return self._kept_share

    def observe(self, contributions: Iterable[float | None]) -> None:
        """Remember contributions of reference units; those that are None or not finite are not.

        What is remembered does not depend on the order of those that are given together.
        """
        self._recent.add_many(contributions)

    def decide(self, contribution: float | None) -> Decision:
        """Judge one unit; None means that there is no evidence."""
        return judge(contribution, self.threshold)

    def decide_many(self, contributions: Sequence[float | None]) -> list[Decision]:
        """Judge the units of a step."""
        return [self.decide(contribution) for contribution in contributions]

    def step(self) -> None:
        """Do nothing: no schedule moves this threshold."""

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the window, oldest contribution first."""
        return {
            "kept_share": self.kept_share,
            "window": self.window,
            "initial_threshold": self.initial_threshold,
            "recent": self._recent.values(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved with other settings.
        """
        check_settings(state, self.state_dict(), ("kept_share", "window", "initial_threshold"))
        self._recent = _Window(self.window, state["recent"])


class _Window:
    """The last `size` numbers, kept sorted too."""

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        if size < 1:
            raise ValueError(f"`window` must be at least 1, got {size}")
        self.size = int(size)
        self._recent = deque(values)
        self._sorted = sorted(self._recent)

    def add_many(self, values: Iterable[float | None]) -> None:
        """Add those that are finite numbers, in an order of their own."""
        ordered = sorted(float(one) for one in values if one is not None and math.isfinite(one))
        # Strides by the golden ratio: whichever of them a full window keeps are spread evenly.
        for rank in sorted(range(len(ordered)), key=lambda rank: rank * _GOLDEN_RATIO % 1.0):
            self._add(ordered[rank])

    def _add(self, value: float) -> None:
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > self.size:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def quantile(self, share: float, of_none: float) -> float:
        """Interpolate linearly between neighbours, as `numpy.quantile`."""
        if not self._sorted:
            return of_none
        position = share * (len(self._sorted) - 1)
        below = math.floor(position)
        above = min(below + 1, len(self._sorted) - 1)
        low, high = self._sorted[below], self._sorted[above]
        return low + (high - low) * (position - below)

    def values(self) -> list[float]:
        """List the numbers, oldest first."""
        return list(self._recent)


class PerGroup:
    """One policy per group of units, for example per frequency group of an LVIS category.

    Args:
        policies: Group name to policy. A policy object must not serve two groups.

    Example:
        >>> policy = PerGroup({"r": FixedThreshold(-0.1), "f": FixedThreshold(0.0)})
        >>> policy.decide(-0.05, "r").verdict.value, policy.decide(-0.05, "f").verdict.value
        ('accept', 'reject')
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        if not policies:
            raise ValueError("`policies` must hold at least one group, got none")
        if len({id(policy) for policy in policies.values()}) < len(policies):
            raise ValueError("`policies` must be distinct objects, got one for several groups")
        self.policies = dict(policies)

    def decide(self, contribution: float | None, group: str) -> Decision:
        """Judge one unit by the policy of its group.

        Raises:
            ValueError: If there is no such group.
        """
        return self.decide_many([contribution], [group])[0]

    def decide_many(
        self, contributions: Sequence[float | None], groups: Sequence[str]
    ) -> list[Decision]:
        """Judge the units of a step, each by the policy of its group; their order does not matter.

        Raises:
            ValueError: If there is no such group, or not one per contribution; nothing was decided.
        """
        if len(groups) != len(contributions):
            raise ValueError(
                f"`groups` must name one group per contribution, got {len(groups)} for "
                f"{len(contributions)}"
            )
        units_of: dict[str, list[int]] = {}
        for number, group in enumerate(groups):
            if group not in self.policies:
                raise ValueError(f"`group` must be one of {sorted(self.policies)}, got {group!r}")
            units_of.setdefault(group, []).append(number)
        decisions: dict[int, Decision] = {}
        for group, units in units_of.items():
            judged = self.policies[group].decide_many([contributions[unit] for unit in units])
            decisions.update(zip(units, judged, strict=True))
        return [decisions[number] for number in range(len(contributions))]

    def step(self) -> None:
        """Step every policy."""
        for policy in self.policies.values():
            policy.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all policies."""
        return {group: policy.state_dict() for group, policy in self.policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If the groups or the settings of a policy differ.
        """
        if sorted(state) != sorted(self.policies):
            raise StateMismatchError(
                f"the saved policy has groups {sorted(state)}, this one {sorted(self.policies)}"
            )
        for group, policy in self.policies.items():
            policy.load_state_dict(state[group])


def check_settings(
    saved: Mapping[str, Any], expected: Mapping[str, Any], names: Iterable[str]
) -> None:
    """Refuse a saved state whose settings of these names are not the expected ones.

    Raises:
        StateMismatchError: Naming the first setting that differs.
    """
    for name in names:
        if saved.get(name) != expected[name]:
            raise StateMismatchError(
                f"the saved state has {name} {saved.get(name)}, this object has {expected[name]}; "
                "make it with the saved settings"
            )
