"""Load models of the transformers library: from a folder, or from a hub at a named revision."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._segmenter import Image
from bsgal_mask.errors import MissingModelError, SegmentationError

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model in evaluation mode on its device, with what prepares its inputs."""

    model: Any
    image_processor: Any
    tokenizer: Any | None
    device: torch.device
    dtype: torch.dtype
    config: Mapping[str, Any]
    """What decides the results, as JSON values."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the model without gradients; running out of memory is a failure of the batch.

        Raises:
            SegmentationError: The device has too little memory.
        """
        import torch

        with torch.inference_mode():
            try:
                yield
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
                raise SegmentationError(
                    f"{self.device} has too little memory ({reason}); a smaller batch needs less"
                ) from error

    def pixel_values(self, images: Sequence[Image]) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return the model's input (N, 3, h, w) for uint8 RGB images, and the processor's notes."""
        # Left to guess, the processors take an image of three rows for one of three channels.
        inputs = self.image_processor(
            images=list(images), input_data_format="channels_last", return_tensors="pt"
        )
        return inputs["pixel_values"].to(self.device, self.dtype), inputs

    def text_features(self, model: Any, texts: Sequence[str]) -> torch.Tensor:
        """Return the projected text features (N, D) of a CLIP model."""
        assert self.tokenizer is not None
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = model.text_model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        ).pooler_output
        features: torch.Tensor = model.text_projection(pooled)
        return features


def load_checkpoint(
    model: str | Path,
    *,
    model_class: str,
    extra: str,
    has_text: bool,
    revision: str | None,
    device: str,
    dtype: str,
) -> Checkpoint:
    """Load a model and its processors; weights are read from safetensors files only.

    Nothing is downloaded unless both a hub id and a revision are given.

    Args:
        model: A folder that `save_pretrained` wrote, or a hub id such as `"owner/name"`.
        model_class: Name of the class in transformers.
        extra: This package's extra that installs what is needed.
        has_text: Whether a tokenizer belongs to the model.
        revision: Commit, tag or branch of a hub id; allows downloading.
        device: A torch device such as `"cpu"` or `"cuda:0"`; never another one instead.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`.

    Raises:
        MissingModelError: torch, transformers or the model is not here; the message says how to
            get it.
        ValueError: The device is not available, or the files hold another kind of model.
    """
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
    except ImportError as error:
        raise MissingModelError(
            f"{model_class} needs torch and transformers; install them with "
            f"`pip install 'bsgal-mask[{extra}]'`"
        ) from error
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    torch_device = _available_device(device)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    is_local = Path(model).is_dir()
    offline = is_local or revision is None
    where: dict[str, Any] = {"local_files_only": offline}
    if not is_local:
        where["revision"] = revision
    try:
        with _quiet_loading(offline):
            loaded, notes = getattr(transformers, model_class).from_pretrained(
                str(model), use_safetensors=True, output_loading_info=True, **where
            )
            _check_whole(notes, f"{model} is not a {model_class}")
            # Code that lies beside the weights is never run.
            safely = {"trust_remote_code": False, **where}
            processor = transformers.AutoImageProcessor.from_pretrained(str(model), **safely)
            tokenizer = (
                transformers.AutoTokenizer.from_pretrained(str(model), **safely)
                if has_text
                else None
            )
    # Damaged files raise whatever their parsers raise; an error of ours is passed on.
    except (OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise MissingModelError(_advice(str(model), is_local, error)) from error
    fingerprint = _weights_sha256(loaded)
    return Checkpoint(
        model=loaded.to(torch_device, torch_dtype).eval().requires_grad_(False),
        image_processor=processor,
        tokenizer=tokenizer,
        device=torch_device,
        dtype=torch_dtype,
        config={
            # A folder may be moved; the weights say what it is.
            "model": Path(model).resolve().name if is_local else str(model),
            "weights_sha256": fingerprint,
            "device": str(torch_device),
            "dtype": dtype,
        },
    )


def resized_logits(logits: torch.Tensor, image_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map (h, w), still logits, at an image's size as float32 (H, W).

    Enlarging interpolates, shrinking averages.
    """
    from torch.nn.functional import interpolate

    resized = interpolate(
        logits[None, None].float(), size=image_hw, mode="bilinear", antialias=True
    )
    return np.asarray(resized[0, 0].numpy(), np.float32)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)


def _available_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    # What a missing device raises depends on the device's kind.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"`device` {name!r} is not available ({reason}); no other device is taken instead"
        ) from error
    return device


@contextmanager
def _quiet_loading(offline: bool) -> Iterator[None]:
    """Hide the bars and remarks of loading; a download keeps its bar.

    Tensors that are missing, which such a remark would be about, are an error here.
    """
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, shows_bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    if offline:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def _check_whole(notes: Mapping[str, Any], fault: str) -> None:
    """Raise `ValueError` if loading left tensors random, as it does for another kind of model."""
    absent = sorted(notes["missing_keys"]) + [str(key) for key in notes["mismatched_keys"]]
    if absent:
        raise ValueError(
            f"{fault}: its weights lack {len(absent)} tensors, the first being {absent[0]}"
        )


def _advice(model: str, is_local: bool, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    if is_local:
        return (
            f"cannot load a model from the folder {model} ({reason}); it must hold config.json, "
            "preprocessor_config.json and *.safetensors, as `save_pretrained` writes them"
        )
    return (
        f"there is no model {model!r} here ({reason}); get it with `hf download {model} --revision "
        "REVISION --local-dir FOLDER` and name FOLDER, or give the revision, which allows the "
        "download"
    )


def _weights_sha256(model: Any) -> str:
    """Return the hexadecimal SHA-256 of all tensors with their names, dtypes and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
