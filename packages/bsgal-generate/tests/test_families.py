"""Each family of diffusers' text-to-image pipelines, small and random, loaded from a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsgal_generate import (
    Category,
    GenerationPlan,
    ImagePipeline,
    SamplingConfig,
    generate,
    load_pipeline,
    verify,
)
from bsgal_generate.cli import main

PLAN = GenerationPlan(
    categories=(Category(1, "apple"), Category(2, "bus_(vehicle)")), images_per_category=2
)


def clip_encoder(config: dict[str, Any], *, projected: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**config)).eval()


def t5(width: int = 32) -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).eval(), tokenizer


def autoencoder(latent_channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def build_sdxl(tokenizer: Any, clip: dict[str, Any]) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    return StableDiffusionXLPipeline(
        vae=autoencoder(4),
        text_encoder=clip_encoder(clip, projected=False),
        text_encoder_2=clip_encoder(clip),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=8 * 6 + 32,
            cross_attention_dim=64,
            norm_num_groups=4,
        ),
        scheduler=EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"),
    )


def build_sd3(tokenizer: Any, clip: dict[str, Any]) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    text_encoder_3, tokenizer_3 = t5(64)
    return StableDiffusion3Pipeline(
        vae=autoencoder(4),
        text_encoder=clip_encoder(clip),
        text_encoder_2=clip_encoder(clip),
        text_encoder_3=text_encoder_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=tokenizer_3,
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def build_flux(tokenizer: Any, clip: dict[str, Any]) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    text_encoder_2, tokenizer_2 = t5()
    return FluxPipeline(
        vae=autoencoder(1),
        text_encoder=clip_encoder(clip, projected=False),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def deepfloyd_unet(sample_size: int, in_channels: int, **further: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=sample_size,
        **further,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=in_channels,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=4,
    )


def build_deepfloyd(tokenizer: Any, clip: dict[str, Any]) -> Any:
    from diffusers import DDPMScheduler, IFPipeline

    text_encoder, tokenizer = t5()
    return IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=deepfloyd_unet(16, 3),
        scheduler=DDPMScheduler(
            variance_type="learned_range", thresholding=True, sample_max_value=1.0
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def build_deepfloyd_upscaler() -> Any:
    from diffusers import DDPMScheduler, IFSuperResolutionPipeline

    text_encoder, tokenizer = t5()
    return IFSuperResolutionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=deepfloyd_unet(32, 6, class_embed_type="timestep"),
        scheduler=DDPMScheduler(variance_type="learned_range"),
        image_noising_scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def test_negative_prompt_that_flux_would_pass_over_is_refused(
    clip_tokenizer: Any, clip_text_config: dict[str, Any]
) -> None:
    pipeline = ImagePipeline(build_flux(clip_tokenizer, clip_text_config), "flux")
    plan = GenerationPlan(categories=PLAN.categories, images_per_category=1, negative_prompt="text")
    fast = SamplingConfig(num_inference_steps=1, height=16, width=16)
    with pytest.raises(ValueError, match=r"unless true_cfg_scale is above 1, got 1\.0"):
        pipeline.draw(list(plan), fast)
    guided = replace(fast, pipeline_arguments={"true_cfg_scale": 2.0})
    assert pipeline.draw(list(plan), guided).pixels.shape == (2, 16, 16, 3)


def test_true_guidance_that_flux_would_pass_over_is_refused(
    clip_tokenizer: Any, clip_text_config: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    pipeline = ImagePipeline(build_flux(clip_tokenizer, clip_text_config), "flux")
    guided = SamplingConfig(
        num_inference_steps=1, height=16, width=16, pipeline_arguments={"true_cfg_scale": 4.0}
    )
    with pytest.raises(ValueError, match="ignores true_cfg_scale without a negative prompt"):
        pipeline.draw(list(PLAN), guided)
    plan = replace(PLAN, negative_prompt=" ")
    assert pipeline.draw(list(plan), guided).pixels.shape == (4, 16, 16, 3)


@pytest.mark.parametrize("build", [build_sdxl, build_sd3, build_deepfloyd])
def test_negative_prompt_without_guidance_is_refused(
    build: Callable[[Any, dict[str, Any]], Any],
    clip_tokenizer: Any,
    clip_text_config: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    pipeline = ImagePipeline(build(clip_tokenizer, clip_text_config), "model")
    config = SamplingConfig(num_inference_steps=2, height=16, width=16, guidance_scale=1.0)
    plain, negative = (
        list(GenerationPlan(categories=PLAN.categories, images_per_category=1, negative_prompt=n))
        for n in (None, "text")
    )
    with pytest.raises(ValueError, match=r"unless guidance_scale is above 1, got 1\.0"):
        pipeline.draw(negative, config)
    # What makes the refusal right: the pipeline would draw the same with it, and not with guidance.
    for guidance, counts in ((1.0, False), (5.0, True)):
        arguments = {
            "prompt": [sample.prompt for sample in plain],
            "num_inference_steps": 2, "height": 16, "width": 16,
            "guidance_scale": guidance, "output_type": "np",
        }  # fmt: skip
        first, second = (
            pipeline.pipeline(
                **arguments,
                negative_prompt=negative_prompt,
                generator=[torch.Generator().manual_seed(i) for i in range(2)],
            ).images
            for negative_prompt in (None, ["many words"] * 2)
        )
        assert bool(np.any(first != second)) is counts


@pytest.mark.parametrize("build", [build_sdxl, build_sd3, build_flux, build_deepfloyd])
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_family_loads_draws_and_verifies(
    build: Callable[[Any, dict[str, Any]], Any],
    clip_tokenizer: Any,
    clip_text_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    built = build(clip_tokenizer, clip_text_config)
    built.save_pretrained(tmp_path / "model")
    pipeline = load_pipeline(tmp_path / "model", device="cpu")
    config = SamplingConfig(num_inference_steps=2, height=16, width=16)
    image_set = generate(PLAN, pipeline, tmp_path / "set", config=config, batch_size=3)
    assert image_set.meta["config"]["pipeline"]["class"] == type(built).__name__
    assert [row.status for row in image_set] == ["ok"] * 4
    images = [image_set.read_image(row) for row in image_set]
    assert all(image.shape == (16, 16, 3) for image in images)
    assert not np.array_equal(images[0], images[1])
    assert verify(image_set, pipeline, batch_size=1).largest_difference <= 1


@pytest.fixture
def two_stages(clip_tokenizer: Any, clip_text_config: dict[str, Any], tmp_path: Path) -> list[Path]:
    torch.manual_seed(0)
    folders = [tmp_path / "base", tmp_path / "upscaler"]
    build_deepfloyd(clip_tokenizer, clip_text_config).save_pretrained(folders[0])
    build_deepfloyd_upscaler().save_pretrained(folders[1])
    return folders


FAST_STAGES = SamplingConfig(
    num_inference_steps=2, pipeline_arguments={"upscaler_steps": 2, "noise_level": 100}
)


def test_two_stages_draw_large_images_that_verify(two_stages: list[Path], tmp_path: Path) -> None:
    pipeline = load_pipeline(two_stages[0], upscaler=two_stages[1], device="cpu")
    assert pipeline.pipeline.upscaler.text_encoder is None
    image_set = generate(PLAN, pipeline, tmp_path / "set", config=FAST_STAGES, batch_size=3)
    assert [(row.status, row.height, row.width) for row in image_set] == [("ok", 32, 32)] * 4
    assert image_set.meta["config"]["pipeline"]["upscaler"]["class"] == "IFSuperResolutionPipeline"
    assert image_set.meta["model"]["id"] == f"{two_stages[0]} + {two_stages[1]}"
    assert verify(image_set, pipeline, batch_size=1).largest_difference <= 1
    command = ["verify", str(tmp_path / "set"), "--device", "cpu", "--rows", "2"]
    assert main(command) == 0


def test_upscaler_enlarges_what_the_base_drew(two_stages: list[Path]) -> None:
    torch.manual_seed(0)
    pipeline = load_pipeline(two_stages[0], upscaler=two_stages[1], device="cpu")
    seen: dict[str, Any] = {}
    plain = type(pipeline.pipeline.upscaler).__call__

    class Watched(type(pipeline.pipeline.upscaler)):  # type: ignore[misc]
        def __call__(self, **arguments: Any) -> Any:
            seen.update(arguments)
            return plain(self, **arguments)

    pipeline.pipeline.upscaler.__class__ = Watched
    pipeline.draw(list(PLAN)[:2], FAST_STAGES)
    small = ImagePipeline(pipeline.pipeline.base, "base").draw(
        list(PLAN)[:2], SamplingConfig(num_inference_steps=2)
    )
    given = seen["image"].permute(0, 2, 3, 1).numpy() / 2 + 0.5
    np.testing.assert_allclose(given, small.pixels, atol=1e-6)
    assert (seen["num_inference_steps"], seen["noise_level"]) == (2, 100)


def test_image_that_either_stage_flags_is_flagged(two_stages: list[Path]) -> None:
    pipeline = load_pipeline(two_stages[0], upscaler=two_stages[1], device="cpu")
    stages = (pipeline.pipeline.base, pipeline.pipeline.upscaler)
    for stage, flags in zip(stages, ([True, False, False], [False, True, False]), strict=True):
        stage.run_safety_checker = lambda image, *_, flags=flags: (image, [False] * 3, flags)
    assert pipeline.draw(list(PLAN)[:3], FAST_STAGES).flagged == (True, True, False)
