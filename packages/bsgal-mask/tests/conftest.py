from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image, ImageDraw

settings.register_profile("bsgal", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bsgal")
cv2.setNumThreads(1)

SIDE_PX = 96
MakeImageSet = Callable[..., Path]


def draw(shape: str, *, side_px: int = SIDE_PX) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an RGB picture of a shape on a soft, noisy gradient, and the shape's mask."""
    canvas = Image.new("L", (side_px, side_px))
    pen = ImageDraw.Draw(canvas)
    near, far = side_px // 4, side_px - side_px // 4
    if shape == "disc":
        pen.ellipse((near, near, far, far), fill=255)
    elif shape == "ring":
        pen.ellipse((near, near, far, far), fill=255)
        pen.ellipse((near + 12, near + 12, far - 12, far - 12), fill=0)
    elif shape == "two parts":
        pen.rectangle((near, near, near + 14, far), fill=255)
        pen.rectangle((far - 10, near, far, far - 10), fill=255)
    mask = np.asarray(canvas) > 0
    shade = np.linspace(0, 12, side_px)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 1.5, (side_px, side_px, 3))
    picture = np.array([225.0, 225, 215]) + shade + noise
    picture[mask] = np.array([170.0, 40, 50]) + noise[mask]
    return np.clip(picture, 0, 255).astype(np.uint8), mask


@pytest.fixture
def drawn() -> Callable[..., tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    return draw


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def make_image_set(tmp_path: Path) -> MakeImageSet:
    """Return a function that writes an image set from `{sample_id: image, bytes or status}`."""

    def make(
        samples: Mapping[str, NDArray[np.uint8] | bytes | str], root: Path | None = None
    ) -> Path:
        root = tmp_path / "images" if root is None else root
        (root / "images/7").mkdir(parents=True, exist_ok=True)
        (root / "meta.json").write_text(json.dumps({"schema": "bsgal.image_set/1"}))
        with (root / "manifest.jsonl").open("a") as manifest:
            for sample_id, content in samples.items():
                row: dict[str, Any] = {
                    "sample_id": sample_id,
                    "category_id": 7,
                    "category_name": "ball_(toy)",
                    "prompt": "a photo of a single ball",
                    "file": None,
                    "sha256": None,
                    "status": "ok",
                    "reason": None,
                }
                if isinstance(content, str):
                    row |= {"status": content, "reason": "as drawn"}
                else:
                    data = content if isinstance(content, bytes) else png_bytes(content)
                    row["file"] = f"images/7/{sample_id}.png"
                    row["sha256"] = hashlib.sha256(data).hexdigest()
                    (root / row["file"]).write_bytes(data)
                manifest.write(json.dumps(row) + "\n")
        return root

    return make


class StubSegmenter:
    """Answer with a threshold on the red-green difference; fast, and countable."""

    def __init__(self, name: str = "stub", grow_px: int = 0) -> None:
        self.name = name
        self.grow_px = grow_px
        self.n_segmented = 0

    def config(self) -> dict[str, Any]:
        return {"grow_px": self.grow_px}

    def segment(
        self, images: Sequence[NDArray[np.uint8]], category_names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        self.n_segmented += len(images)
        kernel = np.ones((2 * self.grow_px + 1,) * 2, np.uint8)
        red = [image[..., 0].astype(int) - image[..., 1] > 60 for image in images]
        return [cv2.dilate(mask.astype(np.uint8), kernel).astype(np.float32) for mask in red]


@pytest.fixture
def make_stub() -> Callable[..., StubSegmenter]:
    return StubSegmenter


def read_manifest(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def manifest_of() -> Callable[[Path], list[dict[str, Any]]]:
    return read_manifest


def _message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """Encode a protocol-buffers message of small numbers, texts and submessages."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += _varint(number << 3) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += _varint(number << 3 | 2) + _varint(len(content)) + content
    return encoded


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _tensor(name: str, dims: Sequence[int]) -> bytes:
    shape = _message(*((1, _message((1, dim))) for dim in dims))
    return _message((1, name), (2, _message((1, _message((1, 1), (2, shape))))))


@pytest.fixture
def mean_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an ONNX model whose output is the mean over the channels."""

    def write(side_px: int = 320, channels: int = 3) -> Path:
        axes = _message((1, "axes"), (8, 1), (20, 7))
        keep = _message((1, "keepdims"), (3, 1), (20, 2))
        node = _message((1, "x"), (2, "y"), (4, "ReduceMean"), (5, axes), (5, keep))
        graph = _message(
            (1, node),
            (2, "mean"),
            (11, _tensor("x", (1, channels, side_px, side_px))),
            (12, _tensor("y", (1, 1, side_px, side_px))),
        )
        path = tmp_path / f"mean{side_px}-{channels}.onnx"
        path.write_bytes(_message((1, 6), (7, graph), (8, _message((2, 11)))))
        return path

    return write


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIP tokenizer that knows single characters only."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = [*"abcdefghijklmnopqrstuvwxyz()0123456789"]
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


def _clip_settings(tokenizer: Any) -> dict[str, Any]:
    layers = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    return {
        "text_config": layers | text,
        "vision_config": layers | vision,
        "projection_dim": 12,
    }


@pytest.fixture(scope="session")
def clip_folder(clip_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as `save_pretrained` writes it."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(**_clip_settings(clip_tokenizer))).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sides).save_pretrained(folder)
    clip_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clipseg_folder(clip_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPSeg with random weights, as `save_pretrained` writes it."""
    import torch
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clipseg")
    config = CLIPSegConfig(
        **_clip_settings(clip_tokenizer),
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    clip_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM with random weights, as `save_pretrained` writes it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "image_size": 64,
        "patch_size": 8,
        "output_channels": 16,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
    }
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "iou_head_hidden_dim": 8,
    }
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    transformers.SamModel(config).save_pretrained(folder)
    transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    return folder
