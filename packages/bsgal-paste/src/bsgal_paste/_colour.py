"""Change an instance's colours a little."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bsgal_paste._arrays import ByteArray, FloatArray

# Weights of red, green and blue in brightness (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourJitter:
    """Say how far the colours of pasted instances vary.

    The default strengths and probability are those of the option in the released X-Paste and
    BSGAL code, where it is off.
    """

    brightness: float = 0.2
    """Colours times a factor from 1 ± this."""
    contrast: float = 0.2
    """Distance from the object's mean grey times a factor from 1 ± this."""
    saturation: float = 0.2
    """Distance from each pixel's grey times a factor from 1 ± this."""
    hue: float = 0.2
    """Turn of the colour wheel, in turns from ± this, at most 0.5."""
    prob: float = 0.5
    """Probability that an instance is changed at all."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"`hue` must be in [0, 0.5] turns, got {self.hue}")

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Draw `(n, 4)`: factors of brightness, contrast and saturation, and the hue's turn.

        An instance that stays as it is has 1, 1, 1, 0.
        """
        strengths = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        changes = rng.uniform(-1, 1, size=(n, 4)) * strengths
        changes[rng.random(n) >= self.prob] = 0
        return np.asarray(changes + np.array([1.0, 1.0, 1.0, 0.0]))


def change_colours(rgba: ByteArray, change: FloatArray) -> ByteArray:
    """Apply brightness, contrast, saturation and hue, in this order; alpha stays.

    Args:
        rgba: uint8 `(h, w, 4)`, straight alpha.
        change: `(4,)`, a row of `ColourJitter.sample`.

    Returns:
        uint8 `(h, w, 4)`, a new array.
    """
    brightness, contrast, saturation, turn = (np.float32(value) for value in change)
    rgb = rgba[..., :3].astype(np.float32) * brightness
    weight = rgba[..., 3].astype(np.float32)
    grey = rgb @ _LUMA
    mean_grey = float((grey * weight).sum() / max(float(weight.sum()), 1.0))
    rgb = mean_grey + contrast * (rgb - mean_grey)
    grey = (rgb @ _LUMA)[..., None]
    rgb = np.clip(grey + saturation * (rgb - grey), 0, 255)
    if turn:
        hsv = cv2.cvtColor(rgb / np.float32(255), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
    changed = rgba.copy()
    changed[..., :3] = np.rint(rgb)
    return changed
