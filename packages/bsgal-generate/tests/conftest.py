from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from bsgal_generate import Category, GenerationPlan

# Torch and diffusers are imported where they are needed, so that tests without them start at once.
if TYPE_CHECKING:
    import torch

    from bsgal_generate import ImagePipeline

settings.register_profile("bsgal", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bsgal")

Fault = Callable[[str, int], str | None]


@dataclass
class StubPipeline:
    """Follows diffusers' calling convention; an image depends on its prompt and generator alone.

    `fault(prompt, seed)` may answer "nan", "blank" or "flag" to spoil an image, and batches larger
    than `fits` run out of memory. With `alpha`, images are RGBA.
    """

    fault: Fault = lambda prompt, seed: None
    fits: int = 1000
    alpha: bool = False
    calls: list[int] = field(default_factory=list)
    components: dict[str, Any] = field(default_factory=dict)
    scheduler: Any = field(default_factory=lambda: SimpleNamespace(config={"steps_offset": 1}))
    device: str = "cpu"
    dtype: str = "torch.float32"

    def set_progress_bar_config(self, *, disable: bool) -> None:
        assert disable

    def __call__(
        self,
        prompt: list[str],
        *,
        generator: list[torch.Generator],
        height: int = 8,
        width: int = 12,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: list[str] | None = None,
        output_type: str = "pil",
        brightness: float = 0.0,
    ) -> SimpleNamespace:
        import torch

        if len(prompt) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        assert output_type == "np"
        assert len(prompt) == len(generator)
        self.calls.append(len(prompt))
        faults = [self.fault(p, g.initial_seed()) for p, g in zip(prompt, generator, strict=True)]
        channels = 4 if self.alpha else 3
        images = [torch.rand(height, width, channels, generator=g).numpy() for g in generator]
        for image, p, fault in zip(images, prompt, faults, strict=True):
            image += sum(map(ord, p)) % 97 / 97
            image /= 2
            image += brightness
            if fault == "nan":
                image[0, 0, 0] = np.nan
            elif fault in ("blank", "flag"):
                image[:] = 0
        flags = [fault == "flag" for fault in faults]
        return SimpleNamespace(images=np.stack(images), nsfw_content_detected=flags)


@pytest.fixture
def make_stub() -> Callable[..., tuple[ImagePipeline, StubPipeline]]:
    def make(**options: Any) -> tuple[ImagePipeline, StubPipeline]:
        from bsgal_generate import ImagePipeline

        stub = StubPipeline(**options)
        return ImagePipeline(stub, "stub"), stub

    return make


@pytest.fixture
def make_plan() -> Callable[..., GenerationPlan]:
    def make(n_categories: int = 3, images_per_category: int = 4, **options: Any) -> GenerationPlan:
        categories = tuple(Category(i, f"thing_{i}") for i in range(1, n_categories + 1))
        return GenerationPlan(
            categories=categories, images_per_category=images_per_category, **options
        )

    return make


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIP tokenizer that knows single characters only."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [f"{c}</w>" for c in characters] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges = folder / "merges.txt"
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


@pytest.fixture(scope="session")
def clip_text_config(clip_tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(clip_tokenizer),
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
        "bos_token_id": clip_tokenizer.bos_token_id,
        "eos_token_id": clip_tokenizer.eos_token_id,
        "pad_token_id": clip_tokenizer.pad_token_id,
    }


@pytest.fixture(scope="session")
def stable_diffusion(clip_tokenizer: Any, clip_text_config: dict[str, Any]) -> Any:
    """A Stable Diffusion pipeline with small random weights; it draws 16 x 16 pixels."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_text_config)).eval(),
        tokenizer=clip_tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def stable_diffusion_folder(
    tmp_path_factory: pytest.TempPathFactory, stable_diffusion: Any
) -> Path:
    folder = tmp_path_factory.mktemp("stable-diffusion")
    stable_diffusion.save_pretrained(folder)
    return folder
