from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from bsgal_train.detector import build_detector
from bsgal_train.recipe import Recipe
from bsgal_train.selection.evidence import SOURCES, InstanceEvidence
from bsgal_train.selection.scoring.looks import LOSSES, Looks

N_CLASSES = 3
FREQUENCIES = ["r", "c", "f"]


@pytest.fixture
def detector(tiny_recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(tiny_recipe.detector, N_CLASSES)


def looks(
    ids: Sequence[str],
    classes: Sequence[int],
    shown: Sequence[int],
    mask_loss: Sequence[float],
    *,
    is_real: bool,
    rng: np.random.Generator,
) -> Looks:
    """Make looks at objects that show a class, with a loss of their mask."""
    directions = np.eye(32)[:N_CLASSES] * 5
    features = directions[list(shown)] + rng.normal(size=(len(ids), 32)) * 0.5
    losses = dict.fromkeys(LOSSES, np.zeros(len(ids), dtype=np.float32))
    return Looks(
        ids=tuple(ids),
        classes=np.array(classes),
        is_real=np.full(len(ids), is_real),
        features=features.astype(np.float32),
        losses={**losses, "mask_loss": np.array(mask_loss, dtype=np.float32)},
    )


def look_at_real(evidence: InstanceEvidence, rng: np.random.Generator) -> None:
    """Look at 180 real objects in batches."""
    for batch in range(12):
        classes = [k % N_CLASSES for k in range(15)]
        ids = [f"{batch}:{k}" for k in range(15)]
        masks = rng.uniform(0.2, 0.4, size=15).tolist()
        evidence.take(looks(ids, classes, classes, masks, is_real=True, rng=rng))


def test_what_looks_like_no_real_object_is_rejected_and_the_rest_accepted(
    detector: nn.Module,
) -> None:
    rng = np.random.default_rng(0)
    evidence = InstanceEvidence(detector, FREQUENCIES)
    ids = ["good", "of another class", "badly cut out"]
    for _ in range(2):
        look_at_real(evidence, rng)
        evidence.take(looks(ids, [1, 1, 1], [1, 2, 1], [0.3, 0.3, 2.0], is_real=False, rng=rng))
    table = evidence.table([*ids, "never seen"], alpha=0.03, min_looks=2)

    assert table.verdicts.tolist() == ["accept", "reject", "reject", "uncertain"]
    assert set(table.evidence) == {source.name for source in SOURCES}
    assert table.evidence["prototype"][1] > 2 > table.evidence["prototype"][2]
    assert table.evidence["mask_loss"][2] > 2 > table.evidence["mask_loss"][1]


def test_an_object_that_one_source_says_nothing_about_is_judged_by_the_other(
    detector: nn.Module,
) -> None:
    rng = np.random.default_rng(0)
    evidence = InstanceEvidence(detector, FREQUENCIES)
    ids = ["no mask", "no proposal", "nothing"]
    for _ in range(2):
        look_at_real(evidence, rng)
        one = looks(ids, [1, 1, 1], [2, 1, 1], [np.nan, 2.0, np.nan], is_real=False, rng=rng)
        one.features[1:] = np.nan
        evidence.take(one)
    table = evidence.table(ids, alpha=0.03, min_looks=2)

    assert table.verdicts.tolist() == ["reject", "reject", "uncertain"]
    assert table.looks.tolist() == [2, 2, 0]


def test_evidence_goes_on_from_its_state(detector: nn.Module) -> None:
    evidences = [InstanceEvidence(detector, FREQUENCIES) for _ in range(2)]
    first, second = evidences
    look_at_real(first, np.random.default_rng(0))
    second.load_state_dict(first.state_dict())
    for one in evidences:
        rng = np.random.default_rng(1)
        one.take(looks(["a", "b"], [0, 2], [0, 2], [0.3, 0.5], is_real=False, rng=rng))
    tables = [one.table(["a", "b"], alpha=0.03, min_looks=1) for one in evidences]

    assert tables[0].p_values.tolist() == tables[1].p_values.tolist()
    assert np.isfinite(tables[0].p_values).all()
