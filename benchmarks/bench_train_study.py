"""Compare the selection modes on long-tailed data with a pool that holds planted defects.

Every arm trains the shipped detector on the built-in set, after its classifier has forgotten the
rare categories: what it learns of them, it learns from one to three real images of each and from
the pool, here of the built-in drawings. Steps, batches and pasted instances are the same per seed;
only what is trained on of them differs. Of the pool a known part is spoilt: of another category,
with a broken mask, or noise instead of the object. So beside mask AP there is how well an arm finds
the defects.

The arm `paste_clean` pastes the pool without its spoilt instances: what perfect judgement of the
defects would be worth. The arm `paste_random` accepts the share that `instance` accepted with the
same seed. The arm `paste_filtered` pastes everything of a pool from which in every category the
instances were dropped that a salient-object model agrees with least, as many as are spoilt. Where a
mode costs another time than `paste_all`, measured in turn, `<arm>@wall` repeats it with as many
steps as fit the time of `paste_all`, what is done once before the first step included.

Each (arm, seed) is a folder in `--state`; a finished one is not run again, and a killed one goes on
from its checkpoint. So several processes may share the work, each with seeds of its own and
`--part`, before one with all seeds writes the result.
"""

from __future__ import annotations

from train_study.arms import ARMS
from train_study.command import main
from train_study.tables import tables

__all__ = ["tables"]

if __name__ == "__main__":
    main("train_study", "drawn", __doc__, arms=ARMS, at_equal_time=True)
