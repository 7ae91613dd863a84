"""Time a training step of every selection mode, and measure its memory, against `paste_all`.

One detector and one optimizer take the steps of all modes in turn, on the same images, so that a
machine whose speed drifts slows all of them; each round begins with another mode. What a mode does
only every 16 steps is timed by itself and counted as a sixteenth; what it does once in a run,
before the first step, is not counted. Peak memory is that of a process of its own for each mode:
what it held at most in its first steps, less what it held before the detector was built.

What is measured goes to `--state` at once, a line per round and a file per peak. Run again with the
same folder, the benchmark does only what is missing:

    python benchmarks/bench_train_overhead.py --state DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _harness import require_tests, write_result

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe

REFRESH_EVERY = 16
# Steps 1 and 2 of a run: the first refreshes a class-matched reference, the second does not.
REFRESHING, PLAIN = 1, 2

IN_BATCH = ["selection.mode=instance", "selection.reference=in_batch"]
# Case: overrides of the recipe. The baseline of all ratios is `paste_all`.
MODES: dict[str, list[str]] = {
    "none": ["selection.mode=none"],
    "paste_all": ["selection.mode=paste_all"],
    "paste_random": ["selection.mode=paste_random"],
    "instance": ["selection.mode=instance"],
    "in_batch": [*IN_BATCH, "selection.threshold=0"],
    "in_batch_dot": [*IN_BATCH, "selection.form=dot"],
    "in_batch_step": [*IN_BATCH, "selection.form=step"],
    "in_batch_heads": [*IN_BATCH, "selection.layers=heads", "selection.threshold=0"],
    "hybrid": [
        "selection.mode=instance",
        "selection.reference=hybrid",
        f"selection.refresh_every={REFRESH_EVERY}",
        "selection.threshold=0",
    ],
    "image": ["selection.mode=image"],
    "batch": ["selection.mode=batch", f"selection.refresh_every={REFRESH_EVERY}"],
    "batch_rejecting": [
        "selection.mode=batch",
        f"selection.refresh_every={REFRESH_EVERY}",
        "selection.threshold=1",
    ],
    "paper": ["selection.mode=paper"],
}
QUICK_MODES = ("none", "paste_all", "instance", "hybrid")
BASE = "paste_all"
REFRESHED = ("hybrid", "batch", "batch_rejecting")

# Detector: overrides of the recipe `builtin_continue`.
R18 = [
    "detector.init=random",
    "detector.backbone_channels=[]",
    "detector.fpn_channels=128",
    "detector.head_channels=128",
    "detector.box_features=512",
    "data.crop_px=256",
    "schedule.batch_size=4",
]
R50 = [
    "detector.init=random",
    "detector.backbone=resnet50",
    "detector.backbone_channels=[]",
    "detector.fpn_channels=256",
    "detector.head_channels=256",
    "detector.n_mask_convs=4",
    "detector.box_features=1024",
    "detector.rois_per_image=128",
    "data.crop_px=256",
    "schedule.batch_size=2",
]
DETECTORS: dict[str, list[str]] = {
    "mask_rcnn_r18": R18,
    "mask_rcnn_r50": R50,
    "centernet2_r18": [*R18, "detector.architecture=centernet2"],
    "centernet2_r50": [*R50, "detector.architecture=centernet2"],
}


def main() -> None:
    """Time and measure every mode on every detector, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one small detector, four modes, two rounds"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--state", type=Path, help="folder of what is measured already")
    parser.add_argument("--part", action="store_true", help="fill the state folder, no result")
    parser.add_argument("--peak-of", nargs=2, metavar=("DETECTOR", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        detector, mode = arguments.peak_of
        print(peak_bytes(detector, mode, arguments.state, arguments.threads, arguments.quick))
        return
    if not arguments.quick:
        require_tests("packages/bsgal-train/tests/selection")
    with tempfile.TemporaryDirectory() as temporary:
        state = Path(temporary) if arguments.quick or not arguments.state else arguments.state
        check_settings(state, arguments.threads)
        detectors = ["mask_rcnn_r18"] if arguments.quick else arguments.detectors
        rounds = 2 if arguments.quick else arguments.rounds
        rows = [
            row
            for detector in detectors
            for row in measure(detector, state, rounds, arguments.threads, arguments.quick)
        ]
    if arguments.part:
        return
    headline: dict[str, float | int | str] = {}
    for row in rows:
        if row["mode"] != BASE:
            headline[f"{row['mode']}_over_{BASE}_{row['detector']}"] = row["over_paste_all"]
            headline[f"{row['mode']}_peak_over_{BASE}_{row['detector']}"] = row[
                "peak_over_paste_all"
            ]
    if arguments.quick:
        print(json.dumps(headline, indent=1))
        return
    write_result(
        "train_overhead",
        rows=rows,
        headline=headline,
        libraries=("torch", "torchvision", "timm", "bsgal-train", "bsgal-score"),
    )


def check_settings(state: Path, threads: int) -> None:
    """Stop if the folder holds measurements of other cases; note what its cases are."""
    settings = json.dumps({"threads": threads, "modes": MODES, "detectors": DETECTORS}, indent=1)
    path = state / "settings.json"
    state.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(settings)
    elif path.read_text() != settings:
        raise SystemExit(f"{state} holds measurements of other cases; take an empty folder")


def measure(
    detector: str, state: Path, rounds: int, threads: int, quick: bool
) -> list[dict[str, Any]]:
    """Return one row per mode on one detector, and do what is missing for it."""
    modes = list(QUICK_MODES) if quick else list(MODES)
    timed = time_rounds(detector, modes, state, rounds, threads, quick)
    peaks = {
        mode: peak_in_process(detector, mode, state, threads, quick)
        for mode in dict.fromkeys([BASE, *modes])
    }
    rows: list[dict[str, Any]] = []
    for mode in modes:
        rounds_s = [seconds_of_step(mode, one) for one in timed]
        # Rounds are compared within themselves: what slows a round slows all of its cases.
        ratios = sorted(own / one[BASE] for own, one in zip(rounds_s, timed, strict=True))
        last = len(ratios) - 1
        rows.append(
            {
                "detector": detector,
                "mode": mode,
                "step_s": round(statistics.median(rounds_s), 4),
                "n_rounds": len(ratios),
                "over_paste_all": round(statistics.median(ratios), 3),
                "over_paste_all_q20": round(ratios[round(0.2 * last)], 3),
                "over_paste_all_q80": round(ratios[round(0.8 * last)], 3),
                "peak_bytes": peaks[mode],
                "peak_over_paste_all": round(peaks[mode] / peaks[BASE], 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def seconds_of_step(mode: str, timed: dict[str, float]) -> float:
    """Return the mean time of a mode's steps, of which a sixteenth may refresh a reference."""
    if mode not in REFRESHED:
        return timed[mode]
    return timed[mode] + (timed[f"{mode}, refreshing"] - timed[mode]) / REFRESH_EVERY


def time_rounds(
    detector: str, modes: list[str], state: Path, rounds: int, threads: int, quick: bool
) -> list[dict[str, float]]:
    """Return the seconds of every case of so many rounds, those of earlier runs first."""
    path = state / f"rounds_{detector}.jsonl"
    # A run that was stopped may have left half a line.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found: list[dict[str, float]] = [json.loads(line) for line in lines if line.endswith("\n")]
    path.write_text("".join(line for line in lines if line.endswith("\n")))
    if len(found) >= rounds:
        return found
    steps = build_steps(detector, modes, state, threads, quick)
    cases: dict[str, Callable[[], None]] = {}
    for mode, step in steps.items():
        cases[mode] = partial(step, PLAIN)
        if mode in REFRESHED:
            cases[f"{mode}, refreshing"] = partial(step, REFRESHING)
    # The first steps give Adam its moments and every cache a gradient, and warm everything up.
    for step in steps.values():
        step(REFRESHING)
    while len(found) < rounds:
        names = list(cases)
        begin = len(found) * 4 % len(names)
        timed = {}
        for name in names[begin:] + names[:begin]:
            start = time.perf_counter()
            cases[name]()
            timed[name] = time.perf_counter() - start
        found.append(timed)
        with path.open("a") as file:
            file.write(json.dumps(timed) + "\n")
    return found


def recipe_of(detector: str, mode: str, state: Path, quick: bool) -> Recipe:
    """Return the recipe of one case; data and pool are made on first use."""
    from sprite_pool import write_sprite_pool

    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
    from bsgal_train.recipe.library import load_recipe

    ensure_builtin_dataset(state / "dataset")
    pool = write_sprite_pool(state / "sprites", per_category=4)
    small = ["data.crop_px=128", "schedule.batch_size=2"] if quick else []
    return load_recipe("builtin_continue").override(
        f"data.builtin_root={state / 'dataset'}",
        f"paste.pool={pool}",
        *DETECTORS[detector],
        *small,
        *MODES[mode],
    )


def build_steps(
    detector_name: str, modes: list[str], state: Path, threads: int, quick: bool
) -> dict[str, Callable[[int], None]]:
    """Return for each mode a training step that takes the step's number."""
    import torch

    from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
    from bsgal_train.data import ClassMatchedReference, RandomCrop, TrainingMapper
    from bsgal_train.detector import build_detector
    from bsgal_train.engine.optimizer import build_optimizer
    from bsgal_train.engine.update import OptimizerStep
    from bsgal_train.selection import build_selection

    torch.set_num_threads(threads)
    recipes = {mode: recipe_of(detector_name, mode, state, quick) for mode in modes}
    common = next(iter(recipes.values()))
    dataset = ensure_builtin_dataset(common.data.builtin_root)
    annotations = LvisAnnotations.load(dataset.train_json, dataset.image_root)
    crop = RandomCrop(crop_px=common.data.crop_px)
    pool = InstancePool.open(state / "sprites").match(annotations.categories)
    paste = CopyPaste(
        pool,
        CategoryBalancedSampler(pool, count_range=(2, 5)),
        UniformScale(scale_range=(0.15, 0.4)),
    )
    mapper = TrainingMapper(annotations, crop, seed=0, copy_paste=paste)
    batch = [mapper(position, position) for position in range(common.schedule.batch_size)]
    torch.manual_seed(0)
    detector = build_detector(common.detector, len(annotations.categories)).train()
    optimizer = build_optimizer(detector, common.optimizer)
    update = OptimizerStep(detector, optimizer, common.optimizer, common.detector.precision)
    reference = ClassMatchedReference(annotations, crop)

    def step(selection: Any, number: int) -> None:
        selected = selection(detector, batch, number, 7)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(selected.losses.values())).sum())
        update.clip()
        update.apply()

    return {
        mode: partial(step, build_selection(recipe, detector, reference, update))
        for mode, recipe in recipes.items()
    }


def peak_in_process(detector: str, mode: str, state: Path, threads: int, quick: bool) -> int:
    """Return the peak memory of one mode, measured in a new process."""
    path = state / f"peak_{detector}_{mode}.txt"
    if not path.exists():
        command = [sys.executable, __file__, "--peak-of", detector, mode, "--state", str(state)]
        command += ["--threads", str(threads), *(["--quick"] if quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(done.stdout.split()[-1])
        temporary.replace(path)
    return int(path.read_text())


def peak_bytes(detector: str, mode: str, state: Path, threads: int, quick: bool) -> int:
    """Take steps in this process, and return by how much its memory rose at most."""
    import bsgal_train.selection  # noqa: F401 - its libraries are not part of what is measured

    recipe_of(detector, mode, state, quick)
    before = memory_bytes("VmRSS")
    step = build_steps(detector, [mode], state, threads, quick)[mode]
    # From the second step on the optimizer has its moments.
    for number in (REFRESHING, PLAIN, *((REFRESHING,) if mode in REFRESHED else ())):
        step(number)
    return memory_bytes("VmHWM") - before


def memory_bytes(name: str) -> int:
    """Return a line of this process's memory status, in bytes; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table: ratios to `paste_all` of time, with its spread, and of memory."""
    detectors = list(dict.fromkeys(row["detector"] for row in result["rows"]))
    by_case = {(row["detector"], row["mode"]): row for row in result["rows"]}
    lines = [
        "| `selection.mode` | " + " | ".join(f"{name}: time, memory" for name in detectors) + " |",
        "|---" * (len(detectors) + 1) + "|",
    ]
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        rows = [by_case[detector, mode] for detector in detectors]
        cells = [
            f"{r['over_paste_all']:.2f} ({r['over_paste_all_q20']:.2f} to "
            f"{r['over_paste_all_q80']:.2f}), {r['peak_over_paste_all']:.2f}"
            for r in rows
        ]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    base = [by_case[detector, BASE] for detector in detectors]
    absolute = [f"{r['step_s']:.2f} s, {r['peak_bytes'] / 2**30:.2f} GiB" for r in base]
    lines.append(f"| ({BASE}, absolute) | " + " | ".join(absolute) + " |")
    return {"ratios": "\n".join(lines) + "\n"}


if __name__ == "__main__":
    main()
