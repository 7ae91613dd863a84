from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bsgal_generate import load_pipeline, tiny_pipeline_path

MAX_BYTES = 15_000_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_pipeline_path()


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: list[str], seed: int = 0) -> npt.NDArray[np.float32]:
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    result = pipeline(
        prompts, num_inference_steps=10, guidance_scale=3.0, generator=generators, output_type="np"
    )
    return np.asarray(result.images)


def object_rgb(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean colour of the middle relative to the colour of the frame."""
    frame = np.median(np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3)]), axis=0)
    return np.asarray(image[40:88, 40:88].mean(axis=(0, 1)) / frame)


def test_folder_is_small_and_holds_no_pickles(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    weights = {path.suffix for path in files} - {".json", ".txt", ".md"}
    assert weights == {".safetensors"}


def test_folder_credits_the_drawings_and_names_the_licence(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "OpenMoji" in card
    assert "CC BY-SA 4.0" in card


def test_loads_offline_in_single_precision_without_arguments(pipeline: Any) -> None:
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert part.dtype == torch.float32


def test_tokenizer_files_of_both_generations_agree(folder: Path) -> None:
    new = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    old = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert new["model"]["vocab"] == old
    merges = (folder / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert [tuple(pair) for pair in new["model"]["merges"]] == [tuple(m.split()) for m in merges]


def test_tokenizer_knows_every_character(pipeline: Any) -> None:
    unknown = pipeline.tokenizer.unk_token_id
    ids = pipeline.tokenizer("Ein Zug, 漢字 & 7 µm!", add_special_tokens=False).input_ids
    assert ids
    assert unknown not in ids


def test_images_have_the_stated_size_and_are_finite(pipeline: Any) -> None:
    image = draw(pipeline, ["a photo of a single banana"])[0]
    assert image.shape == (128, 128, 3)
    assert np.isfinite(image).all()
    assert image.std() > 0.05


def test_same_seed_gives_the_same_image(pipeline: Any) -> None:
    prompts = ["a photo of a single umbrella"]
    np.testing.assert_array_equal(draw(pipeline, prompts, 3), draw(pipeline, prompts, 3))


def test_category_in_the_prompt_decides_what_is_drawn(pipeline: Any) -> None:
    green, red = draw(pipeline, ["a photo of a single broccoli", "a photo of a single stop sign"])
    assert np.argmax(object_rgb(green)) == 1
    assert np.argmax(object_rgb(red)) == 0


def test_package_loads_it_under_its_name() -> None:
    assert load_pipeline("tiny", device="cpu").model_id == "tiny"
