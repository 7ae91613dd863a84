"""The study of `bench_train_study.py` with generated instances, defects of their own included.

The pools are made as a newcomer's: images from the built-in pipeline, objects cut out where they
differ from the border. What that spoils by itself nobody counted, and it passes as good; then as
much is spoilt on purpose as there, or, in the third pool, nothing. An arm costs what it costs
there, so none is repeated at equal time; and arms that lose there against pasting everything are
left out.
"""

from __future__ import annotations

from train_study.command import main
from train_study.tables import tables

__all__ = ["tables"]

ARMS = (
    "none", "paste_all", "paste_clean", "paste_filtered", "paper", "batch", "class_row",
    "paste_random",
)  # fmt: skip

if __name__ == "__main__":
    main(
        "train_study_generated",
        ("generated-development", "generated-held_back", "generated"),
        __doc__,
        arms=ARMS,
        at_equal_time=False,
    )
