"""Which images of a step are trained on: one module per mode."""

from bsgal_train.selection.base import Selected, SelectionStep
from bsgal_train.selection.build import build_selection

__all__ = ["Selected", "SelectionStep", "build_selection"]
