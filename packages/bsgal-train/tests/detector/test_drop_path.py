"""Which blocks are skipped in an image is its own: no other image, process or part shares it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bsgal_train.detector import sampling
from bsgal_train.detector.backbone import TimmBackbone

MODELS = {"resnet18": "group", "convnext_atto": "own", "swin_tiny_patch4_window7_224": "own"}


@pytest.fixture(params=MODELS, scope="module")
def backbone(request: pytest.FixtureRequest) -> TimmBackbone:
    torch.manual_seed(0)
    made = TimmBackbone(request.param, MODELS[request.param], drop_path=0.7)
    for name, parameter in made.named_parameters():
        if name.endswith(("bn2.weight", "gamma")):
            # A block that is skipped has to be missed.
            torch.nn.init.constant_(parameter, 1.0)
    return made


def last_features(backbone: TimmBackbone, images: Tensor, keys: Sequence[int] | None) -> Tensor:
    with torch.no_grad(), sampling(5, keys):
        found: Tensor = backbone(images)["res5"]
    return found


def test_other_images_skip_other_blocks(backbone: TimmBackbone) -> None:
    # The same picture in two processes or parts of a step, each the first of its batch.
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    found = [last_features(backbone, image, [key]) for key in (3, 3, 4, 5)]

    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-2)
    assert not torch.allclose(found[2], found[3], rtol=1e-2)


def test_an_image_skips_the_same_blocks_whatever_its_company(backbone: TimmBackbone) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    together = last_features(backbone, images, [7, 8, 9])

    for position, key in enumerate((7, 8, 9)):
        alone = last_features(backbone, images[position : position + 1], [key])
        torch.testing.assert_close(alone[0], together[position], rtol=1e-3, atol=1e-4)


def test_blocks_are_skipped_as_often_as_they_should_be() -> None:
    images = torch.zeros(400, 3, 32, 32)
    backbone = TimmBackbone("resnet18", "group", drop_path=0.7)
    skipped = {}
    for name, module in backbone.named_modules():
        if name.endswith("drop_path"):
            module.register_forward_hook(
                lambda module, _, output: skipped.update(
                    {module.drop_prob: (output.flatten(1) == 0).all(dim=1).float().mean()}
                )
            )
    for name, parameter in backbone.named_parameters():
        if name.endswith("bn2.bias"):
            torch.nn.init.constant_(parameter, 1.0)

    last_features(backbone, images, range(400))

    assert len(skipped) == 7
    for wanted, share in skipped.items():
        # Four standard deviations of a share of 1/2.
        assert float(share) == pytest.approx(wanted, abs=4 * (0.25 / 400) ** 0.5)


def test_without_a_seed_torch_decides(backbone: TimmBackbone) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        backbone(image)

    assert not torch.equal(torch.get_rng_state(), state)
