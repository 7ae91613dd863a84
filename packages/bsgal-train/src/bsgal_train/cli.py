"""Command line of bsgal-train."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bsgal_train.demo.settings import DemoSettings
from bsgal_train.processes.launch import Placement, is_part_of_a_run, joined, run_processes
from bsgal_train.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe

__all__ = ["main"]

_PLACEMENT_HELP = {
    "processes": "processes on this machine (default: 1)",
    "machines": "machines, each with as many processes (default: 1)",
    "machine_rank": "number of this machine, from 0",
    "address": "HOST:PORT of machine 0, where there are several",
}

# Heavy modules are imported inside the commands: `--help` answers at once, and
# `setup-detectron2` runs where detectron2 is not installed yet.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done, 1 failure with one readable line, 2 bad usage, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        code: int | None = options.command(options)
    except KeyboardInterrupt as interruption:
        if _speaks():
            print(f"\n{str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if options.verbose:
            logging.getLogger(__name__).exception("failed")
        print(f"bsgal-train: {error}", file=sys.stderr)
        return 1
    return code or 0


def _speaks() -> bool:
    """Say whether this process prints what is the same in all processes of a run."""
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bsgal-train",
        description="Train and evaluate instance segmentation with generated instances.",
    )
    parser.add_argument("--verbose", action="store_true", help="log more, and tracebacks")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train a recipe; started again, it goes on")
    _add_recipe_options(train, "builtin_continue")
    train.add_argument("--out", type=Path, required=True, help="output folder of the run")
    _add_placement_options(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("eval", help="evaluate a detector on an annotation file")
    _add_recipe_options(evaluate, "the run's own, else builtin_continue")
    evaluate.add_argument(
        "--detector",
        default="baseline",
        help="output folder of a run, or `baseline`, the shipped detector (default)",
    )
    evaluate.add_argument("--out", type=Path, help="write predictions and results here")
    _add_placement_options(evaluate)
    evaluate.set_defaults(command=_evaluate)

    screen = commands.add_parser(
        "screen", help="look at every instance of a pool, and write what speaks against it"
    )
    screen.add_argument(
        "recipe",
        help="output folder of a run, whose detector looks; or a recipe with `detector.init`",
    )
    screen.add_argument("--pool", required=True, help="folder of the pool")
    screen.add_argument("--looks", type=int, default=4, help="looks at each instance (default: 4)")
    screen.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the table to write (.parquet); if stopped, it goes on",
    )
    screen.add_argument(
        "--alpha",
        type=float,
        default=0.1,
        help="at most this share of real objects would be rejected (default: 0.1)",
    )
    _add_overrides(screen)
    _add_placement_options(screen)
    screen.set_defaults(command=_screen)

    evidence = commands.add_parser(
        "evidence", help="write what a run has found out about the instances of its pool"
    )
    evidence.add_argument("run", type=Path, help="output folder of the run, finished or not")
    evidence.add_argument("--out", type=Path, required=True, help="the table to write (.parquet)")
    evidence.set_defaults(command=_evidence)

    data = commands.add_parser("data", help="make the built-in data set")
    data.add_argument("--out", type=Path, required=True, help="its folder")
    data.add_argument("--seed", type=int, default=0)
    data.set_defaults(command=_data)

    check = commands.add_parser("check-data", help="look through annotations, images and pool")
    _add_recipe_options(check, "builtin_continue")
    check.add_argument("--read-images", action="store_true", help="decode every image")
    check.set_defaults(command=_check_data)

    report = commands.add_parser("report", help="one HTML page about a run")
    report.add_argument("run", type=Path, help="output folder of a run, finished or not")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")
    report.set_defaults(command=_report)

    again = commands.add_parser(
        "replay", help="take one step of a run again: is it the same, and where does it break"
    )
    again.add_argument("run", type=Path, help="output folder of a run")
    again.add_argument("--step", type=int, help="its number (default: the last that diverged)")
    again.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PART.KEY=PATH",
        help="where the run's data or pool is now; may be given many times",
    )
    _add_threads_option(again)
    again.add_argument("--json", action="store_true", help="print it as JSON")
    again.set_defaults(command=_replay)

    compare = commands.add_parser("compare", help="what differs between two runs, and results")
    compare.add_argument("run_a", type=Path, help="output folder of a run")
    compare.add_argument("run_b", type=Path, help="output folder of another one")
    compare.add_argument("--json", action="store_true", help="print it as JSON")
    compare.set_defaults(command=_compare)

    doctor = commands.add_parser(
        "doctor", help="what this machine has, what is missing, how to mend it"
    )
    doctor.add_argument(
        "--out", type=Path, default=Path(), help="where runs are to go (default: here)"
    )
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(command=_doctor)

    setup = commands.add_parser(
        "setup-detectron2", help="build and install detectron2 v0.6, without a compiler"
    )
    setup.add_argument("--archive", type=Path, help="the source archive, already downloaded")
    setup.set_defaults(command=_setup_detectron2)

    demo = commands.add_parser("demo", help="the whole loop, from prompts to a report")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="its folder (default: demo)")
    for field in dataclasses.fields(DemoSettings):
        flag = f"--{field.name.replace('_', '-')}"
        demo.add_argument(flag, type=int, default=field.default, help=f"default: {field.default}")
    demo.set_defaults(command=_demo)
    return parser


def _add_recipe_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--recipe", help=f"name of a recipe, or a .py or .json file (default: {default})"
    )
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PART.KEY=VALUE",
        help="override one setting of the recipe; may be given many times",
    )
    _add_threads_option(parser)


def _add_threads_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of torch (default: torch's own choice)"
    )


def _add_placement_options(parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(Placement):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=_PLACEMENT_HELP[field.name],
        )


def _start_others(options: argparse.Namespace) -> int | None:
    """Run the command in several processes if it asks for them and is not one of them yet."""
    if is_part_of_a_run():
        return None
    names = [field.name for field in dataclasses.fields(Placement)]
    placement = Placement(**{name: getattr(options, name) for name in names})
    if placement.total == 1:
        return None
    return run_processes(options.arguments, placement, options.threads)


def _train(options: argparse.Namespace) -> int | None:
    code = _start_others(options)
    if code is not None:
        return code
    from bsgal_train.engine.run import train
    from bsgal_train.evaluation import summary_table

    _use_threads(options.threads)
    recipe = _recipe(options.recipe or "builtin_continue", options)
    with joined():
        result = train(recipe, options.out, progress=_ProgressLine("training"))
    if not _speaks():
        return None
    if result.evaluation is not None:
        print(summary_table(result.evaluation))
    print(f"results in {options.out}")
    return None


def _evaluate(options: argparse.Namespace) -> int | None:
    code = _start_others(options)
    if code is not None:
        return code
    from bsgal_train.engine.run import evaluate
    from bsgal_train.evaluation import summary_table

    _use_threads(options.threads)
    own = RunFolder(Path(options.detector)).recipe
    name = options.recipe or (str(own) if own.is_file() else "builtin_continue")
    recipe = _recipe(name, options)
    line = _ProgressLine("evaluating")
    with joined():
        result = evaluate(recipe, options.detector, options.out, progress=line)
    if _speaks():
        print(summary_table(result))
    return None


def _screen(options: argparse.Namespace) -> int | None:
    code = _start_others(options)
    if code is not None:
        return code
    from bsgal_train.engine.screen import screen

    _use_threads(options.threads)
    own = RunFolder(Path(options.recipe)).recipe
    name = str(own) if own.is_file() else options.recipe
    changes = [f"paste.pool={options.pool}"]
    if own.is_file():
        changes.append(f"detector.init={options.recipe}")
    recipe = _recipe(name, options).override(*changes)
    with joined():
        table = screen(
            recipe,
            options.out,
            n_looks=options.looks,
            alpha=options.alpha,
            progress=_ProgressLine("looking"),
        )
    if _speaks():
        _tell(table.verdicts.tolist(), options.out)
    return None


def _evidence(options: argparse.Namespace) -> None:
    from bsgal_train.inspect.run_evidence import run_evidence

    if options.out.exists():
        raise ValueError(f"{options.out} is there already; delete it, or name another file")
    table = run_evidence(options.run)
    table.to_parquet(options.out)
    _tell(table.verdicts.tolist(), options.out)


def _tell(verdicts: Sequence[str], out: Path) -> None:
    counts = Counter(verdicts)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts)))
    print(f"table in {out}")


def _data(options: argparse.Namespace) -> None:
    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset

    line = _ProgressLine("drawing images")
    dataset = ensure_builtin_dataset(
        options.out, seed=options.seed, progress=lambda done, total: line(done, total, "")
    )
    print(f"training annotations: {dataset.train_json}")
    print(f"validation annotations: {dataset.val_json}")
    print(f"images: {dataset.image_root}")


def _check_data(options: argparse.Namespace) -> None:
    from bsgal_train.annotations.check import check_data
    from bsgal_train.annotations.paths import DataPaths

    recipe = _recipe(options.recipe or "builtin_continue", options)
    paths = DataPaths.of(recipe.data)
    line = _ProgressLine("reading images")
    report = check_data(
        paths.train_json,
        paths.image_root,
        val_json=paths.val_json,
        val_image_root=paths.val_image_root,
        pool=recipe.paste.pool or None,
        read_images=options.read_images,
        progress=lambda done, total: line(done, total, ""),
    )
    print(report)
    if not report.is_usable:
        raise ValueError("a run cannot start with this data; see the errors above")


def _report(options: argparse.Namespace) -> None:
    from bsgal_train.inspect.report import run_report, write_page

    print(write_page(run_report(options.run), options.out or RunFolder(options.run).report))


def _replay(options: argparse.Namespace) -> int:
    from bsgal_train.engine.divergence import fit_for_json
    from bsgal_train.inspect.replay import replay

    _use_threads(options.threads)
    line = _ProgressLine("steps on the way")
    found = replay(options.run, options.step, locations=options.set, progress=line)
    if options.json:
        print(json.dumps(fit_for_json(dataclasses.asdict(found)), indent=2))
    else:
        print(found)
    return int(bool(found.differences))


def _compare(options: argparse.Namespace) -> None:
    from bsgal_train.inspect.compare import compare_runs

    found = compare_runs(options.run_a, options.run_b)
    print(json.dumps(dataclasses.asdict(found), indent=2) if options.json else found)


def _doctor(options: argparse.Namespace) -> int:
    from bsgal_train.machine.doctor import diagnose

    found = diagnose(options.out)
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        print("\n".join(map(str, found)))
    return int(any(one.state == "missing" for one in found))


def _setup_detectron2(options: argparse.Namespace) -> None:
    from bsgal_train.machine.install_detectron2 import install_detectron2

    install_detectron2(options.archive, report=print)


def _demo(options: argparse.Namespace) -> None:
    from bsgal_train.demo.loop import run_demo

    names = [field.name for field in dataclasses.fields(DemoSettings)]
    settings = DemoSettings(**{name: getattr(options, name) for name in names})
    try:
        run_demo(options.out, settings)
    except KeyboardInterrupt as interruption:
        # Training says by itself where it stopped; the other stages do not.
        raise KeyboardInterrupt(
            str(interruption) or "interrupted; the same command goes on where it stopped"
        ) from None


class _ProgressLine:
    """Print how far a job is and how long it will take, at most every few seconds."""

    EVERY_S = 5.0

    def __init__(self, title: str) -> None:
        self._title = title
        self._first: tuple[float, int] | None = None
        self._printed_s = -math.inf

    def __call__(self, done: int, total: int, detail: str) -> None:
        if not _speaks():
            return
        now_s = time.monotonic()
        if self._first is None:
            self._first = now_s, done
        if now_s - self._printed_s < self.EVERY_S and done < total:
            return
        self._printed_s = now_s
        began_s, first_done = self._first
        left = ""
        if done > first_done:
            left_s = (total - done) * (now_s - began_s) / (done - first_done)
            left = f", {left_s / 60:.1f} min left" if left_s > 90 else f", {left_s:.0f} s left"
        print(f"{self._title}: {done}/{total}{left}  {detail}", file=sys.stderr, flush=True)


def _recipe(name: str, options: argparse.Namespace) -> Recipe:
    from bsgal_train.recipe.library import load_recipe

    return load_recipe(name).override(*options.set)


def _use_threads(n_threads: int) -> None:
    if n_threads < 0:
        raise ValueError(f"--threads must be 0 or more, got {n_threads}")
    if n_threads:
        import torch

        torch.set_num_threads(n_threads)
