"""Train and evaluate long-tailed instance segmentation with chosen generated instances."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("bsgal-train")
