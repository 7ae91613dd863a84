"""The errors this package raises."""

from __future__ import annotations


class GradientMismatchError(ValueError):
    """Gradients do not fit the cache: unknown name, wrong shape, device or layout."""


class NonFiniteGradientError(ValueError):
    """A reference gradient holds NaN or Inf; the cache was left as it was."""


class OtherProcessError(RuntimeError):
    """Another process of the group raised before anything was exchanged."""


class StateMismatchError(ValueError):
    """A saved state does not belong to the object it is loaded into."""


class ReboundParameterError(RuntimeError):
    """A name is bound to another parameter than when the cache was made."""


class ShardedParameterError(ValueError):
    """A parameter is spread over processes, none of which holds its whole gradient."""


class LiveBatchNormError(ValueError):
    """A BatchNorm normalises by its batch, so that units cannot be told apart."""


class UnsupportedLayerError(ValueError):
    """A parameter is used in a way that ghost scoring does not understand."""


class WrongUnitError(RuntimeError):
    """The rows of a unit do not give the gradient of its own loss."""


class ChangedInputError(RuntimeError):
    """The input of a recorded call was changed in place, so its gradients are lost."""


class ImplementationUnavailableError(RuntimeError):
    """The requested implementation of an operation cannot run here."""
