"""Look at all instances of a study's pool, and store what each look showed.

A look pastes an instance into another training image at another place and size. With `--run`, the
looks are those of the steps of a `paste_all` run instead, while the weights move. For the study of
verdicts: rules of evidence can be compared on the file without running the detector again.

    cd benchmarks && python -m train_study.look_dump --state FOLDER --out looks.npz
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from bsgal_score import ClassRowScorer
    from bsgal_train.data import TrainingSample
    from bsgal_train.detector.row_losses import RowLosses
    from bsgal_train.recipe import Recipe
    from bsgal_train.selection.scoring.looks import Looks
    from bsgal_train.selection.step import Selected

_SEED = 0


class LookingStep:
    """Run the losses of `paste_all`, and note all that a look can show of each object.

    Args:
        scorer: the class rows, as mode `instance` has them.
        precision: of the detector.

    Attributes:
        columns: by name, one array per step.
    """

    def __init__(self, scorer: ClassRowScorer, precision: Any) -> None:
        self._scorer = scorer
        self._precision = precision
        self.columns: dict[str, list[Any]] = {}

    def __call__(
        self, detector: nn.Module, samples: Sequence[TrainingSample], step: int, seed: int
    ) -> Selected:
        """Return the losses of the pasted images."""
        from bsgal_train.detector import training_losses
        from bsgal_train.detector.row_losses import recorded
        from bsgal_train.selection.scoring.looks import looks_at, recorded_features
        from bsgal_train.selection.step import Selected

        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        with self._scorer, recorded() as rows, recorded_features(detector) as features:
            losses = training_losses(detector, inputs, self._precision, seed, keys)
            looks = looks_at(rows, features[0], samples)
            self._note(samples, looks, self._class_rows(looks, rows, samples))
        return Selected(losses=losses, statistics={})

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: what was noted is stored at the end."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept nothing."""

    def _class_rows(
        self, looks: Looks, rows: Sequence[RowLosses], samples: Sequence[TrainingSample]
    ) -> list[float]:
        """Score every object, pasted or real, against earlier real ones."""
        import torch

        firsts = np.cumsum([0, *(len(one.pasted) for one in samples)])[:-1]
        calls = [one for one in rows if one.kind == "cls"]
        index = [
            torch.where(
                one.rows.object >= 0,
                torch.from_numpy(firsts)[one.rows.image] + one.rows.object,
                -1,
            )
            for one in calls
        ]
        loss = torch.stack([one.total() for one in calls]).sum()
        found = self._scorer.score(
            loss, index, torch.from_numpy(looks.classes), torch.from_numpy(looks.is_real)
        )
        return [np.nan if one is None else one for one in found]

    def _note(
        self, samples: Sequence[TrainingSample], looks: Looks, class_rows: list[float]
    ) -> None:
        images = [sample.pasted for sample in samples]
        boxes = np.concatenate([one.boxes_xyxy.numpy() for one in images])
        visible = [
            sample.pastes[source].visible_frac if source >= 0 else np.nan
            for sample in samples
            for source in sample.pasted.source.tolist()
        ]
        columns = {
            "id": np.array(looks.ids, dtype=np.str_),
            "class_index": looks.classes.astype(np.int16),
            "is_real": looks.is_real,
            "position": np.repeat([s.position for s in samples], [len(one) for one in images]),
            "feature": looks.features.astype(np.float16),
            **looks.losses,
            "class_row": np.array(class_rows, dtype=np.float32),
            "visible_frac": np.array(visible, dtype=np.float32),
            "area_px": np.concatenate([one.masks.sum(dim=(1, 2)) for one in images]),
            "box_wh": boxes[:, 2:] - boxes[:, :2],
        }
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)


def dump(recipe: Recipe, n_looks: int, n_steps: int) -> dict[str, Any]:
    """Return the columns of all looks.

    Args:
        recipe: of mode `paste_all`.
        n_looks: looks at each instance, forward only.
        n_steps: if above 0, the steps of a run to take the looks from instead.
    """
    from bsgal_train.annotations.paths import DataPaths
    from bsgal_train.data import ClassMatchedReference, RandomCrop
    from bsgal_train.engine.assembly import assemble
    from bsgal_train.engine.optimizer import build_optimizer
    from bsgal_train.engine.step import TrainingSteps, step_seed
    from bsgal_train.engine.update import OptimizerStep
    from bsgal_train.selection.scoring.class_rows import ClassRowScoring
    from bsgal_train.selection.setup import Setup
    from bsgal_train.selection.training_batch import TrainingBatch

    annotations = DataPaths.of(recipe.data).load_training()
    assembly = assemble(recipe, annotations)
    detector = assembly.detector.train()
    crop = RandomCrop(
        crop_px=recipe.data.crop_px,
        scale_range=recipe.data.scale_range,
        flip_prob=recipe.data.flip_prob,
    )
    precision = recipe.detector.precision
    optimizer = build_optimizer(detector, recipe.optimizer)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, precision)
    setup = Setup(
        recipe=recipe.override("selection.mode=instance"),
        detector=detector,
        reference=ClassMatchedReference(annotations, crop),
        update=update,
    )
    scoring = ClassRowScoring(setup)
    nothing = TrainingBatch(detector, (), 0, step_seed(_SEED, 0), precision, "instance")
    scoring.prepare(nothing)
    looking = LookingStep(scoring.recording(), precision)
    if n_steps:
        steps = TrainingSteps(recipe, detector, update, looking, assembly.steps.skipped)
        for number, samples in zip(range(n_steps), assembly.batches(0), strict=False):
            steps.take(samples)
            print(f"step {number + 1} of {n_steps}", flush=True)
    else:
        for number, samples in enumerate(look_batches(recipe, assembly, crop, n_looks)):
            looking(detector, samples, number, step_seed(_SEED, number))
            if number % 20 == 0:
                print(f"batch {number}", flush=True)
    columns = {name: np.concatenate(parts) for name, parts in looking.columns.items()}
    classifier = detector.roi_heads.box_predictor.cls_score
    planted = json.loads((Path(recipe.paste.pool) / "planted.json").read_text(encoding="utf-8"))
    groups = np.array([one.frequency for one in annotations.categories])
    columns |= {
        "group": groups[columns["class_index"]],
        "planted": np.array(
            [
                "" if is_real else planted.get(name, "")
                for name, is_real in zip(columns["id"], columns["is_real"], strict=True)
            ]
        ),
        # Of the start, or of the end of the run.
        "classifier_weight": classifier.weight.detach().numpy(),
        "classifier_bias": classifier.bias.detach().numpy(),
        "category_name": np.array([one.name for one in annotations.categories]),
        "category_group": groups,
    }
    return columns


def look_batches(
    recipe: Recipe, assembly: Any, crop: Any, n_looks: int
) -> Iterable[list[TrainingSample]]:
    """Return batches in which every instance of the pool is pasted `n_looks` times."""
    from bsgal_paste import NormalScale
    from bsgal_train.annotations.derived import scale_statistics
    from bsgal_train.data.look_loader import build_look_loader
    from bsgal_train.data.look_plan import LookPlan

    annotations = assembly.annotations
    statistics = scale_statistics(annotations.path, assembly.annotations_sha256)
    plan = LookPlan(
        len(assembly.pool),
        n_looks,
        # As dense as in training.
        -(-recipe.paste.max_instances // 2),
        annotations.image_indices_of_class,
        _SEED,
    )
    size = recipe.schedule.batch_size
    batches = [
        list(range(first, min(first + size, len(plan)))) for first in range(0, len(plan), size)
    ]
    return build_look_loader(
        annotations,
        crop,
        assembly.pool,
        NormalScale(statistics=statistics),
        plan,
        seed=_SEED,
        batches=batches,
        n_workers=0,
    )


def main() -> None:
    """Run the command line."""
    import torch

    from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
    from bsgal_train.recipe.library import load_recipe
    from train_study.pools import open_pool
    from train_study.start import start_detector

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True, help="folder of data, start and pool")
    parser.add_argument("--out", type=Path, required=True, help="file of the looks (.npz)")
    parser.add_argument("--pool", default="drawn-development", help="as of the study")
    parser.add_argument("--init", help="start of the detector (default: of the study)")
    parser.add_argument("--per-category", type=int, default=30, help="instances (default 30)")
    parser.add_argument("--looks", type=int, default=4, help="at each instance (default 4)")
    parser.add_argument("--run", type=int, default=0, help="steps of a run to look in instead")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ensure_builtin_dataset(arguments.state / "dataset")
    start = arguments.init or start_detector(
        "forgotten", arguments.state, threads=arguments.threads
    )
    pool = open_pool(arguments.pool, arguments.state, arguments.per_category).folder
    recipe = load_recipe("builtin_continue").override(
        f"data.builtin_root={arguments.state / 'dataset'}",
        f"detector.init={start}",
        "optimizer.lr=1e-3",
        f"paste.pool={pool}",
        f"schedule.n_steps={arguments.run or 120}",
        "schedule.batch_size=8",
        f"schedule.seed={_SEED}",
        "selection.mode=paste_all",
    )
    columns = dump(recipe, arguments.looks, arguments.run)
    temporary = arguments.out.with_suffix(".partial.npz")
    np.savez_compressed(temporary, **columns)
    temporary.replace(arguments.out)


if __name__ == "__main__":
    main()
