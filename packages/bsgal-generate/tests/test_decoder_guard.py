from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bsgal_generate import Category, GenerationPlan, ImagePipeline, SamplingConfig
from bsgal_generate._decoder_guard import guarded_decoder
from bsgal_generate._judge import judge


class Decoder(torch.nn.Module):
    """Doubles its input through an intermediate that overflows float16 for large latents."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(60000.0))

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (z * self.scale / self.scale * 2,)


def latents(*values: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@torch.no_grad()
def test_overflow_of_half_precision_is_decoded_again_in_float32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vae = Decoder().half()
    z = latents(0.5, 3.0, float("nan"), dtype=torch.float16)
    assert torch.isinf(vae.decode(z)[0][1]).all()
    with guarded_decoder(SimpleNamespace(vae=vae)) as seen:
        (images,) = vae.decode(z, return_dict=False)
    torch.testing.assert_close(images[:2], 2 * z[:2])
    assert seen.decoded_again == {1}
    assert seen.nonfinite == {2}
    assert vae.scale.dtype == torch.float16
    assert caplog.record_tuples[0][1] == logging.WARNING


@torch.no_grad()
def test_float32_is_only_watched_and_the_decoder_is_given_back() -> None:
    vae = Decoder()
    with guarded_decoder(SimpleNamespace(vae=vae)) as seen:
        vae.decode(latents(0.5, float("inf"), dtype=torch.float32))
    assert (seen.nonfinite, seen.decoded_again) == ({1}, set())
    assert "decode" not in vars(vae)


def test_pipeline_without_a_decoder_is_left_alone() -> None:
    with guarded_decoder(SimpleNamespace()) as seen:
        pass
    assert not seen.nonfinite


def test_infinite_pixels_that_clamping_would_hide_are_nonfinite(stable_diffusion: Any) -> None:
    pipeline = ImagePipeline(stable_diffusion, "spoilt")
    samples = list(GenerationPlan(categories=(Category(1, "a"),), images_per_category=2))
    vae = stable_diffusion.vae
    plain = vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output[0][1, 0, 0, 0] = torch.inf
        return output

    vae.decode = decode
    try:
        drawing = pipeline.draw(samples, SamplingConfig(num_inference_steps=1))
    finally:
        del vae.decode
    assert np.isfinite(drawing.pixels).all()
    assert [judge(drawing, i, 1.0).status for i in range(2)] == ["ok", "nonfinite"]
