"""The frame of a chart: from values to places in an inline SVG, with grid lines and labels."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A drawing area with linear axes, in SVG units.

    Attributes:
        x_range: values at the left and the right edge.
        y_range: values at the bottom and the top.
        width_px: of the whole drawing.
        height_px: of the whole drawing.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width_px: int = 720
    height_px: int = 220
    left_px: int = 48
    right_px: int = 12
    top_px: int = 12
    bottom_px: int = 28

    def x_px(self, value: float) -> float:
        """Place a value on the horizontal axis."""
        low, high = self.x_range
        return self.left_px + (value - low) / (high - low) * (
            self.width_px - self.left_px - self.right_px
        )

    def y_px(self, value: float) -> float:
        """Place a value on the vertical axis."""
        low, high = self.y_range
        return self.top_px + (high - value) / (high - low) * (
            self.height_px - self.top_px - self.bottom_px
        )

    def opening(self, label: str) -> str:
        """Start the drawing; `label` describes it to those who cannot see it."""
        return (
            f'<svg viewBox="0 0 {self.width_px} {self.height_px}" role="img" '
            f"aria-label={quoteattr(label)}>"
        )

    def grid_line(self, value: float, text: str) -> str:
        """Draw a horizontal line at a value, labelled at the left."""
        y = self.y_px(value)
        return (
            f'<line class="grid" x1="{self.left_px}" x2="{self.width_px - self.right_px}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{self.left_px - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )

    def x_label(self, value: float, text: str, anchor: str) -> str:
        """Write below the axis."""
        return (
            f'<text x="{self.x_px(value):.1f}" y="{self.height_px - 8}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )
