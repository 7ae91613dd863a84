"""What a run has found out about the instances of its pool."""

from __future__ import annotations

from pathlib import Path

from bsgal_score import EvidenceTable
from bsgal_train.annotations.paths import DataPaths
from bsgal_train.data.pool import open_pool
from bsgal_train.recipe import Recipe
from bsgal_train.recipe.library import load_recipe
from bsgal_train.run_folder.checkpoint import CheckpointFolder
from bsgal_train.run_folder.layout import RunFolder
from bsgal_train.selection.evidence import InstanceEvidence

__all__ = ["run_evidence"]


def run_evidence(run: str | Path) -> EvidenceTable:
    """Return the evidence about every instance of a run's pool, as of its newest checkpoint.

    Args:
        run: output folder of a run, finished or not, whose mode is `instance` by evidence.

    Raises:
        ValueError: if the run keeps no evidence, or has no checkpoint that can be read.
        FileNotFoundError: if it is no folder of a run, or its annotations or pool are gone.
    """
    folder = RunFolder(Path(run))
    if not folder.recipe.is_file():
        raise FileNotFoundError(f"{run} is no output folder of a run: it has no recipe.json")
    recipe: Recipe = load_recipe(str(folder.recipe))
    if recipe.selection.effective_reference != "evidence":
        raise ValueError(
            f"{run} keeps no evidence: it was run with selection.mode={recipe.selection.mode}; "
            "run it with selection.mode=instance, or look at its pool with bsgal-train screen"
        )
    state = CheckpointFolder(folder.checkpoints, keep=recipe.checkpoint.keep).load_newest()
    if state is None:
        raise ValueError(f"{run} has no checkpoint yet; one is written as training goes on")
    annotations = DataPaths.of(recipe.data).load_training()
    pool = open_pool(recipe.paste.pool, annotations)
    stored = state.states["selection"]["scoring"]["evidence"]
    before = recipe.selection.evidence
    evidence = InstanceEvidence(
        InstanceEvidence.width_of(stored),
        [one.frequency for one in annotations.categories],
        recipe.selection,
        EvidenceTable.from_parquet(before) if before else None,
    )
    evidence.load_state_dict(stored)
    return evidence.table([pool.instance_id(position) for position in range(len(pool))])
