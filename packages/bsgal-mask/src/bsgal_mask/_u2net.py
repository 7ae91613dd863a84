"""Salient-object masks from any model file of the U2-Net family, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from bsgal_mask._files import sha256_of
from bsgal_mask._onnx_batch import with_free_batch
from bsgal_mask._segmenter import Image, SoftMask, check_images
from bsgal_mask._u2netp_file import find_u2netp
from bsgal_mask.errors import MissingModelError, SegmentationError

if TYPE_CHECKING:
    import onnxruntime

# The preprocessing of https://github.com/xuebinqin/U-2-Net (data_loader.py, u2net_test.py).
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_SIDE_PX = 320


class U2NetSegmenter:
    """Find the salient object with a U2-Net (Qin et al., 2020): u2netp, u2net, silueta, ...

    Args:
        model_path: The `.onnx` file; None takes u2netp from where `find_u2netp` finds it.
        provider: ONNX Runtime execution provider. One that this machine lacks is an error; there
            is no other one behind it.
        n_threads: CPU threads per operation.
        batch_size: Images per run of the model; bounds its memory. Masks do not depend on it.
        name: The method's name in the manifest, for comparing several model files.

    Raises:
        MissingModelError: ONNX Runtime or the model file is missing.
        ValueError: The provider is not available, or the file is not a U2-Net.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        *,
        provider: str = "CPUExecutionProvider",
        n_threads: int = 2,
        batch_size: int = 4,
        name: str = "u2net",
    ) -> None:
        for argument, value in (("n_threads", n_threads), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{argument}` must be at least 1, got {value}")
        path = find_u2netp(model_path)
        self.name = name
        self.batch_size = batch_size
        self._session = _open_session(path, provider, n_threads)
        self._input, self._output = _single_input_and_first_output(self._session, path)
        self._config = {
            "model": path.name,
            "model_sha256": sha256_of(path),
            "provider": provider,
        }

    def config(self) -> Mapping[str, Any]:
        """Return what decides the masks: the model file and the provider."""
        return self._config

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """See `Segmenter.segment`; the names are ignored."""
        check_images(images, category_names)
        masks: list[SoftMask] = []
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            batch = np.stack([preprocess(image) for image in chunk])
            try:
                (maps,) = self._session.run([self._output], {self._input: batch})
            except _runtime_errors() as error:
                raise SegmentationError(f"ONNX Runtime: {error}") from error
            masks += [
                postprocess(saliency[0], image.shape[:2])
                for saliency, image in zip(maps, chunk, strict=True)
            ]
        return masks


def preprocess(image: Image) -> NDArray[np.float32]:
    """Return the model's input (3, 320, 320) for a uint8 RGB image (H, W, 3)."""
    resolution_wh = _SIDE_PX, _SIDE_PX
    small = PillowImage.fromarray(image).resize(resolution_wh, PillowImage.Resampling.BILINEAR)
    pixels = np.array(small, np.float32)
    # Divided by its own maximum, not by 255, as the model was trained; black stays black.
    pixels /= max(float(pixels.max()), 1.0)
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))


def postprocess(saliency: NDArray[np.float32], image_hw: tuple[int, int]) -> SoftMask:
    """Stretch a saliency map (h, w) to [0, 1] and scale it, still soft, to the image's size.

    A constant map, in which nothing stands out, becomes zero.
    """
    low, high = float(saliency.min()), float(saliency.max())
    if not high > low:
        return np.zeros(image_hw, np.float32)
    stretched = (saliency - low) / (high - low)
    # Shrinking averages and enlarging interpolates; an image may need one along each side.
    height, width = (min(side) for side in zip(image_hw, saliency.shape, strict=True))
    mask = cv2.resize(stretched, (width, height), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask, image_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(mask, 0, 1), np.float32)


def _open_session(path: Path, provider: str, n_threads: int) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingModelError(
            "the method 'u2net' needs ONNX Runtime; install it with "
            "`pip install 'bsgal-mask[u2net]'`"
        ) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ValueError(
            f"`provider` {provider!r} is not available here; available: {', '.join(available)}. "
            "GPU providers come with other builds of ONNX Runtime, such as onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            with_free_batch(path.read_bytes()), options, providers=[provider]
        )
    except _runtime_errors() as error:
        raise ValueError(f"{path}: ONNX Runtime cannot load it ({error})") from error
    if session.get_providers()[0] != provider:
        raise ValueError(
            f"`provider` {provider!r} could not be started; ONNX Runtime would have run on "
            f"{session.get_providers()[0]}. Check the provider's own libraries"
        )
    return session


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: a dozen classes without a common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [
        item
        for item in vars(state).values()
        if isinstance(item, type) and issubclass(item, Exception)
    ]
    return (*own, RuntimeError, ValueError)


def _single_input_and_first_output(
    session: onnxruntime.InferenceSession, path: Path
) -> tuple[str, str]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    fits = len(shape) == 4 and all(
        not isinstance(got, int) or got == wanted
        for got, wanted in zip(shape[1:], (3, _SIDE_PX, _SIDE_PX), strict=True)
    )
    if not fits or len(outputs[0].shape) != 4:
        raise ValueError(
            f"{path} is not a U2-Net: one input (N, 3, {_SIDE_PX}, {_SIDE_PX}) and a first output "
            f"(N, 1, h, w) are required, got {[item.shape for item in inputs]} and "
            f"{[item.shape for item in outputs][:1]}"
        )
    # The first output is the fused map; the others are the side outputs it is made of.
    return inputs[0].name, outputs[0].name
