from __future__ import annotations

import logging
import math
import re

import pytest
import torch

from bsgal_score import ops, reference
from bsgal_score._dispatch import _log_choice, choose_implementation
from bsgal_score.errors import ImplementationUnavailableError
from bsgal_score.ops import TensorMetric, cache_update_dot

DEVICES = ["cuda"] if torch.cuda.is_available() else ["cpu"]
SIZES = [1, 63, 1024, 1025, 100_003]
UNIT_ROUNDOFF = 2.0**-24

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
assert DEVICES


def summation_depth(impl: str, size: int) -> int:
    if impl == "triton":
        # Eight blocks a chunk, a tree over 1024 lanes, three roundings in a product, one to store.
        return 8 + 10 + 3 + 1
    # BLAS adds up a block of 2**17 elements in at least 4 lanes.
    return math.ceil(min(size, 2**17) / 4) + 4


def make(size: int, dtype: torch.dtype, seed: int, *, unaligned: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size + unaligned, generator=generator).to(DEVICES[0], dtype)
    return values[1:] if unaligned else values


def assert_sums_close(sums, expected, cache, candidate, impl, weights=None) -> None:
    """Compare with the rounding bound depth x u x sum of absolute products."""
    c = torch.cat([tensor.double().flatten() for tensor in cache])
    k = torch.cat([tensor.double().flatten() for tensor in candidate])
    s = 1.0 if weights is None else torch.cat([w.double().flatten() for w in weights])
    depth = summation_depth(impl, max(tensor.numel() for tensor in cache))
    for got, want, x, y in zip(sums, expected, (c, c, k), (k, c, k), strict=True):
        bound = float(depth * UNIT_ROUNDOFF * (x * s * y).abs().sum())
        assert got.dtype == torch.float64
        assert abs(float(got) - float(want)) <= bound


@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
    ],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_update_and_sums_agree_with_the_reference(impl, size, dtypes, unaligned):
    cache, g, k = (
        [make(size, dtype, seed, unaligned=unaligned)] for seed, dtype in enumerate(dtypes)
    )
    new_cache, expected = reference.cache_update_dot(cache, g, k, decay=0.3)
    sums = cache_update_dot(cache, g, k, decay=0.3, impl=impl)
    if dtypes[0] == torch.float32:
        torch.testing.assert_close(cache, new_cache)
    else:
        # Rounding fp32 and float64 values to bfloat16 may differ by one unit in the last place.
        torch.testing.assert_close(cache, new_cache, rtol=2.0**-7, atol=1e-6)
    # What was stored is what is summed up.
    _, expected = reference.cache_update_dot(cache, None, k)
    assert_sums_close(sums, expected, cache, k, impl)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_a_missing_gradient_counts_as_zeros(impl):
    cache = [make(size, torch.float32, size) for size in (5, 2000, 300)]
    g = [None, make(2000, torch.float32, 1), None]
    k = [make(5, torch.float32, 2), None, None]
    zeros = [torch.zeros_like(tensor) for tensor in cache]
    filled_g = [zero if x is None else x for x, zero in zip(g, zeros, strict=True)]
    filled_k = [zero if x is None else x for x, zero in zip(k, zeros, strict=True)]
    copy = [tensor.clone() for tensor in cache]
    sums = cache_update_dot(cache, g, k, decay=0.9, impl=impl)
    expected = cache_update_dot(copy, filled_g, filled_k, decay=0.9, impl=impl)
    torch.testing.assert_close(cache, copy, rtol=0, atol=0)
    torch.testing.assert_close(sums, expected, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_without_reference_the_cache_stays_as_it_is(impl):
    cache = [make(3000, torch.float32, 0)]
    before = cache[0].clone()
    k = [make(3000, torch.float32, 1)]
    sums = cache_update_dot(cache, None, k, impl=impl)
    assert torch.equal(cache[0], before)
    assert_sums_close(sums, reference.cache_update_dot(cache, None, k)[1], cache, k, impl)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_rows_decay_by_their_own_weights(impl):
    cache = [make(90 * 111, torch.float32, 0).view(90, 111), make(7, torch.float32, 1)]
    g = [make(90 * 111, torch.float32, 2).view(90, 111), make(7, torch.float32, 3)]
    k = [make(90 * 111, torch.float32, 4).view(90, 111), make(7, torch.float32, 5)]
    row_decay = [torch.linspace(0, 1, 90, device=DEVICES[0]), None]
    new_cache, expected = reference.cache_update_dot(cache, g, k, decay=0.5, row_decay=row_decay)
    untouched = cache[0][89].clone()
    sums = cache_update_dot(cache, g, k, decay=0.5, row_decay=row_decay, impl=impl)
    torch.testing.assert_close(cache, new_cache)
    assert torch.equal(cache[0][89], untouched)
    assert_sums_close(sums, expected, cache, k, impl)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_a_metric_weighs_all_three_sums(impl):
    shapes = [(40, 50), (3,), (1030,)]
    cache = [make(math.prod(s), torch.float32, i).view(s) for i, s in enumerate(shapes)]
    k = [make(math.prod(s), torch.float32, 9 + i).view(s) for i, s in enumerate(shapes)]
    v = make(2000, torch.float32, 7).square().view(40, 50)
    metric = [TensorMetric(0.1, v, 0.3, 1e-2), None, TensorMetric(2.0)]
    _, expected = reference.cache_update_dot(cache, None, k, metric=metric)
    sums = cache_update_dot(cache, None, k, metric=metric, impl=impl)
    weights = [reference.metric_weight(m, c) for m, c in zip(metric, cache, strict=True)]
    assert_sums_close(sums, expected, cache, k, impl, weights)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_memory_layout_does_not_change_the_result(impl):
    values = make(6 * 4 * 5 * 7, torch.float32, 0).view(6, 4, 5, 7)
    g, k = (make(840, torch.float32, seed).view(6, 4, 5, 7) for seed in (1, 2))
    expected_cache, expected = reference.cache_update_dot([values], [g], [k], decay=0.5)
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout in layouts:
        for gradient_layout in layouts:
            cache = [values.clone(memory_format=layout)]
            sums = cache_update_dot(
                cache,
                [g.contiguous(memory_format=gradient_layout)],
                [k.expand(2, *k.shape)[1]],
                decay=0.5,
                impl=impl,
            )
            torch.testing.assert_close(cache[0], expected_cache[0])
            assert_sums_close(sums, expected, cache, [k], impl)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_equal_inputs_give_equal_bits(impl):
    results = []
    for _ in range(2):
        cache = [make(size, torch.float32, size) for size in (100_003, 17)]
        g, k = ([make(size, torch.float32, size + i) for size in (100_003, 17)] for i in (1, 2))
        sums = cache_update_dot(cache, g, k, decay=0.7, impl=impl)
        results.append((*cache, *sums))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_float64_is_exact_to_float64_rounding_in_torch():
    cache, g, k = ([make(5000, torch.float64, seed)] for seed in range(3))
    new_cache, expected = reference.cache_update_dot(cache, g, k, decay=0.3)
    sums = cache_update_dot(cache, g, k, decay=0.3, impl="torch")
    torch.testing.assert_close(cache, new_cache)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-9)


def test_triton_refuses_float64_with_the_remedy():
    pytest.importorskip("triton")
    cache = [make(4, torch.float64, 0)]
    with pytest.raises(ValueError, match="float64; use impl='torch'"):
        cache_update_dot(cache, None, cache, impl="triton")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache": []}, "at least one tensor"),
        ({"cache": [torch.zeros(0)]}, r"`cache\[0\]` is empty"),
        ({"cache": [torch.zeros(4, 4)[:, ::2]]}, "must be dense"),
        ({"reference": [torch.zeros(3)]}, r"`reference\[0\]` must have shape \(2, 2\)"),
        ({"candidate": []}, r"one entry per cache tensor \(1\), got 0"),
        ({"decay": 1.5}, r"`decay` must lie in \[0, 1\], got 1.5"),
        ({"row_decay": [torch.zeros(3)]}, "one entry per row"),
        ({"metric": [TensorMetric(1.0, torch.zeros(3))]}, r"`metric\[0\]` must have shape"),
        ({"impl": "cuda"}, "`impl` must be one of"),
    ],
)
def test_bad_operands_are_named(change, message):
    operands = {"cache": [torch.zeros(2, 2)], "reference": None, "candidate": None} | change
    with pytest.raises(ValueError, match=message):
        cache_update_dot(**operands)


def test_explicit_triton_without_triton_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("bsgal_score._dispatch.triton_is_installed", lambda: False)
    with pytest.raises(ImplementationUnavailableError, match="package triton, which is not"):
        cache_update_dot([torch.zeros(2)], None, None, impl="triton")


@pytest.mark.parametrize("version", ["2.2.0", "2.3.1", "3.0.0", "3.1.0+git1"])
def test_a_triton_that_is_too_old_is_not_taken(monkeypatch, version):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    assert choose_implementation("op", "auto", torch.device("cuda")) == "torch"
    message = rf"which is of version {re.escape(version)}; install triton>=3\.2"
    with pytest.raises(ImplementationUnavailableError, match=message):
        cache_update_dot([torch.zeros(2)], None, None, impl="triton")


@pytest.mark.parametrize("version", ["3.2.0", "3.3.0+gitab12", "3.10.0", "4.0.0"])
def test_auto_takes_a_triton_that_is_new_enough_on_gpus_only(monkeypatch, version):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    assert choose_implementation("op", "auto", torch.device("cuda")) == "triton"
    assert choose_implementation("op", "auto", torch.device("cpu")) == "torch"


def test_explicit_triton_on_cpu_tensors_without_interpreter_raises(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr("bsgal_score._dispatch._interpreter_is_on", lambda: False)
    with pytest.raises(ImplementationUnavailableError, match="needs CUDA or ROCm tensors"):
        cache_update_dot([torch.zeros(2)], None, None, impl="triton")


@pytest.mark.parametrize("impl", ["auto", "torch", "triton"])
def test_the_operation_runs_the_implementation_that_is_chosen(monkeypatch, impl):
    """On CPU tensors, auto is torch; each implementation is told apart by what it returns."""
    kernels = pytest.importorskip("bsgal_score.kernels.cache_update_dot")
    zero = torch.zeros(())
    for place, name, mark in (
        (ops, "cache_update_dot_torch", 1.0),
        (kernels, "cache_update_dot_triton", 2.0),
    ):
        sums = ops.CacheSums(zero + mark, zero, zero)
        monkeypatch.setattr(place, name, lambda *_, sums=sums, **__: sums)
    sums = cache_update_dot([torch.zeros(2)], None, [torch.zeros(2)], impl=impl)
    assert float(sums.dot) == (2.0 if impl == "triton" else 1.0)


def test_the_chosen_implementation_is_named_in_the_log(caplog):
    _log_choice.cache_clear()  # each choice is named once
    with caplog.at_level(logging.INFO, logger="bsgal_score"):
        cache_update_dot([torch.zeros(2)], None, [torch.zeros(2)])
        cache_update_dot([torch.zeros(2)], None, [torch.zeros(2)])
    assert caplog.messages == ["cache_update_dot on cpu tensors runs with impl='torch'"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_more_elements_than_int32_counts():
    size = 2**31 + 5
    cache = [torch.zeros(size, dtype=torch.bfloat16, device="cuda")]
    k = [torch.zeros(size, dtype=torch.bfloat16, device="cuda")]
    cache[0][-1] = k[0][-1] = 2
    assert float(cache_update_dot(cache, None, k, impl="triton").dot) == 4.0
