"""Judge real objects as if they were instances of a pool: how many are rejected, by group?

The level `selection.alpha` promises that at most about this share would be. The shipped detector
looks at objects of the built-in data in random crops, forward only and with nothing pasted. The
judged ones enter the evidence as a pool's instances do, the others as real objects:

- `training`: objects of the validation images, held against those of the training images. This is
  what a run or a screening does.
- `held_out`: objects of one half of the validation images, held against those of the other half,
  and the other way round: the detector has learnt from neither.
- `learnt`: the same with halves of the training images: the detector has learnt from both.

Training images take turns between the classes, as they do in a screening. Objects with fewer looks
than `selection.min_looks` are uncertain and not counted. Intervals are exact binomial ones of 95 %;
as objects of one image are judged together, they are somewhat too narrow.

    python benchmarks/bench_train_false_rejections.py --data FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _harness import require_tests, write_result

if TYPE_CHECKING:
    from torch import nn

    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.data import TrainingMapper
    from bsgal_train.recipe import Recipe
    from bsgal_train.selection.scoring.looks import Looks

ALPHAS = (0.03, 0.04, 0.05, 0.1)
DEFAULT = "prototype, outline"
SOURCES = (DEFAULT, "prototype", "real_prototype", "outline")
REFERENCES = ("training", "held_out", "learnt")
TABLED_ALPHA = 0.04
SPLIT_OF = {"held_out": "validation", "learnt": "training"}
_IMAGES_PER_BATCH = 4
_VISITS = 4
_SEED = 0


def looks_at_images(
    detector: nn.Module, mapper: TrainingMapper, image_indices: Sequence[int], first_position: int
) -> Iterator[Looks]:
    """Yield the looks at all objects in a random crop of each image, batch by batch."""
    import torch

    from bsgal_train.detector import training_losses
    from bsgal_train.detector.row_losses import recorded
    from bsgal_train.engine.step import step_seed
    from bsgal_train.selection.scoring.looks import looks_at, recorded_features
    from bsgal_train.selection.steady import steady_backbone

    places = list(enumerate(image_indices, first_position))
    for start in range(0, len(places), _IMAGES_PER_BATCH):
        batch = places[start : start + _IMAGES_PER_BATCH]
        samples = [mapper(position, index) for position, index in batch]
        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        with (
            torch.no_grad(),
            steady_backbone(detector),
            recorded() as rows,
            recorded_features(detector) as features,
        ):
            training_losses(detector, inputs, "fp32", step_seed(_SEED, batch[0][0]), keys)
        yield looks_at(rows, features[0], samples)


def all_looks(
    recipe: Recipe, training: LvisAnnotations, validation: LvisAnnotations, n_looks: int
) -> Iterator[tuple[str, Looks]]:
    """Yield looks and what they are at, `training` or `validation`, in turn."""
    from bsgal_train.data import TrainingMapper
    from bsgal_train.data.look_plan import LookPlan
    from bsgal_train.engine.assembly import assemble, training_crop

    detector = assemble(recipe, training).detector.train()
    crop = training_crop(recipe.data)
    n_judged = len(validation.images)
    plan = LookPlan(
        n_judged, n_looks, 1, training.image_indices_of_class, n_visits=_VISITS, seed=_SEED
    )
    shown = [plan.image_index(position) for position in range(len(plan))]
    of_training = TrainingMapper(training, crop, seed=_SEED)
    of_validation = TrainingMapper(validation, crop, seed=_SEED + 1)
    n_before = len(shown) - n_looks * n_judged
    for looks in looks_at_images(detector, of_training, shown[:n_before], 0):
        yield "training", looks
    rng = np.random.default_rng(_SEED)
    judged = [index for _ in range(n_looks) for index in rng.permutation(n_judged).tolist()]
    beside = looks_at_images(detector, of_training, shown[n_before:], n_before)
    for looks in looks_at_images(detector, of_validation, judged, 0):
        yield "training", next(beside)
        yield "validation", looks


def parts_of(
    seen: Sequence[tuple[str, Looks]], reference: str
) -> Iterator[list[tuple[Looks, np.ndarray]]]:
    """Yield, fold by fold, the looks that count, and which of them are at real objects."""
    if reference == "training":
        yield [(looks, np.full(len(looks), split == "training")) for split, looks in seen]
        return
    chosen = [looks for split, looks in seen if split == SPLIT_OF[reference]]
    for side in range(2):
        yield [(looks, np.array([_half(name) == side for name in looks.ids])) for looks in chosen]


def _half(object_id: str) -> int:
    """Return on which side an object's image is, by lot."""
    return int(np.random.default_rng(int(object_id.split(":")[0])).integers(2))


def judged(
    seen: Sequence[tuple[str, Looks]], reference: str, config: Any, frequencies: Sequence[str]
) -> list[tuple[str, float, bool]]:
    """Return frequency group, p-value and whether it is certain, of every judged object."""
    from bsgal_train.selection.evidence import InstanceEvidence

    found = []
    for part in parts_of(seen, reference):
        evidence = InstanceEvidence(part[0][0].features.shape[1], frequencies, config)
        group_of: dict[str, str] = {}
        for looks, is_real in part:
            ids = tuple(
                name if real else f"judged {name}"
                for name, real in zip(looks.ids, is_real.tolist(), strict=True)
            )
            evidence.take(dataclasses.replace(looks, ids=ids, is_real=is_real), is_shared=True)
            for name, index, real in zip(ids, looks.classes.tolist(), is_real, strict=True):
                if not real:
                    group_of[name] = frequencies[index]
        table = evidence.table(list(group_of))
        is_certain = table.looks >= config.min_looks
        found += zip(group_of.values(), table.p_values.tolist(), is_certain.tolist(), strict=True)
    return found


def rows_of(
    objects: Sequence[tuple[str, float, bool]], reference: str, sources: str
) -> list[dict[str, Any]]:
    """Return a row for every level and frequency group."""
    from scipy.stats import binomtest

    rows = []
    for alpha, group in itertools.product(ALPHAS, "rcf"):
        own = [one for one in objects if one[0] == group]
        p_values = np.array([p_value for _, p_value, is_certain in own if is_certain])
        n_rejected = int((p_values <= alpha).sum())
        interval = binomtest(n_rejected, len(p_values)).proportion_ci(0.95, method="exact")
        rows.append(
            {
                "reference": reference, "sources": sources, "alpha": alpha, "group": group,
                "n": len(p_values), "n_uncertain": len(own) - len(p_values),
                "n_rejected": n_rejected, "rate": round(n_rejected / len(p_values), 4),
                "low": round(interval.low, 4), "high": round(interval.high, 4),
            }
        )  # fmt: skip
    return rows


def headline_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the rates at the default level with the default sources."""
    return {
        f"{row['reference']}_{row['group']}": row["rate"]
        for row in rows
        if row["sources"] == DEFAULT and row["alpha"] == TABLED_ALPHA
    }


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of levels and of sources."""
    rows = result["rows"]
    of_default = [row for row in rows if row["sources"] == DEFAULT]
    of_level = [row for row in rows if row["alpha"] == TABLED_ALPHA]
    return {
        "levels": _table(of_default, "alpha"),
        "sources": _table(of_level, "sources"),
    }


def _table(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    lines = [
        f"| reference | {by} | rejected: r | c | f |",
        "|---|---|---|---|---|",
    ]
    for (reference, value), three in itertools.groupby(
        rows, key=lambda row: (row["reference"], row[by])
    ):
        cells = [
            f"{row['rate']:.3f} ({row['low']:.3f} to {row['high']:.3f}), n = {row['n']}"
            for row in three
        ]
        lines.append(f"| `{reference}` | {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    import torch

    from bsgal_train.annotations.paths import DataPaths
    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
    from bsgal_train.recipe import SelectionConfig
    from bsgal_train.recipe.library import load_recipe

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the built-in data set, kept")
    parser.add_argument("--looks", type=int, default=4, help="at each image (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--out", type=Path, help="file of the result (default: of the repository)")
    arguments = parser.parse_args()
    require_tests("packages/bsgal-train/tests/selection/test_evidence.py")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or Path(scratch) / "dataset"
        ensure_builtin_dataset(root)
        recipe = load_recipe("builtin_continue").override(
            f"data.builtin_root={root}", "selection.mode=none"
        )
        paths = DataPaths.of(recipe.data)
        training, validation = paths.load_training(), paths.load_validation()
        assert validation is not None, "the built-in set has validation images"
        seen = list(all_looks(recipe, training, validation, arguments.looks))
    frequencies = [one.frequency for one in training.categories]
    rows: list[dict[str, Any]] = []
    for reference, sources in itertools.product(REFERENCES, SOURCES):
        config = SelectionConfig(mode="instance", sources=tuple(sources.split(", ")))
        rows += rows_of(judged(seen, reference, config, frequencies), reference, sources)
    for row in rows:
        row["looks"] = arguments.looks
    write_result(
        "train_false_rejections", rows=rows, headline=headline_of(rows),
        libraries=("torch", "numpy", "scipy"), path=arguments.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
