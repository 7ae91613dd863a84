"""Sharded parameters are named where they are met."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bsgal_score import GhostScorer, GradientCache
from bsgal_score.errors import ShardedParameterError

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_fully_sharded_models_are_refused_by_cache_and_scorer(mesh):
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    scorer = GhostScorer(model, GradientCache(model.named_parameters(), decay=0.5))
    fully_shard(model, mesh=mesh)
    with pytest.raises(ShardedParameterError, match=r"'0\.weight' is a DTensor .*FSDP2"):
        GradientCache(model.named_parameters(), decay=0.5)
    with pytest.raises(ShardedParameterError, match=r"'0\.weight' is a DTensor .*FSDP2"):
        scorer.__enter__()


def test_only_cached_parameters_have_to_be_whole(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(ShardedParameterError, match=r"'0\.weight'"):
        GradientCache(model.named_parameters(), decay=0.5)
    cache = GradientCache(model.named_parameters(), decay=0.5, exclude=["0.*"])
    with GhostScorer(model, cache) as scorer:
        loss = model[1](torch.randn(4, 4)).square().sum()
        scores = scorer.score(loss, torch.tensor([-1, -1, 0, 1]))
    assert scores.coverage == 1.0
