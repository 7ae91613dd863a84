from __future__ import annotations

import copy
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from bsgal_score import ClassRowScorer
from bsgal_score.errors import ChangedInputError, NonFiniteGradientError, StateMismatchError

N_CLASSES = 4


def head(n_features=5, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(n_features, N_CLASSES)


def sigmoid_loss(logits, labels, reduction="sum"):
    targets = F.one_hot(labels, N_CLASSES).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)


def batch(seed, n_rows=12):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, 5, generator=generator)
    # Units 0 and 1 are pasted, 2 and 3 real; one row is nobody's.
    index = torch.randint(0, 4, (n_rows,), generator=generator)
    index[0] = -1
    classes = torch.tensor([1, 2, 1, 3])
    return rows, index, classes, torch.tensor([False, False, True, True])


def own_row_gradient(linear, rows, index, classes, unit):
    """The gradient on the unit's row of weights and bias, by autograd."""
    chosen = index == unit
    labels = classes[index[chosen]]
    loss = sigmoid_loss(linear(rows[chosen]), labels)
    weight, bias = torch.autograd.grad(loss, [linear.weight, linear.bias])
    own = int(classes[unit])
    return torch.cat([weight[own], bias[own : own + 1]])


def run(scorer, linear, rows, index, classes, real, **options):
    with scorer:
        logits = linear(rows)
        # Rows of no unit have some class too.
        loss = sigmoid_loss(logits, classes[index.clamp(min=0)])
        return scorer.score(loss, index, classes, real, **options)


def test_scores_are_cosines_of_own_row_gradients():
    linear = head()
    scorer = ClassRowScorer(linear, decay=0.9)
    first, second = batch(1), batch(2)
    assert run(scorer, linear, *first) == [None] * 4, "an empty cache is no evidence"
    rows, index, classes, _ = first
    expected = {
        int(classes[unit]): 0.1 * own_row_gradient(linear, rows, index, classes, unit)
        for unit in (2, 3)
    }
    for class_index, row in expected.items():
        torch.testing.assert_close(scorer.rows[class_index], row)
    assert not scorer.rows[0].any()
    assert not scorer.rows[2].any()

    found = run(scorer, linear, *second)
    rows, index, classes, _ = second
    for unit in (0, 2, 3):
        own = own_row_gradient(linear, rows, index, classes, unit)
        cosine = F.cosine_similarity(own, expected[int(classes[unit])], dim=0)
        assert found[unit] == pytest.approx(float(cosine), abs=1e-5)
    assert found[1] is None, "no real object of its class was seen"
    # The second batch's real objects came after the scores.
    torch.testing.assert_close(
        scorer.rows[3], 0.9 * expected[3] + 0.1 * own_row_gradient(linear, rows, index, classes, 3)
    )


def test_classes_that_are_absent_keep_their_row():
    linear = head()
    scorer = ClassRowScorer(linear, decay=0.5)
    run(scorer, linear, *batch(1))
    kept = scorer.rows[3].clone()
    rows, index, classes, real = batch(2)
    index[index == 3] = -1
    run(scorer, linear, rows, index[:], classes[:3], real[:3])
    torch.testing.assert_close(scorer.rows[3], kept, rtol=0, atol=0)


def test_stages_of_a_cascade_are_one_row():
    stages = [head(seed=1), head(seed=2)]
    scorer = ClassRowScorer(stages)
    rows, index, classes, real = batch(1)
    other_rows, other_index = rows.flip(0), index.flip(0)

    def loss():
        return sum(
            sigmoid_loss(stage(its_rows), classes[its_index.clamp(min=0)])
            for stage, its_rows, its_index in zip(
                stages, (rows, other_rows), (index, other_index), strict=True
            )
        )

    for _ in range(2):
        with scorer:
            found = scorer.score(loss(), [index, other_index], classes, real)

    def both(unit):
        return torch.cat(
            [
                own_row_gradient(stages[0], rows, index, classes, unit),
                own_row_gradient(stages[1], other_rows, other_index, classes, unit),
            ]
        )

    assert found[0] == pytest.approx(float(F.cosine_similarity(both(0), both(2), dim=0)), abs=1e-5)


def scores_under(factors, *, told):
    """Score a batch with an old loss in the cache: the loss of each step times its factor."""
    linear = head()
    scorer = ClassRowScorer(linear)
    for seed, factor in enumerate(factors):
        rows, index, classes, real = batch(seed)
        with scorer:
            loss = factor * sigmoid_loss(linear(rows), classes[index.clamp(min=0)])
            options = {"loss_scale": factor} if told else {}
            scores = scorer.score(loss, index, classes, real, **options)
    return scores, scorer.rows


def test_a_constant_factor_of_the_loss_is_of_no_account():
    expected, _ = scores_under([1.0] * 4, told=False)
    found, _ = scores_under([1024.0] * 4, told=False)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_changing_loss_scale_does_not_change_the_scores():
    expected, rows = scores_under([1.0] * 4, told=False)
    scales = [65536.0, 1024.0, 131072.0, 2.0]
    found, found_rows = scores_under(scales, told=True)
    assert found == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(found_rows, rows)
    # Or else the steps would weigh differently.
    untold, _ = scores_under(scales, told=False)
    assert abs(untold[0] - expected[0]) > 0.01


def test_works_under_autocast_and_keeps_the_graph():
    linear = head()
    scorer = ClassRowScorer(linear)
    rows, index, classes, real = batch(1)
    for _ in range(2):
        with scorer, torch.autocast("cpu", torch.bfloat16):
            loss = sigmoid_loss(linear(rows).float(), classes[index.clamp(min=0)])
            found = scorer.score(loss, index, classes, real)
    full = ClassRowScorer(linear)
    run(full, linear, *batch(1))
    expected = run(full, linear, *batch(1))
    assert found[0] == pytest.approx(expected[0], abs=0.02)
    loss.backward()
    assert linear.weight.grad is not None


def test_rows_of_a_unit_are_summed_in_float64():
    # Sums in float32 would lose the 1, and their order on a GPU would decide by how much.
    linear = nn.Linear(1, 1, bias=False)
    scorer = ClassRowScorer(linear, decay=0.0)
    values = torch.tensor([[2.0**30], [1.0], [-(2.0**30)]])
    with scorer:
        zeros = torch.zeros(3, dtype=torch.int64)
        scorer.score(linear(values).sum(), zeros, zeros[:1], torch.tensor([True]))
    assert scorer.rows.tolist() == [[1.0, 3.0]]


def test_the_input_may_be_given_by_its_name():
    linear, (rows, index, classes, real) = head(), batch(1)
    found = []
    for named in (False, True):
        scorer = ClassRowScorer(linear)
        for _ in range(2):
            with scorer:
                logits = linear(input=rows) if named else linear(rows)
                loss = sigmoid_loss(logits, classes[index.clamp(min=0)])
                scores = scorer.score(loss, index, classes, real)
        found.append(scores)
    assert found[0] == found[1]


def test_inputs_that_are_changed_after_the_call_are_refused():
    linear, (rows, index, classes, real) = head(), batch(1)
    with ClassRowScorer(linear) as scorer:
        loss = sigmoid_loss(linear(rows), classes[index.clamp(min=0)])
        rows.mul_(2)
        with pytest.raises(ChangedInputError, match=r"\(12, 5\), .*'classifiers\[0\]\.weight'"):
            scorer.score(loss, index, classes, real)


def test_mislabelled_units_score_lower():
    """Two classes that are apart in feature space, at a head that knows them a little."""
    shares = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(N_CLASSES, 32, generator=generator)

        def draw(classes, centres=centres, generator=generator):
            return centres[classes] + torch.randn(len(classes), 32, generator=generator)

        linear = head(32, seed)
        scorer = ClassRowScorer(linear)
        true = torch.arange(200) % N_CLASSES
        for _ in range(5):
            shown = draw(true)
            labels = true.clone()
            labels[:50] = (true[:50] + 1) % N_CLASSES
            real = torch.arange(200) >= 100
            found = run(scorer, linear, shown, torch.arange(200), labels, real)
        wrong, right = torch.tensor(found[:50]), torch.tensor(found[50:100])
        shares.append(float((right[:, None] > wrong).float().mean()))
    assert min(shares) > 0.9, shares


def test_a_bad_unit_is_nan_and_a_bad_reference_leaves_the_cache():
    linear = head()
    scorer = ClassRowScorer(linear)
    run(scorer, linear, *batch(1))
    rows, index, classes, real = batch(1)
    bad = rows.clone()
    bad[(index == 0).nonzero()[0]] = math.inf
    found = run(scorer, linear, bad, index, classes, real)
    assert math.isnan(found[0])
    assert math.isfinite(found[2])

    before = scorer.rows.clone()
    bad = rows.clone()
    bad[(index == 3).nonzero()[0]] = math.nan
    with pytest.raises(NonFiniteGradientError, match=r"classes \[3\]"):
        run(scorer, linear, bad, index, classes, real)
    torch.testing.assert_close(scorer.rows, before, rtol=0, atol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same number of outputs"):
        ClassRowScorer([nn.Linear(3, 2), nn.Linear(3, 4)])
    with pytest.raises(ValueError, match="none"):
        ClassRowScorer([])
    with pytest.raises(ValueError, match="decay"):
        ClassRowScorer(head(), decay=1.0)
    linear = head()
    copied = copy.deepcopy(linear)
    scorer = ClassRowScorer(linear)
    rows, index, classes, real = batch(1)
    with pytest.raises(ValueError, match="no call was recorded"):
        scorer.score(linear(rows).sum(), index, classes, real)
    with pytest.raises(ValueError, match="one entry per row"), scorer:
        scorer.score(linear(rows).sum(), index[:-1], classes, real)
    with pytest.raises(ValueError, match="there are 3 units"), scorer:
        scorer.score(linear(rows).sum(), index, classes[:3], real[:3])
    with pytest.raises(ValueError, match=r"\[0, 4\)"), scorer:
        scorer.score(linear(rows).sum(), index, classes + 1, real)
    with pytest.raises(ValueError, match="is_reference"), scorer:
        scorer.score(linear(rows).sum(), index, classes, real.long())
    with pytest.raises(ValueError, match="lists 2 calls, but 1"), scorer:
        scorer.score(linear(rows).sum(), [index, index], classes, real)
    for bad in (classes.float(), classes[:, None], classes.int(), classes.tolist()):
        with pytest.raises(ValueError, match="`unit_classes` must be int64 of shape"), scorer:
            scorer.score(linear(rows).sum(), index, bad, real)
    with pytest.raises(ValueError, match="got a list for inputs"), scorer:
        scorer.score(linear(rows).sum(), [index.tolist()], classes, real)
    with pytest.raises(ValueError, match=r"inputs \(1, 12, 5\)"), scorer:
        scorer.score(linear(rows[None]).sum(), index, classes, real)
    with pytest.raises(ValueError, match="`loss` must be a scalar"), scorer:
        scorer.score(linear(rows), index, classes, real)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`loss_scale` must be"), scorer:
            scorer.score(linear(rows).sum(), index, classes, real, loss_scale=scale)
    with pytest.raises(ValueError, match="not copies of them"), scorer:
        scorer.score(copied(rows).sum(), index, classes, real)
    assert not scorer.rows.any()


def test_state():
    linear = head()
    scorer, other = ClassRowScorer(linear), ClassRowScorer(linear)
    run(scorer, linear, *batch(1))
    other.load_state_dict(scorer.state_dict())
    assert run(other, linear, *batch(2)) == run(scorer, linear, *batch(2))
    with pytest.raises(StateMismatchError, match=r"decay 0\.9, this object has .* and 0\.5"):
        ClassRowScorer(linear, decay=0.5).load_state_dict(scorer.state_dict())
    with pytest.raises(StateMismatchError, match=r"\(4, 6\)"):
        ClassRowScorer(nn.Linear(7, 4)).load_state_dict(scorer.state_dict())


def joint_run(processes, group=None):
    """Two steps of some processes in one pass; only process 0 has real objects of class 3."""
    linear = head()
    scorer = ClassRowScorer(linear)
    for step in range(2):
        parts = [batch(10 * step + process) for process in processes]
        rows = torch.cat([part[0] for part in parts])
        index = torch.cat(
            [torch.where(part[1] >= 0, part[1] + 4 * i, -1) for i, part in enumerate(parts)]
        )
        classes = torch.cat(
            [
                part[2] if process == 0 else torch.tensor([3, 2, 1, 2])
                for process, part in zip(processes, parts, strict=True)
            ]
        )
        real = torch.cat([part[3] for part in parts])
        found = run(scorer, linear, rows, index, classes, real, group=group)
    return found, scorer.rows


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_processes_equal_one():
    expected, rows = joint_run([0, 1])
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen([sys.executable, __file__, folder, str(rank)]) for rank in range(2)
        ]
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
        parts = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert parts[0]["scores"] + parts[1]["scores"] == pytest.approx(expected, abs=1e-6)
    for part in parts:
        torch.testing.assert_close(part["rows"], rows)


def _worker(folder: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    scores, rows = joint_run([rank], dist.group.WORLD)
    torch.save({"scores": scores, "rows": rows}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), int(sys.argv[2]))
