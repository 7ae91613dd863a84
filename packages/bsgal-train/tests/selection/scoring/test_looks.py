from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bsgal_train.data import NOT_ANNOTATED, TrainingSample
from bsgal_train.detector import build_detector, training_losses
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.recipe import Recipe
from bsgal_train.selection.scoring.looks import LOSSES, Looks, looks_at, recorded_features

SEED = 7


def look(detector: Any, samples: Sequence[TrainingSample]) -> tuple[Looks, list[RowLosses], Tensor]:
    with torch.no_grad(), recorded() as rows, recorded_features(detector) as features:
        keys = [sample.position for sample in samples]
        training_losses(detector, [one.pasted for one in samples], "fp32", SEED, keys)
    assert len(features) == 1
    return looks_at(rows, features[0], samples), rows, features[0]


@pytest.fixture(params=["mask_rcnn", "centernet2"])
def detector(request: pytest.FixtureRequest, tiny_recipe: Recipe) -> Any:
    torch.manual_seed(0)
    recipe = tiny_recipe.override(f"detector.architecture={request.param}")
    return build_detector(recipe.detector, n_classes=3)


def test_a_look_is_the_mean_over_the_rows_of_an_object(
    detector: Any, samples: list[TrainingSample]
) -> None:
    looks, rows, features = look(detector, samples)

    inputs = [sample.pasted for sample in samples]
    objects = [(image, place) for image, one in enumerate(inputs) for place in range(len(one))]
    assert len(looks) == len(objects) > len(inputs)
    for k, (image, place) in enumerate(objects):
        own: dict[str, list[float]] = {name: [] for name in LOSSES}
        own_features: list[Any] = []
        first = True
        for one in rows:
            if one.kind == "proposal":
                continue
            matched = (one.rows.image == image) & (one.rows.object == place)
            own[f"{one.kind}_loss"] += one.per_row[matched].tolist()
            if one.kind == "mask":
                assert one.hardest is not None
                own["mask_hardest"] += one.hardest[matched].tolist()
            if one.kind == "cls" and first:
                own_features = features[matched].numpy()
                first = False
        for name in LOSSES:
            wanted = np.mean(own[name]) if own[name] else np.nan
            assert looks.losses[name][k] == pytest.approx(wanted, rel=1e-4, nan_ok=True)
        wanted = np.mean(own_features, axis=0) if len(own_features) else np.nan
        np.testing.assert_allclose(looks.features[k], wanted, rtol=1e-4, atol=1e-5)
    assert np.isfinite(looks.features).all(axis=1).sum() > len(inputs)


def test_looks_name_what_was_looked_at(detector: Any, samples: list[TrainingSample]) -> None:
    looks, _, _ = look(detector, samples)

    pasted = [paste for sample in samples for paste in sample.pastes]
    assert not looks.is_real.all()
    assert sorted(np.array(looks.ids)[~looks.is_real]) == sorted(p.instance_id for p in pasted)
    for name, class_index in zip(looks.ids, looks.classes, strict=True):
        found = {paste.class_index for paste in pasted if paste.instance_id == name}
        assert found <= {class_index}
    assert np.array(looks.ids)[looks.is_real].tolist() == [
        f"{sample.pasted.image_id}:{annotation_id}"
        for sample in samples
        for annotation_id in sample.pasted.annotation_ids.tolist()
        if annotation_id != NOT_ANNOTATED
    ]


def test_an_object_without_rows_has_no_values(detector: Any, samples: list[TrainingSample]) -> None:
    _, rows, features = look(detector, samples)
    without = [
        dataclasses.replace(
            one,
            rows=dataclasses.replace(
                one.rows, object=torch.where(one.rows.object == 0, -1, one.rows.object)
            ),
        )
        for one in rows
    ]
    looks = looks_at(without, features, samples)

    second = len(samples[0].pasted)
    for values in (looks.features, *looks.losses.values()):
        assert np.isnan(values[[0, second]]).all()
        assert np.isfinite(values[1]).all()


def test_a_batch_without_objects_has_no_looks(detector: Any, samples: list[TrainingSample]) -> None:
    nothing = samples[0].original.only(slice(0))
    looks, _, _ = look(detector, [TrainingSample(0, nothing, nothing, ())])

    assert len(looks) == 0
    assert looks.features.shape[0] == 0


def test_features_of_another_pass_are_refused(detector: Any, samples: list[TrainingSample]) -> None:
    _, rows, features = look(detector, samples)

    with pytest.raises(ValueError, match="record both in the same pass"):
        looks_at(rows, features[1:], samples)
