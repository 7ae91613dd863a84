"""Class-agnostic CenterNet proposals: locations, targets, losses and the network itself."""

from bsgal_train.detector.centernet.generator import CenterNetProposals

__all__ = ["CenterNetProposals"]
