"""Verdicts of a run: policies, and the counts behind them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from bsgal_score import (
    Decision,
    FixedThreshold,
    LinearSchedule,
    PerGroup,
    Policy,
    QuantileThreshold,
    ReferenceQuantile,
    Verdict,
)
from bsgal_train.processes import group as processes
from bsgal_train.recipe import SelectionConfig
from bsgal_train.selection.numbering import Units

__all__ = ["Judge", "RealScore", "UnitVerdict"]

# Frequency groups, in the order of the recipe's `..._by_group` settings.
_GROUPS = ("r", "c", "f")
_RECENT = 1000

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class RealScore:
    """What real objects score, by the measure of pasted ones.

    Attributes:
        contribution: their score; None is no evidence.
        group: frequency group of their category.
    """

    contribution: float | None
    group: str


@dataclass(frozen=True)
class UnitVerdict(Decision):
    """The verdict on a unit, with its score and the threshold.

    Attributes:
        accepted_share: accepted share of all units judged accept or reject up to this one; None
            before the first.
    """

    accepted_share: float | None


class Judge:
    """Turn contributions into verdicts, the same in every process of a run.

    Args:
        config: policy and thresholds.
        n_steps: steps of the run, over which a schedule moves.
    """

    def __init__(self, config: SelectionConfig, n_steps: int) -> None:
        self._per_group = config.is_per_group
        self._is_like_real = config.effective_policy == "like_real"
        self._policy: Policy | PerGroup
        if self._per_group:
            self._policy = PerGroup(
                {group: _policy(config, i, n_steps) for i, group in enumerate(_GROUPS)}
            )
        else:
            self._policy = _policy(config, None, n_steps)
        self._n = dict.fromkeys(Verdict, 0)
        self._drawn_threshold = 1 - config.kept_share
        # Contribution, group and 1 for accepted, of recent instances with a verdict.
        self._recent: deque[tuple[float | None, str, int]] = deque(maxlen=_RECENT)

    @property
    def accepted_share(self) -> float | None:
        """Accepted share of all units judged accept or reject; None before the first."""
        accepted, rejected = self._n[Verdict.ACCEPT], self._n[Verdict.REJECT]
        return accepted / (accepted + rejected) if accepted + rejected else None

    def judge(self, units: Units, contributions: Sequence[float | None]) -> list[UnitVerdict]:
        """Judge this process's units; policies see those of all processes, in order of rank.

        Args:
            units: a batch is one unit, which all processes share.
            contributions: score of each unit, None is no evidence; of a batch the same in each
                process.
        """
        return self._in_order(units, contributions, self._judge)

    def note(self, units: Units, accepts: Sequence[bool]) -> list[UnitVerdict]:
        """Note verdicts that were drawn and not scored.

        Args:
            units: as in `judge`.
            accepts: for each unit whether it was accepted.
        """
        return self._in_order(units, accepts, self._note)

    def observe(self, real: Sequence[RealScore]) -> None:
        """Show the policy what real objects of this process score; it sees those of all."""
        if not self._is_like_real:
            return
        for part in processes.gather(real):
            for one in part:
                policy = self._policy
                if isinstance(policy, PerGroup):
                    policy = policy.policies[one.group]
                assert isinstance(policy, ReferenceQuantile), "made in `_policy`"
                policy.observe([one.contribution])

    def end_step(self) -> None:
        """Move schedules on by one training step."""
        self._policy.step()

    def statistics(self, verdicts: Sequence[UnitVerdict]) -> dict[str, float]:
        """Return numbers of a step for the metrics.

        Acceptance by frequency group and quantiles are those of the last 1000 judged instances;
        `accepted_share` and the counts are those of the whole run.
        """
        values: dict[str, float] = {}
        own = [(verdict.contribution, verdict.threshold) for verdict in verdicts]
        judged = [one for listed in processes.gather(own) for one in listed]
        scores = [contribution for contribution, _ in judged if contribution is not None]
        if scores:
            values["contribution"] = float(np.mean(scores))
        if judged:
            values["threshold"] = float(np.mean([threshold for _, threshold in judged]))
        share = self.accepted_share
        if share is not None:
            values["accepted_share"] = share
        for group in _GROUPS:
            accepted = [accept for _, its_group, accept in self._recent if its_group == group]
            if accepted:
                values[f"accepted_share_{group}"] = float(np.mean(accepted))
        recent = [score for score, _, _ in self._recent if score is not None]
        if recent:
            quantiles = np.quantile(recent, (0.1, 0.5, 0.9))
            for name, value in zip(("10", "50", "90"), quantiles, strict=True):
                values[f"contribution_q{name}"] = float(value)
        values["n_no_evidence"] = float(self._n[Verdict.NO_EVIDENCE])
        values["n_nonfinite"] = float(self._n[Verdict.NONFINITE])
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return policies, counts and recent scores."""
        return {
            "policy": self._policy.state_dict(),
            "n": {verdict.value: n for verdict, n in self._n.items()},
            "recent": [list(one) for one in self._recent],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._policy.load_state_dict(state["policy"])
        self._n = {verdict: int(state["n"][verdict.value]) for verdict in Verdict}
        self._recent = deque((tuple(one) for one in state["recent"]), maxlen=_RECENT)

    def _in_order(
        self,
        units: Units,
        values: Sequence[_Value],
        verdict_on: Callable[[_Value, tuple[str, ...]], UnitVerdict],
    ) -> list[UnitVerdict]:
        if units.granularity == "batch":
            (value,), (own,) = values, units.groups
            return [verdict_on(value, tuple(g for part in processes.gather(own) for g in part))]
        own_units = list(zip(values, units.groups, strict=True))
        found = [[verdict_on(*one) for one in part] for part in processes.gather(own_units)]
        return found[processes.rank()]

    def _judge(self, contribution: float | None, groups: tuple[str, ...]) -> UnitVerdict:
        if isinstance(self._policy, PerGroup):
            found = self._policy.decide(contribution, groups[0])
        else:
            found = self._policy.decide(contribution)
        # A unit without instances has nothing that a verdict could be about.
        if groups or contribution is not None:
            self._n[found.verdict] += 1
        if found.verdict in (Verdict.ACCEPT, Verdict.REJECT):
            assert contribution is not None, "a verdict without evidence is another one"
            self._remember(contribution, groups, accept=found.verdict is Verdict.ACCEPT)
        return UnitVerdict(found.verdict, found.threshold, found.contribution, self.accepted_share)

    def _note(self, accept: bool, groups: tuple[str, ...]) -> UnitVerdict:
        verdict = Verdict.ACCEPT if accept else Verdict.REJECT
        if groups:
            self._n[verdict] += 1
        self._remember(None, groups, accept=accept)
        return UnitVerdict(verdict, self._drawn_threshold, None, self.accepted_share)

    def _remember(
        self, contribution: float | None, groups: tuple[str, ...], *, accept: bool
    ) -> None:
        self._recent.extend((contribution, group, int(accept)) for group in groups)


def _policy(config: SelectionConfig, group: int | None, n_steps: int) -> Policy:
    def setting(name: str, common: float) -> float:
        by_group: tuple[float, ...] = getattr(config, f"{name}_by_group")
        return by_group[group] if group is not None and by_group else common

    threshold = setting("threshold", config.effective_threshold)
    kept_share = setting("kept_share", config.kept_share)
    if config.effective_policy == "fixed":
        return FixedThreshold(threshold)
    if config.effective_policy == "level":
        # A p-value of `alpha` is rejected, one above it is not.
        return FixedThreshold(float(np.nextafter(config.alpha, 1.0)))
    if config.effective_policy == "like_real":
        # Nothing is rejected before it is known what real objects score.
        return ReferenceQuantile(config.real_kept_share, config.window, initial_threshold=-1.0)
    if config.effective_policy == "quantile":
        return QuantileThreshold(kept_share, config.window, initial_threshold=threshold)
    end = setting("kept_share_end", config.kept_share_end)
    schedule = LinearSchedule(kept_share, end, total_steps=n_steps)
    return QuantileThreshold(schedule, config.window, initial_threshold=threshold)
