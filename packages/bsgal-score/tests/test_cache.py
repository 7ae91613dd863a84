from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bsgal_score import GradientCache
from bsgal_score.errors import (
    GradientMismatchError,
    NonFiniteGradientError,
    ReboundParameterError,
    StateMismatchError,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 3)
        self.head = nn.Linear(3, 5)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def gradients_of(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def vector(gradients) -> torch.Tensor:
    return torch.cat([g.double().flatten() for g in gradients.values()])


def contents(cache: GradientCache) -> torch.Tensor:
    return vector({name: cache[name] for name in cache.names})


def test_updates_equal_the_closed_form(model):
    cache = GradientCache(model.named_parameters(), decay=0.9)
    gradients = [gradients_of(model, seed) for seed in range(5)]
    for g in gradients:
        cache.update(g)
    expected = sum(0.1 * 0.9 ** (4 - t) * vector(g) for t, g in enumerate(gradients))
    torch.testing.assert_close(contents(cache), expected, rtol=1e-6, atol=1e-6)


def test_mode_mean_is_the_plain_mean(model):
    cache = GradientCache(model.named_parameters(), decay=0.0, mode="mean")
    gradients = [gradients_of(model, seed) for seed in range(7)]
    for g in gradients:
        cache.update(g)
    expected = torch.stack([vector(g) for g in gradients]).mean(dim=0)
    torch.testing.assert_close(contents(cache), expected, rtol=1e-6, atol=1e-6)


def test_bias_correction_divides_by_the_sum_of_weights(model):
    plain = GradientCache(model.named_parameters(), decay=0.9)
    corrected = GradientCache(model.named_parameters(), decay=0.9, bias_correction=True)
    for t in range(4):
        for cache in (plain, corrected):
            cache.update(gradients_of(model, t))
        expected = contents(plain) / (1 - 0.9 ** (t + 1))
        torch.testing.assert_close(contents(corrected), expected, rtol=1e-6, atol=1e-6)


def test_scores_equal_those_of_flat_vectors(model):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    g, k = gradients_of(model, 1), gradients_of(model, 2)
    cosine = cache.update_and_score(g, k)
    c, k_flat = 0.9 * vector(g), vector(k)
    assert cosine == pytest.approx(float(c @ k_flat / (c.norm() * k_flat.norm())), abs=1e-6)
    assert cache.cosine(k) == cosine
    assert cache.dot(k) == pytest.approx(float(c @ k_flat), abs=1e-5)
    assert cache.norm() == pytest.approx(float(c.norm()), rel=1e-6)


def test_update_and_score_is_update_then_score(model):
    fused, separate = (GradientCache(model.named_parameters(), decay=0.5) for _ in range(2))
    for seed in range(3):
        g, k = gradients_of(model, seed), gradients_of(model, seed + 10)
        dot = fused.update_and_score(g, k, form="dot")
        separate.update(g)
        assert dot == separate.dot(k)


def test_a_missing_gradient_counts_as_zeros(model):
    given_none, absent, zeros = (
        GradientCache(model.named_parameters(), decay=0.5) for _ in range(3)
    )
    for cache in (given_none, absent, zeros):
        cache.update(gradients_of(model, 0))
    g = gradients_of(model, 1)
    weight = g.pop("head.weight")
    absent.update(g)
    given_none.update(g | {"head.weight": None})
    zeros.update(g | {"head.weight": torch.zeros_like(weight)})
    assert torch.equal(contents(absent), contents(zeros))
    assert torch.equal(contents(given_none), contents(zeros))


def test_excluded_and_frozen_parameters_do_not_change_the_score(model):
    model.backbone.bias.requires_grad_(False)
    cache = GradientCache(model.named_parameters(), decay=0.1, exclude=["backbone.w*"])
    assert cache.names == ("head.weight", "head.bias")
    g, k = gradients_of(model, 0), gradients_of(model, 1)
    score = cache.update_and_score(g, k)
    k["backbone.weight"] = torch.full((3, 4), 1e6)
    assert cache.cosine(k) == score


def test_zero_on_either_side_is_no_evidence(model):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    assert cache.cosine(gradients_of(model, 0)) is None
    assert cache.update_and_score(gradients_of(model, 0), {}) is None
    assert cache.update_and_score({}, {"head.bias": torch.zeros(5)}, form="dot") is None


def test_a_nonfinite_candidate_scores_nan_and_leaves_the_cache_finite(model):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    k = gradients_of(model, 1)
    k["head.bias"][2] = math.inf
    assert math.isnan(cache.update_and_score(gradients_of(model, 0), k))
    assert contents(cache).isfinite().all()


def test_a_nonfinite_reference_raises_before_anything_changes(model):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    cache.update(gradients_of(model, 0))
    before, g = contents(cache).clone(), gradients_of(model, 1)
    g["head.weight"][0, :2] = torch.tensor([math.nan, math.inf])
    with pytest.raises(NonFiniteGradientError, match=r"'head\.weight' holds 2 NaN or Inf of 15"):
        cache.update(g)
    assert torch.equal(contents(cache), before)
    assert cache.n_updates == 1


def test_large_finite_half_precision_gradients_are_not_taken_for_infinite(model):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    cache.update({"head.weight": torch.full((5, 3), 60000.0, dtype=torch.float16)})
    assert float(cache["head.weight"][0, 0]) == pytest.approx(54000.0, rel=1e-3)


def test_without_the_check_a_bad_reference_makes_every_score_nan(model):
    cache = GradientCache(model.named_parameters(), decay=0.1, check_finite=False)
    cache.update({"head.bias": torch.full((5,), math.nan)})
    cache.update(gradients_of(model, 0))
    assert math.isnan(cache.cosine(gradients_of(model, 1)))


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"neck.weight": torch.zeros(1)}, r"'neck\.weight' belongs to no parameter"),
        ({"head.bias": torch.zeros(4)}, r"'head\.bias' must have shape \(5,\) on cpu"),
        ({"head.bias": torch.zeros(5).long()}, "has dtype torch.int64"),
        ({"head.bias": torch.zeros(5).to_sparse()}, "pass gradient.to_dense()"),
    ],
)
def test_gradients_that_do_not_fit_are_named(model, gradients, message):
    cache = GradientCache(model.named_parameters(), decay=0.1)
    for call in (cache.update, cache.dot, cache.cosine):
        with pytest.raises(GradientMismatchError, match=message):
            call(gradients)


def test_a_gradient_must_be_a_tensor(model):
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        GradientCache(model.named_parameters(), decay=0.1).update({"head.bias": [0.0] * 5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"`decay` must lie in \[0, 1\), got 1.0"),
        ({"mode": "median"}, "`mode` must be"),
        ({"dtype": torch.float16}, "`dtype` must be one of"),
        ({"exclude": ["neck.*"]}, r"`exclude` pattern 'neck.\*' matches no parameter"),
        ({"rowwise": ["nothing"]}, "`rowwise` pattern 'nothing' matches no parameter"),
        ({"exclude": ["*"]}, "no parameter to cache"),
    ],
)
def test_bad_options_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        GradientCache(model.named_parameters(), **({"decay": 0.1} | options))


def test_a_pattern_list_must_not_be_a_string(model):
    with pytest.raises(TypeError, match="`exclude` must be a sequence"):
        GradientCache(model.named_parameters(), decay=0.1, exclude="head.*")


def test_a_scalar_parameter_has_no_rows():
    with pytest.raises(ValueError, match="`rowwise` parameter 'scale' is a scalar"):
        GradientCache([("scale", nn.Parameter(torch.ones(())))], decay=0.1, rowwise=["scale"])


def test_empty_parameters_are_left_out():
    named = [("empty", nn.Parameter(torch.zeros(0, 3))), ("full", nn.Parameter(torch.zeros(2)))]
    assert GradientCache(named, decay=0.1).names == ("full",)


def test_half_life_is_in_updates(model):
    cache = GradientCache(model.named_parameters(), decay=0.99)
    assert 0.99**cache.half_life == pytest.approx(0.5)
    assert GradientCache(model.named_parameters(), decay=0, mode="mean").half_life == math.inf


def test_rows_of_absent_classes_keep_their_memory(model):
    cache = GradientCache(model.named_parameters(), decay=0.5, rowwise=["head.*"])
    first, second = gradients_of(model, 0), gradients_of(model, 1)
    cache.update(first)
    cache.update(second, rows=[3, 1, 3])
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(cache[name][0], 0.5 * first[name][0])
        torch.testing.assert_close(cache[name][1], 0.25 * first[name][1] + 0.5 * second[name][1])
    weight = "backbone.weight"
    torch.testing.assert_close(cache[weight], 0.25 * first[weight] + 0.5 * second[weight])


def test_rowwise_bias_correction_counts_each_row(model):
    cache = GradientCache(
        model.named_parameters(), decay=0.9, rowwise=["head.weight"], bias_correction=True
    )
    first, second = gradients_of(model, 0), gradients_of(model, 1)
    cache.update(first, rows={"head.weight": torch.tensor([0])})
    cache.update(second, rows={"head.weight": torch.tensor([0, 1])})
    name = "head.weight"
    torch.testing.assert_close(cache[name][1], second[name][1])
    expected = (0.09 * first[name][0] + 0.1 * second[name][0]) / 0.19
    torch.testing.assert_close(cache[name][0], expected)


def test_rows_out_of_range_and_rows_without_rowwise_raise(model):
    cache = GradientCache(model.named_parameters(), decay=0.5, rowwise=["head.*"])
    with pytest.raises(ValueError, match=r"`rows` must lie in \[0, 5\) for 'head.weight'"):
        cache.update({}, rows=[5])
    with pytest.raises(ValueError, match="`rows` needs a cache with `rowwise`"):
        GradientCache(model.named_parameters(), decay=0.5).update({}, rows=[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stop_and_resume_gives_the_same_scores_bit_for_bit(model, dtype):
    options = {"decay": 0.9, "dtype": dtype, "rowwise": ["head.*"], "bias_correction": True}
    whole = GradientCache(model.named_parameters(), **options)
    part = GradientCache(model.named_parameters(), **options)
    for step in range(4):
        part.update(gradients_of(model, step), rows=[step])
        whole.update(gradients_of(model, step), rows=[step])
    resumed = GradientCache(model.named_parameters(), **options)
    resumed.load_state_dict(part.state_dict())
    for step in range(4, 8):
        g, k = gradients_of(model, step), gradients_of(model, 100 + step)
        rows = [step - 4]
        assert resumed.update_and_score(g, k, rows=rows) == whole.update_and_score(g, k, rows=rows)


@pytest.mark.parametrize(
    "options",
    [{"decay": 0.95}, {"decay": 0.99}, {"decay": 0.999}, {"decay": 0.1, "mode": "mean"}],
    ids=str,
)
def test_a_bfloat16_cache_that_would_stand_still_is_refused(model, options):
    with pytest.raises(ValueError, match=r"of at most 0\.9, got mode='.*use dtype=torch\.float32"):
        GradientCache(model.named_parameters(), dtype=torch.bfloat16, **options)
    GradientCache(model.named_parameters(), dtype=torch.float32, **options)


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_a_bfloat16_cache_follows_its_gradients(model, decay, bias_correction):
    cache = GradientCache(
        model.named_parameters(),
        decay=decay,
        dtype=torch.bfloat16,
        bias_correction=bias_correction,
    )
    for seed in (1, 2):
        expected = gradients_of(model, seed)
        for _ in range(100):
            cache.update(expected)
        for name, g in expected.items():
            # One rounding more than what may be lost.
            bound = (2.0**-8 / (1 - decay) + 2.0**-8) * g.abs()
            assert bool(((cache[name].float() - g).abs() <= bound).all()), name


def test_a_state_survives_torch_save(model, tmp_path):
    cache = GradientCache(model.named_parameters(), decay=0.9)
    cache.update(gradients_of(model, 0))
    torch.save(cache.state_dict(), tmp_path / "cache.pt")
    other = GradientCache(model.named_parameters(), decay=0.9)
    other.load_state_dict(torch.load(tmp_path / "cache.pt", weights_only=True))
    assert torch.equal(contents(other), contents(cache))
    assert other.n_updates == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(decay=0.5), "decay=0.5, this one 0.9"),
        (lambda s: s.update(version=0), "version=0"),
        (lambda s: s["tensors"].pop("head.bias"), r"no tensors entry 'head\.bias'"),
        (lambda s: s["tensors"].update(more=torch.zeros(1)), "has a tensors entry 'more'"),
        (
            lambda s: s["tensors"].update({"head.bias": torch.zeros(6)}),
            r"'head\.bias' has shape \(6,\)",
        ),
    ],
)
def test_the_first_mismatch_of_a_state_is_named_and_nothing_is_loaded(model, change, message):
    source = GradientCache(model.named_parameters(), decay=0.9)
    source.update(gradients_of(model, 0))
    state = source.state_dict()
    change(state)
    cache = GradientCache(model.named_parameters(), decay=0.9)
    with pytest.raises(StateMismatchError, match=message):
        cache.load_state_dict(state)
    assert cache.norm() == 0.0


def test_rebinding_a_parameter_is_noticed(model):
    cache = GradientCache(model.named_parameters(), decay=0.9)
    cache.check_parameters(model.named_parameters())
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(ReboundParameterError, match=r"'head\.weight' is bound to another"):
        cache.check_parameters(model.named_parameters())
    with pytest.raises(ReboundParameterError, match=r"'head\.weight' is missing"):
        cache.check_parameters(model.backbone.named_parameters("backbone"))


def test_half_precision_parameters_get_an_fp32_cache_and_float64_keeps_its_own():
    named = [
        ("a", nn.Parameter(torch.zeros(2).half())),
        ("b", nn.Parameter(torch.zeros(2).double())),
    ]
    cache = GradientCache(named, decay=0.1)
    assert (cache["a"].dtype, cache["b"].dtype) == (torch.float32, torch.float64)
    cache.update({"a": torch.ones(2).half(), "b": torch.ones(2)})
    assert cache["a"].tolist() == pytest.approx([0.9, 0.9])
    assert cache["b"].tolist() == pytest.approx([0.9, 0.9])


def test_the_gap_between_predicted_and_true_loss_change_shrinks_with_the_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(32, 6).double(), torch.randint(3, (32,))
    x_new, y_new = torch.randn(2, 6).double(), torch.randint(3, (2,))

    def gradients(inputs, labels):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        names, parameters = zip(*model.named_parameters(), strict=True)
        return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    cache = GradientCache(model.named_parameters(), decay=0.0)
    before, reference = gradients(x, y)
    _, candidate = gradients(x_new, y_new)
    slope = cache.update_and_score(reference, candidate, form="dot")
    gaps = []
    for step in (1e-2, 1e-3, 1e-4):
        moved = [(p, step * candidate[name]) for name, p in model.named_parameters()]
        with torch.no_grad():
            for p, change in moved:
                p -= change
            after = float(nn.functional.cross_entropy(model(x), y))
            for p, change in moved:
                p += change
        gaps.append(abs((before - after) / (step * slope) - 1))
    assert gaps[0] < 0.2
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)
    assert gaps[2] == pytest.approx(gaps[1] / 10, rel=0.2)


numbers = st.floats(-100, 100, width=32)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=40),
    st.integers(1, 39),
    st.sampled_from([0.125, 2.0, 1024.0]),
)
def test_scores_are_bilinear_bounded_and_blind_to_scale_and_split(triples, cut, scale):
    g, j, k = (torch.tensor(column) for column in zip(*triples, strict=True))
    whole = GradientCache([("x", nn.Parameter(torch.zeros_like(g)))], decay=0.0)
    whole.update({"x": g})
    bound = 2.0**-22 * len(g) * float((g.abs() * (j.abs() + k.abs())).sum()) + 1e-30
    assert abs(whole.dot({"x": j + k}) - whole.dot({"x": j}) - whole.dot({"x": k})) <= 4 * bound
    cosine = whole.cosine({"x": k})
    if cosine is not None and float(k.square().sum()) > 1e-6 and float(g.square().sum()) > 1e-6:
        assert -1 <= cosine <= 1
        assert whole.cosine({"x": scale * k}) == pytest.approx(cosine, abs=1e-5)
    parts = {"a": k[:cut], "b": k[cut:]}
    named = [(name, nn.Parameter(torch.zeros_like(p))) for name, p in parts.items() if len(p)]
    split = GradientCache(named, decay=0.0)
    split.update({name: {"a": g[:cut], "b": g[cut:]}[name] for name, _ in named})
    assert abs(split.dot({name: parts[name] for name, _ in named}) - whole.dot({"x": k})) <= bound
