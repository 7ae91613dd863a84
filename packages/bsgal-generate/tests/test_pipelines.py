from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
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
)
from bsgal_generate.errors import ModelNotFoundError

PLAN = GenerationPlan(
    categories=(Category(1, "apple"), Category(2, "bus_(vehicle)")), images_per_category=3
)
FAST = SamplingConfig(num_inference_steps=2)


@pytest.fixture(scope="module")
def pipeline(stable_diffusion_folder: Path) -> ImagePipeline:
    return load_pipeline(stable_diffusion_folder, device="cpu")


def test_local_folder_loads_and_draws_without_bars(
    stable_diffusion_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = load_pipeline(stable_diffusion_folder, device="cpu")
    image_set = generate(PLAN, pipeline, tmp_path, config=FAST, batch_size=4)
    assert [row.status for row in image_set] == ["ok"] * 6
    images = [image_set.read_image(row) for row in image_set]
    assert all(image.shape == (16, 16, 3) for image in images)
    assert image_set.rows[0].scheduler == "DDIMScheduler"
    assert image_set.rows[0].model == str(stable_diffusion_folder)
    assert len({image.tobytes() for image in images}) == 6
    assert capfd.readouterr() == ("", "")


def test_image_alone_equals_the_one_in_a_batch_up_to_rounding(pipeline: ImagePipeline) -> None:
    samples = list(PLAN)
    together = pipeline.draw(samples, FAST).pixels
    for i, sample in enumerate(samples):
        alone = pipeline.draw([sample], FAST).pixels[0]
        assert np.abs(alone - together[i]).max() < 1 / 255


def test_prompt_decides_the_image(pipeline: ImagePipeline) -> None:
    apple, *_, bus = PLAN
    bus_of_the_same_seed = [bus.__class__(**{**_fields(bus), "seed": apple.seed})]
    first = pipeline.draw([apple], FAST).pixels
    second = pipeline.draw(bus_of_the_same_seed, FAST).pixels
    assert np.abs(first - second).max() > 0


def _fields(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in sample.__slots__}


def test_defaults_come_from_the_pipeline(pipeline: ImagePipeline) -> None:
    assert pipeline.resolve(SamplingConfig()) == (50, 7.5)
    assert pipeline.resolve(SamplingConfig(num_inference_steps=4, guidance_scale=0)) == (4, 0.0)


def test_description_is_json_and_names_dtype_and_scheduler(pipeline: ImagePipeline) -> None:
    description = json.loads(json.dumps(pipeline.describe()))
    assert description["class"] == "StableDiffusionPipeline"
    assert description["dtype"] == "float32"
    assert description["scheduler"]["class"] == "DDIMScheduler"
    assert description["scheduler"]["num_train_timesteps"] == 1000


# Several of diffusers' schedulers hand tensors to NumPy 2 without the `copy` argument it wants.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_scheduler_is_replaced_by_name(stable_diffusion_folder: Path) -> None:
    pipeline = load_pipeline(
        stable_diffusion_folder, device="cpu", scheduler="EulerAncestralDiscreteScheduler"
    )
    assert pipeline.scheduler_name == "EulerAncestralDiscreteScheduler"
    samples = list(PLAN)
    together = pipeline.draw(samples, FAST).pixels
    alone = pipeline.draw(samples[4:5], FAST).pixels[0]
    assert np.abs(alone - together[4]).max() < 1 / 255
    with pytest.raises(ValueError, match="`scheduler` must name a scheduler class"):
        load_pipeline(stable_diffusion_folder, device="cpu", scheduler="UNet2DConditionModel")


def test_sliced_attention_and_compiled_denoiser_draw_the_same_up_to_rounding(
    stable_diffusion_folder: Path, pipeline: ImagePipeline, tmp_path: Path
) -> None:
    plain = pipeline.draw(list(PLAN), FAST).pixels
    other = load_pipeline(
        stable_diffusion_folder, device="cpu", attention_slicing=True, compile_backend="eager"
    )
    assert other.weight_hash == pipeline.weight_hash
    compiled = other.pipeline.unet._compiled_call_impl
    assert compiled is not None
    assert np.abs(other.draw(list(PLAN), FAST).pixels - plain).max() < 1 / 255
    image_set = generate(PLAN, other, tmp_path, config=FAST)
    assert image_set.meta["execution"] == {
        "batch_size": 8, "device": "cpu", "n_workers": 1,
        "attention_slicing": True, "compile_backend": "eager",
    }  # fmt: skip


def test_attention_that_cannot_be_sliced_is_an_error() -> None:
    from bsgal_generate._pipelines import _slice_attention

    with pytest.raises(ValueError, match="SimpleNamespace cannot compute attention in slices"):
        _slice_attention(SimpleNamespace(components={"transformer": torch.nn.Linear(1, 1)}))


def test_dtype_is_given_by_name_and_checked(stable_diffusion_folder: Path) -> None:
    pipeline = load_pipeline(stable_diffusion_folder, device="cpu", dtype="bfloat16")
    assert pipeline.describe()["dtype"] == "bfloat16"
    drawing = pipeline.draw(list(PLAN)[:1], FAST)
    assert drawing.pixels.dtype == np.float32
    with pytest.raises(ValueError, match="`dtype` must be one of float32, float16, bfloat16"):
        load_pipeline(stable_diffusion_folder, device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("device", "capability", "hip", "expected"),
    [
        ("cpu", (9, 0), None, torch.float32),
        ("cuda:0", (9, 0), None, torch.bfloat16),
        ("cuda:0", (8, 0), None, torch.bfloat16),
        ("cuda:0", (7, 5), None, torch.float16),
        ("cuda:0", (0, 0), "6.2", torch.bfloat16),
        ("mps", (9, 0), None, torch.float16),
    ],
)
def test_dtype_is_what_the_device_computes_with(
    device: str,
    capability: tuple[int, int],
    hip: str | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bsgal_generate._pipelines import _resolve_dtype

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert _resolve_dtype(None, torch.device(device)) == expected
    assert _resolve_dtype("float16", torch.device(device)) == torch.float16


def test_weight_hash_is_that_of_the_weights(
    stable_diffusion_folder: Path, pipeline: ImagePipeline, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stable_diffusion_folder, copy)
    again = load_pipeline(copy, device="cpu")
    assert again.weight_hash == pipeline.weight_hash
    with torch.no_grad():
        again.pipeline.unet.conv_in.bias[0] += 1e-3
    changed = ImagePipeline(again.pipeline, "changed")
    assert changed.weight_hash != pipeline.weight_hash


def test_weights_that_are_not_in_memory_cannot_be_hashed() -> None:
    from bsgal_generate._weight_hash import weight_hash

    with pytest.raises(ValueError, match=r"unet\.bias are not in memory"):
        weight_hash({"unet": torch.nn.Linear(2, 2, device="meta")})


def test_safety_checker_gives_a_verdict_instead_of_a_black_image(
    stable_diffusion: Any, tmp_path: Path
) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2.0)
    parts = dict(stable_diffusion.components)
    parts["safety_checker"] = checker.eval()
    parts["feature_extractor"] = CLIPImageProcessor(size=8, crop_size=8)
    pipeline = ImagePipeline(type(stable_diffusion)(**parts), "checked")
    drawing = pipeline.draw(list(PLAN)[:2], FAST)
    assert drawing.flagged == (True, True)
    config = SamplingConfig(num_inference_steps=2, max_redraws=1)
    image_set = generate(PLAN, pipeline, tmp_path, config=config)
    assert {row.status for row in image_set} == {"flagged"}
    assert not list(tmp_path.rglob("*.png"))


def test_settings_a_pipeline_does_not_take_are_refused() -> None:
    class NoNegativePrompt:
        components: dict[str, Any] = {}  # noqa: RUF012

        def set_progress_bar_config(self, *, disable: bool) -> None:
            pass

        def __call__(
            self,
            prompt: list[str],
            num_inference_steps: int = 1,
            guidance_scale: float = 1,
            generator: Any = None,
            output_type: str = "np",
        ) -> None:
            pass

    plan = GenerationPlan(categories=PLAN.categories, images_per_category=1, negative_prompt="text")
    pipeline = ImagePipeline(NoNegativePrompt(), "other")
    with pytest.raises(ValueError, match=r"NoNegativePrompt does not take negative_prompt, width"):
        pipeline.draw(list(plan), SamplingConfig(width=8))


def test_guidance_that_a_pipeline_leaves_open_stays_open(tmp_path: Path) -> None:
    class Open:
        components: dict[str, Any] = {}  # noqa: RUF012
        scheduler = SimpleNamespace(config={})
        device = dtype = "cpu"
        seen: list[Any] = []  # noqa: RUF012

        def set_progress_bar_config(self, *, disable: bool) -> None:
            pass

        def __call__(
            self,
            prompt: list[str],
            generator: Any,
            num_inference_steps: int = 3,
            guidance_scale: float | None = None,
            output_type: str = "pil",
        ) -> Any:
            self.seen.append(guidance_scale)
            images = [torch.rand(4, 4, 3, generator=g).numpy() for g in generator]
            return SimpleNamespace(images=np.stack(images))

    pipeline = ImagePipeline(Open(), "open")
    assert pipeline.resolve(SamplingConfig()) == (3, None)
    image_set = generate(PLAN, pipeline, tmp_path)
    assert {row.guidance_scale for row in image_set} == {None}
    pipeline.draw(list(PLAN)[:1], SamplingConfig(guidance_scale=2))
    assert pipeline.pipeline.seen == [None, 2.0]


def test_number_of_steps_that_nobody_gives_is_an_error(pipeline: ImagePipeline) -> None:
    no_steps = ImagePipeline(pipeline.pipeline, "open", defaults={"num_inference_steps": None})
    with pytest.raises(ValueError, match="no default for num_inference_steps; give one"):
        no_steps.resolve(SamplingConfig())


def test_negative_prompt_is_refused_where_guidance_was_distilled() -> None:
    class Distilled:
        components: dict[str, Any] = {}  # noqa: RUF012
        unet = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=256))

        def set_progress_bar_config(self, *, disable: bool) -> None:
            pass

        def __call__(
            self,
            negative_prompt: Any = None,
            num_inference_steps: int = 1,
            guidance_scale: float = 8.5,
        ) -> None:
            pass

    with pytest.raises(ValueError, match="lcm ignores negative prompts"):
        ImagePipeline(Distilled(), "lcm").check(SamplingConfig(), "text")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "no diffusers pipeline at ./nowhere: the folder has no model_index.json"),
        ("owner/unknown-model", "hf download owner/unknown-model --local-dir FOLDER"),
    ],
)
def test_missing_model_says_how_to_get_it(model: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message.replace(".", r"\.")):
        load_pipeline(model, device="cpu")


def test_incomplete_folder_is_an_error(stable_diffusion_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stable_diffusion_folder, copy)
    shutil.rmtree(copy / "unet")
    with pytest.raises(ModelNotFoundError, match="Its folder is incomplete"):
        load_pipeline(copy, device="cpu")


def test_missing_built_in_pipeline_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = inspect.getmodule(load_pipeline)
    monkeypatch.setattr(module, "tiny_pipeline_path", lambda: tmp_path)
    with pytest.raises(ModelNotFoundError, match="built-in pipeline is missing"):
        load_pipeline("tiny")
