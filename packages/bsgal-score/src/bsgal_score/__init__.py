"""Gradient caches, contributions and verdicts: which generated units are worth training on."""

from importlib.metadata import version

from . import errors, ops
from ._cache import GradientCache
from ._policies import FixedThreshold, LinearSchedule, PerGroup, Policy, QuantileThreshold
from ._verdict import Decision, Verdict

__all__ = [
    "Decision",
    "FixedThreshold",
    "GradientCache",
    "LinearSchedule",
    "PerGroup",
    "Policy",
    "QuantileThreshold",
    "Verdict",
    "__version__",
    "errors",
    "ops",
]

__version__ = version("bsgal-score")
