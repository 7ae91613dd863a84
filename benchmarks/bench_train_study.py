"""Compare what selection is worth on long-tailed data, with pools that hold planted defects.

Every arm trains on the built-in set from a detector that knows nothing of the rare categories: what
it learns of them, it learns from one to three real images of each and from the pool. Steps, batches
and pasted instances are the same per seed; only what is trained on of them differs. Of a pool a
known part is spoilt, so beside mask AP there is how well an arm finds it. The usual pools are of
drawings: one with the kinds of defect that verdicts are developed with, one with kinds that they
are not (`train_study/kinds.py`). Any pool of built-in categories, all or some, can take their
place, if its `planted.json` maps the id of every spoilt instance to a name of its kind.

Ceilings: `exact_reject` rejects every spoilt instance in the step, as a perfect judge would;
`paste_clean` (`exact_replace`) pastes the pool without them, others in their place. `paste_random`
accepts the share that `class_row` accepted with the same seed. `paste_filtered` and `clip_filtered`
paste a pool without what a salient-object model or CLIP doubts most in each category, as much as is
spoilt. `class_row` is the class-mean filter on the classifier's own row. `evidence_steer` is the
default of `instance`: evidence adds up over looks, rejects, and says what is drawn;
`evidence_reject` draws all alike; `screened` begins with a screening of four looks. `own_loss`,
`prototype` and `mask_loss` do the same by one source alone, `..._once` by one look. Where a mode
costs another time than `paste_all`, measured in turn, `<arm>@wall` repeats it with as many steps as
fit the time of `paste_all`.

`<name>_p_<arm>` are corrected for the number of arms. `defect_recall`, `recall_<kind>` and
`good_lost_<group>` count draws, `instance_...` count instances of the pool by their last verdict.

Each (arm, seed) is a folder in `--state`; a finished one is not run again, and a killed one goes on
from its checkpoint. So several processes may share the work, each with seeds of its own and
`--part`, before one with all seeds writes the result.
"""

from __future__ import annotations

from train_study.command import main
from train_study.tables import tables

__all__ = ["tables"]

ARMS = (
    "none", "paste_all", "paste_clean", "exact_reject", "evidence_steer", "screened",
    "evidence_reject", "own_loss_screened", "prototype_screened", "mask_loss_screened", "own_loss",
    "prototype", "mask_loss", "class_row", "paper", "batch", "paste_filtered", "paste_random",
)  # fmt: skip

if __name__ == "__main__":
    main(
        "train_study",
        ("drawn-development", "drawn-held_back"),
        __doc__,
        arms=ARMS,
        at_equal_time=True,
    )
