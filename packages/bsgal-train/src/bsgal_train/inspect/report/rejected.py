"""The instances that a run's evidence speaks against, and what they were held against."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from bsgal_paste import InstancePool
from bsgal_train.annotations.paths import DataPaths
from bsgal_train.inspect.report.content import RejectedInstance, Rejections
from bsgal_train.inspect.report.evidence_words import against
from bsgal_train.inspect.report.pictures import manifest_rows, picture
from bsgal_train.inspect.report.real_objects import real_objects
from bsgal_train.inspect.run_evidence import run_evidence
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.layout import RunFolder

__all__ = ["rejected_by_evidence"]

_N_REAL = 3


def rejected_by_evidence(run: Path, n: int) -> Rejections:
    """Return what a run's evidence rejects, as of its newest checkpoint, the worst first.

    Args:
        run: output folder of a run, finished or not, whose mode is `instance` by evidence.
        n: instances with pictures at most.

    Raises:
        ValueError: if the run keeps no evidence, has no checkpoint that can be read, or its
            annotations or pool are no longer what they were.
        OSError: if annotations or pool are gone.
    """
    table = run_evidence(run)
    recipe = Recipe.load(RunFolder(run).recipe)
    annotations = DataPaths.of(recipe.data).load_training()
    pool = InstancePool.open(recipe.paste.pool).match(annotations.categories)
    rejected = np.flatnonzero(table.verdicts == "reject")
    shown = rejected[np.argsort(table.p_values[rejected], kind="stable")][:n].tolist()
    rows = manifest_rows(Path(recipe.paste.pool), {table.ids[i] for i in shown})

    @cache
    def held_against(class_index: int) -> list[bytes]:
        return real_objects(annotations, class_index, _N_REAL)

    found = []
    for i, category_id in zip(shown, pool.category_ids_of(np.array(shown, np.int64)), strict=True):
        category = annotations.categories[annotations.class_index_of[int(category_id)]]
        name = category.name.replace("_", " ")
        evidence = {one: float(table.evidence[one][i]) for one in recipe.selection.sources}
        found.append(
            RejectedInstance(
                instance_id=table.ids[i],
                category=name,
                frequency=category.frequency,
                prompt=str(rows[table.ids[i]].get("prompt", "")),
                picture_png=picture(pool, table.ids[i]),
                p_value=float(table.p_values[i]),
                n_looks=int(table.looks[i]),
                against=against(evidence, name),
                real_pngs=held_against(category.class_index),
            )
        )
    return Rejections(
        n_instances=len(table.ids),
        n_rejected=len(rejected),
        n_uncertain=int((table.verdicts == "uncertain").sum()),
        shown=found,
    )
