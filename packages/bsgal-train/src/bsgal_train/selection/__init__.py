"""Which images of a step are trained on: one module per mode."""

from bsgal_train.selection.build import build_selection
from bsgal_train.selection.step import Selected, SelectionStep

__all__ = ["Selected", "SelectionStep", "build_selection"]
