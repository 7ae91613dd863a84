"""Verdicts of a run: policies, the counts behind them, and the rows of the decision log."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bsgal_score import Decision as Verdicted
from bsgal_score import (
    FixedThreshold,
    LinearSchedule,
    PerGroup,
    Policy,
    QuantileThreshold,
    ReferenceQuantile,
    Verdict,
)
from bsgal_train.data.samples import TrainingSample
from bsgal_train.processes import group as processes
from bsgal_train.recipe import SelectionConfig
from bsgal_train.run_folder.decision_log import Decision

__all__ = ["GROUPS", "Judge", "Judgement", "Unit", "decision_rows"]

GROUPS = ("r", "c", "f")
"""Frequency groups, in the order of the recipe's `..._by_group` settings."""

Granularity = Literal["batch", "image", "instance"]
_RECENT = 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to judge.

    Attributes:
        contribution: its score; None is no evidence.
        groups: frequency group of each pasted instance in it.
    """

    contribution: float | None
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the accepted share of all units judged accept or reject up to it."""

    decision: Verdicted
    accepted_share: float | None

    @property
    def trains(self) -> bool:
        """Whether the unit is trained on."""
        return self.decision.trains


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
                {group: _policy(config, i, n_steps) for i, group in enumerate(GROUPS)}
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

    def judge_joint(self, unit: Unit) -> Judgement:
        """Judge a unit that all processes share: its contribution is the same in each of them."""
        groups = [group for part in processes.gather(unit.groups) for group in part]
        return self._judge(Unit(unit.contribution, tuple(groups)))

    def judge(self, units: Sequence[Unit]) -> list[Judgement]:
        """Judge this process's units; policies see those of all processes, in order of rank."""
        found = [[self._judge(unit) for unit in part] for part in processes.gather(units)]
        return found[processes.rank()]

    def observe(self, real: Sequence[Unit]) -> None:
        """Show the policy what this process's real units score; it sees those of all processes."""
        if not self._is_like_real:
            return
        for part in processes.gather(real):
            for unit in part:
                policy = self._policy
                if isinstance(policy, PerGroup):
                    policy = policy.policies[unit.groups[0]]
                assert isinstance(policy, ReferenceQuantile), "made in `_policy`"
                policy.observe([unit.contribution])

    def accept_by(
        self, accepts: Sequence[bool], groups: Sequence[tuple[str, ...]], *, joint: bool = False
    ) -> list[Judgement]:
        """Note verdicts that were drawn and not scored.

        Args:
            accepts: one per unit of this process.
            groups: frequency group of each pasted instance in each unit.
            joint: there is one unit, which all processes share.
        """
        drawn = list(zip(accepts, groups, strict=True))
        if joint:
            shared = tuple(group for part in processes.gather(groups[0]) for group in part)
            return [self._note(accepts[0], shared)]
        found = [[self._note(*one) for one in part] for part in processes.gather(drawn)]
        return found[processes.rank()]

    def _note(self, accept: bool, groups: tuple[str, ...]) -> Judgement:
        verdict = Verdict.ACCEPT if accept else Verdict.REJECT
        if groups:
            self._n[verdict] += 1
        self._recent.extend((None, group, int(accept)) for group in groups)
        return Judgement(Verdicted(verdict, self._drawn_threshold, None), self.accepted_share)

    def end_step(self) -> None:
        """Move schedules on by one training step."""
        self._policy.step()

    def statistics(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """Return numbers of a step for the metrics.

        Acceptance by frequency group and quantiles are those of the last 1000 judged instances;
        `accepted_share` and the counts are those of the whole run.
        """
        values: dict[str, float] = {}
        own = [(j.decision.contribution, j.decision.threshold) for j in judgements]
        judged = [one for listed in processes.gather(own) for one in listed]
        scores = [contribution for contribution, _ in judged if contribution is not None]
        if scores:
            values["contribution"] = float(np.mean(scores))
        if judged:
            values["threshold"] = float(np.mean([threshold for _, threshold in judged]))
        share = self.accepted_share
        if share is not None:
            values["accepted_share"] = share
        for group in GROUPS:
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

    def _judge(self, unit: Unit) -> Judgement:
        if isinstance(self._policy, PerGroup):
            decision = self._policy.decide(unit.contribution, unit.groups[0])
        else:
            decision = self._policy.decide(unit.contribution)
        # A unit without instances has nothing that a verdict could be about.
        if unit.groups or unit.contribution is not None:
            self._n[decision.verdict] += 1
        if decision.verdict in (Verdict.ACCEPT, Verdict.REJECT):
            assert decision.contribution is not None, "a verdict without evidence is another one"
            accepted = int(decision.verdict is Verdict.ACCEPT)
            self._recent.extend((decision.contribution, group, accepted) for group in unit.groups)
        return Judgement(decision, self.accepted_share)


def decision_rows(
    step: int,
    samples: Sequence[TrainingSample],
    granularity: Granularity,
    judgements: Sequence[Judgement],
) -> tuple[Decision, ...]:
    """Return one row of the decision log per pasted instance.

    Args:
        step: the step's number.
        samples: its batch in this process.
        granularity: what shared a verdict.
        judgements: one per instance in the order of the samples' pastes, one per sample, or one.
    """
    rows = []
    n_before = 0
    for position, sample in enumerate(samples):
        for number, paste in enumerate(sample.pastes):
            place = {"batch": 0, "image": position, "instance": n_before + number}[granularity]
            judgement = judgements[place]
            decision = judgement.decision
            rows.append(
                Decision(
                    step=step,
                    image_id=sample.original.image_id,
                    instance_id=paste.instance_id,
                    category_id=paste.category_id,
                    frequency=paste.frequency,
                    granularity=granularity,
                    contribution=decision.contribution,
                    threshold=decision.threshold,
                    verdict=decision.verdict.value,
                    accepted_share=judgement.accepted_share,
                )
            )
        n_before += len(sample.pastes)
    return tuple(rows)


def _policy(config: SelectionConfig, group: int | None, n_steps: int) -> Policy:
    def setting(name: str, common: float) -> float:
        by_group: tuple[float, ...] = getattr(config, f"{name}_by_group")
        return by_group[group] if group is not None and by_group else common

    threshold = setting("threshold", config.effective_threshold)
    kept_share = setting("kept_share", config.kept_share)
    if config.effective_policy == "fixed":
        return FixedThreshold(threshold)
    if config.effective_policy == "like_real":
        # Nothing is rejected before it is known what real objects score.
        return ReferenceQuantile(config.real_kept_share, config.window, initial_threshold=-1.0)
    if config.effective_policy == "quantile":
        return QuantileThreshold(kept_share, config.window, initial_threshold=threshold)
    end = setting("kept_share_end", config.kept_share_end)
    schedule = LinearSchedule(kept_share, end, total_steps=n_steps)
    return QuantileThreshold(schedule, config.window, initial_threshold=threshold)
