"""Take one step of a run again, and see whether it comes out the same and where it breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch

from bsgal_train.annotations.paths import DataPaths
from bsgal_train.engine.assembly import Assembly, assemble
from bsgal_train.engine.divergence import Divergence, SampleContents, read_divergences
from bsgal_train.engine.progress import Progress
from bsgal_train.engine.step import DivergedError, StepOutcome
from bsgal_train.inspect.nonfinite_watch import BadLoss, BadOutput, NonFiniteWatch
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder, TrainingState
from bsgal_train.run_folder.decision_log import Decision, read_decisions
from bsgal_train.run_folder.layout import RunFolder, differing_settings
from bsgal_train.run_folder.provenance import describe_inputs, read_provenance, versions
from bsgal_train.run_folder.run_log import read_metrics

__all__ = ["LOCATIONS", "Replay", "replay"]

LOCATIONS = ("data.builtin_root", "data.train_json", "data.image_root", "paste.pool")
"""Settings that may be changed for a replay: where the run's data is now."""

_MAX_LISTED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came of a step that was taken again.

    Attributes:
        folder: Of the run.
        step: Number of the step, from 1.
        resumed_step: Steps of the checkpoint that it was reached from; 0 is the beginning.
        samples: What the step was taken on.
        losses: By name, as recorded then (None if it was not) and as they are now.
        decisions: That were made.
        message: Why the step diverged; None if it did not.
        bad_weights: Parameters that were not finite before the step.
        first_output: The first module's output that was not finite.
        bad_losses: Which objects the losses that are not finite belong to.
        first_gradient: The first parameter, from the loss backwards, with a gradient that was not
            finite.
        differences: In what the step differs from the one that was recorded; empty if in nothing.
        compared: Something was recorded that it could be compared with.
        remarks: What else is worth knowing.
    """

    folder: str
    step: int
    resumed_step: int
    samples: tuple[SampleContents, ...]
    losses: Mapping[str, tuple[float | None, float]]
    decisions: tuple[Decision, ...]
    message: str | None
    bad_weights: tuple[str, ...]
    first_output: BadOutput | None
    bad_losses: tuple[BadLoss, ...]
    first_gradient: str | None
    differences: tuple[str, ...]
    compared: bool
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        origin = f"the checkpoint of step {self.resumed_step}" if self.resumed_step else "the start"
        yield f"step {self.step} of {self.folder}, reached from {origin}"
        if not self.compared:
            yield "nothing is recorded of this step that it could be compared with"
        elif self.differences:
            yield "it does not come out as recorded:"
            yield from (f"  {one}" for one in self.differences)
        else:
            yield "it comes out as recorded, bit for bit"
        if self.losses:
            yield f"\n{'loss':<24}{'recorded':>16}{'now':>16}"
        for name, (then, now) in self.losses.items():
            yield f"{name:<24}{'-' if then is None else f'{then:.9g}':>16}{now:>16.9g}"
        yield ""
        yield f"diverged: {'no' if self.message is None else self.message}"
        yield from self._findings()
        yield "\nimages and pasted instances:"
        verdicts = {(one.image_id, one.instance_id): one for one in self.decisions}
        for sample in self.samples:
            yield f"  image {sample.image_id} ({sample.file_name}), position {sample.position}"
            for instance_id in sample.instance_ids:
                found = verdicts.get((sample.image_id, instance_id))
                yield f"    {instance_id}" + ("" if found is None else f": {_verdict(found)}")
        for remark in self.remarks:
            yield f"\nnote: {remark}"

    def _findings(self) -> Iterator[str]:
        if self.bad_weights:
            yield f"not finite before the step: {_listed(self.bad_weights)}"
        if self.first_output is not None:
            one = self.first_output
            place = f"{one.module} ({one.kind})" if one.module else f"the detector ({one.kind})"
            yield (
                f"first output that is not finite: {place}, {one.n_bad} of {one.n} elements, from "
                f"inputs that were {'all' if one.finite_inputs else 'not all'} finite"
            )
        if self.bad_losses:
            yield "losses that are not finite belong to: " + _listed(
                [
                    f"{one.name}: every row"
                    if one.image_id is None
                    else f"{one.name}: image {one.image_id}, {one.instance} ({one.n_rows} rows)"
                    for one in self.bad_losses
                ]
            )
        if self.first_gradient is not None:
            yield f"first gradient that is not finite: {self.first_gradient}"


def replay(
    folder: str | Path,
    step: int | None = None,
    *,
    locations: Sequence[str] = (),
    progress: Progress | None = None,
) -> Replay:
    """Take one step of a run again, in one process; nothing in the run's folder is changed.

    The newest checkpoint before the step is loaded, and the steps up to it are taken; without such
    a checkpoint, all steps from the first on.

    Args:
        folder: Output folder of the run.
        step: Number of the step, from 1; None is the last one that diverged.
        locations: Where the data is now, as `part.key=value`, for the keys in `LOCATIONS`.
        progress: Told after every step on the way.

    Raises:
        ValueError: There is no run, no such step, or the run's recipe or data has changed.
        DivergedError: A step before the one asked for diverges, and the run did not leave it out.
        RuntimeError: This is one of several processes.
    """
    folder = Path(folder)
    if processes.n_processes() > 1:
        raise RuntimeError("a step is replayed by a single process")
    recipe, records, number = _find(folder, step)
    recipe = _moved(recipe, locations)
    checkpoints = CheckpointFolder(RunFolder(folder).checkpoints, keep=recipe.checkpoint.keep)
    state = checkpoints.load_newest(before=number)
    annotations = DataPaths.of(recipe.data).load_training()
    assembly = assemble(recipe, annotations, initial_weights=state is None)
    _check_same_data(folder, assembly)
    if state is not None:
        assembly.steps.load_state(state, f"the checkpoint {checkpoints.path(state.step)}")
    return _replayed(folder, number, records, state, assembly, progress)


def _find(folder: Path, step: int | None) -> tuple[Recipe, list[Divergence], int]:
    """Return the run's recipe, the number of the step, and what it left if it diverged."""
    path = RunFolder(folder).recipe
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {path.name} in it")
    recipe = Recipe.load(path)
    records = read_divergences(folder)
    if step is None:
        if not records:
            raise ValueError(
                f"no step of the run in {folder} has diverged (nonfinite/ holds no record): name "
                "the step to take again (--step N)"
            )
        step = records[-1].step
    if not 1 <= step <= recipe.schedule.n_steps:
        raise ValueError(f"the step must be 1 .. {recipe.schedule.n_steps}, got {step}")
    records = [one for one in records if one.step == step]
    for record in records:
        changed = differing_settings(Recipe.from_dict(record.recipe), recipe)
        if changed:
            raise ValueError(
                f"{path} is no longer that of the step which diverged: "
                + ", ".join(f"{key}={then!r} (now {now!r})" for key, (then, now) in changed.items())
                + "; put these settings back"
            )
    return recipe, records, step


def _moved(recipe: Recipe, locations: Sequence[str]) -> Recipe:
    for assignment in locations:
        key = assignment.partition("=")[0].strip()
        if key not in LOCATIONS:
            raise ValueError(
                f"a replay has the settings of its run; only {', '.join(LOCATIONS)} may be set, "
                f"got `{key}`"
            )
    return recipe.override(*locations)


def _check_same_data(folder: Path, assembly: Assembly) -> None:
    provenance = read_provenance(folder)
    if provenance is None:
        return
    now = describe_inputs(assembly.annotations, assembly.annotations_sha256, None, assembly.pool)
    changed = [name for name in ("training", "pool") if now[name] != provenance["inputs"][name]]
    if changed:
        raise ValueError(
            f"the run in {folder} was made from other data: {', '.join(changed)} changed since "
            "(see provenance.json there); say where the run's own is with --set, such as "
            "--set data.train_json=... or --set paste.pool=..."
        )


def _replayed(
    folder: Path,
    number: int,
    records: list[Divergence],
    state: TrainingState | None,
    assembly: Assembly,
    progress: Progress | None,
) -> Replay:
    steps = assembly.steps
    resumed_step = steps.n_done
    batches = iter(assembly.batches(steps.position))
    for on_the_way in range(resumed_step + 1, number):
        try:
            steps.take(next(batches))
        except DivergedError as error:
            # As the run did, if its recipe allowed it.
            steps.skip(error)
        if progress is not None:
            progress(on_the_way - resumed_step, number - resumed_step, "")
    samples = next(batches)
    message = None
    with NonFiniteWatch(assembly.detector, samples) as watch:
        try:
            outcome = steps.take(samples)
        except DivergedError as error:
            message, outcome = str(error), error.outcome
    recorded = _recorded(folder, number, records, outcome.losses)
    differences = tuple(recorded.differences(message, outcome))
    contents = tuple(SampleContents.of(sample) for sample in samples)
    return Replay(
        folder=str(folder),
        step=number,
        resumed_step=resumed_step,
        samples=contents,
        losses={name: (recorded.losses.get(name), now) for name, now in outcome.losses.items()},
        decisions=outcome.decisions,
        message=message,
        bad_weights=watch.weights,
        first_output=watch.first_output,
        bad_losses=tuple(watch.bad_losses()),
        first_gradient=watch.first_gradient,
        differences=differences,
        compared=recorded.is_known,
        remarks=tuple(_remarks(folder, records, bool(differences))),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """What the run left of a step."""

    is_known: bool
    message: str | None = None
    losses: Mapping[str, float]
    decisions: tuple[Decision, ...] | None
    """None where they are not known."""

    def differences(self, message: str | None, now: StepOutcome) -> Iterator[str]:
        """Say in what a step differs from the one that was recorded."""
        if not self.is_known:
            return
        if message is None and self.message is not None:
            yield f"it diverged then and does not now: {self.message}"
        elif self.message is None and message is not None:
            yield "it diverges now and did not then"
        elif self.decisions is not None and message != self.message:
            yield f"it diverged in another way then: {self.message}"
        for name, then in self.losses.items():
            value = now.losses.get(name)
            if value is None:
                yield f"{name}: {then:.9g} then, not computed now"
            elif repr(value) != repr(then):
                relative = abs(value - then) / max(abs(then), 1e-300)
                yield f"{name}: {then:.9g} then, {value:.9g} now (relative change {relative:.1e})"
        if self.decisions is not None and len(self.decisions) != len(now.decisions):
            yield f"{len(self.decisions)} verdicts then, {len(now.decisions)} now"
        elif self.decisions is not None:
            for one, other in zip(self.decisions, now.decisions, strict=True):
                if repr(one) != repr(other):
                    yield (
                        f"image {one.image_id}, {one.instance_id}: {_verdict(one)} then, "
                        f"{_verdict(other)} now"
                    )


def _recorded(
    folder: Path, number: int, records: Sequence[Divergence], names: Iterable[str]
) -> _Recorded:
    """Return what is known of a step, and of the named losses where it did not diverge."""
    if records:
        # What several processes compute alone is not what one computes on the whole batch.
        alone = records[0].n_processes == 1
        return _Recorded(
            is_known=True,
            message=records[0].message,
            losses=records[0].losses if alone else {},
            decisions=records[0].decisions if alone else None,
        )
    rows = [row for row in read_metrics(RunFolder(folder).metrics) if row["step"] == number]
    losses = {name: row[name] for row in rows for name in names if name in row}
    log = read_decisions(RunFolder(folder).decisions)
    decisions = tuple(Decision(**row) for row in log.filter(pc.field("step") == number).to_pylist())
    return _Recorded(is_known=bool(losses or decisions), losses=losses, decisions=decisions or None)


def _remarks(folder: Path, records: Sequence[Divergence], differs: bool) -> Iterator[str]:
    if records and records[0].n_processes > 1:
        yield (
            f"the step was taken by {records[0].n_processes} processes, here by one on the whole "
            "batch, which is the same up to rounding; what each computed is in nonfinite/"
        )
    threads = torch.get_num_threads()
    if records and records[0].n_threads != threads:
        yield (
            f"it was taken with {records[0].n_threads} threads, now with {threads}, so sums may be "
            f"rounded in another way (--threads {records[0].n_threads})"
        )
    provenance = read_provenance(folder)
    if provenance is not None:
        now = versions()
        changed = [
            f"{name} {then} (now {now.get(name, 'missing')})"
            for name, then in provenance["versions"].items()
            if now.get(name) != then
        ]
        if changed:
            yield f"the run had other versions: {', '.join(changed)}"
    if differs:
        yield (
            "numbers are the same bit for bit only on the same machine, with as many processes and "
            "threads, in fp32 on the processor, and with the same versions"
        )


def _verdict(decision: Decision) -> str:
    if decision.contribution is None:
        return decision.verdict
    return f"{decision.verdict} ({decision.contribution:.6g}, needed {decision.threshold:.6g})"


def _listed(values: Sequence[str]) -> str:
    more = len(values) - _MAX_LISTED
    return ", ".join(values[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
