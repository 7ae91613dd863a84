from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from bsgal_score import CountSketch, GradientCache, SketchStore, ops, reference
from bsgal_score.errors import GradientMismatchError, StateMismatchError

NUMELS = [40, 7, 129]


def make(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in NUMELS]


def test_the_hashes_are_those_that_stored_sketches_were_made_with():
    """Literals: a change of them makes every stored sketch worthless, in silence."""
    assert [reference.lowbias32(x) for x in (0, 1, 2**32 - 1)] == [0, 0x688990C0, 0x6768824A]
    # A seed of more than 32 bits uses all of them.
    cases = [(0, 0, 0), (3, 1, 7), (2**31, 0, 5), (2**40 + 1, 1, 2**32 - 1)]
    assert [reference.sketch_hash(*case) for case in cases] == [
        0,
        0x78E8BA30,
        0x4D7686B6,
        0xCA0F4D20,
    ]
    assert len({reference.sketch_hash(seed, 0, 5) for seed in (0, 2**31, 2**32, 2**40)}) == 4


@pytest.mark.parametrize("seed", [0, 3, 2**31 + 1, 2**40 + 7])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_every_seed_agrees_with_the_definition(impl, seed):
    tensors = make(1)
    got = ops.sketch(tensors, NUMELS, width=64, seed=seed, impl=impl)
    want = reference.sketch(tensors, NUMELS, 64, seed)
    torch.testing.assert_close(got, want, rtol=0, atol=10 * 2.0**-24 * 9 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_agrees_with_the_definition(impl, width, dtype):
    tensors = make(0, dtype)
    tensors[1] = None
    got = ops.sketch(tensors, NUMELS, width=width, seed=3, impl=impl)
    want = reference.sketch(tensors, NUMELS, width, 3)
    # At most 9 blocks share a bucket.
    torch.testing.assert_close(got, want, rtol=0, atol=10 * 2.0**-24 * 9 * 4)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_a_sketch_does_not_depend_on_where_its_tensors_lie(impl):
    numels = [3000, 700]
    tensors = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in numels]
    shifted = [torch.cat([torch.zeros(1), tensor])[1:] for tensor in tensors]
    strided = [torch.stack([tensor, tensor], dim=1)[:, 0] for tensor in tensors]
    results = [
        ops.sketch(given, numels, width=1024, seed=5, impl=impl)
        for given in (tensors, shifted, strided)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_empty_tensors_add_nothing(impl):
    numels = [0, 50, 0]
    for empty in (torch.zeros(0), torch.zeros(0, dtype=torch.bfloat16), None):
        tensors = [empty, torch.ones(50), empty]
        got = ops.sketch(tensors, numels, width=32, seed=5, impl=impl)
        assert torch.equal(got, ops.sketch([None, tensors[1], None], numels, width=32, seed=5))
    nothing = ops.sketch([torch.zeros(0)], [0], width=32, seed=5, impl=impl)
    assert torch.equal(nothing, torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_update_and_sketch_in_one_pass_agree_with_the_definition(impl, dtypes):
    cache, gradients = make(0, dtypes[0]), make(1, dtypes[1])
    gradients[1] = None
    new_cache, want = reference.cache_update_sketch(cache, gradients, decay=0.3, width=32, seed=2)
    got = ops.cache_update_sketch(cache, gradients, decay=0.3, width=32, seed=2, impl=impl)
    tolerance = {"rtol": 2.0**-7, "atol": 1e-6} if dtypes[0] == torch.bfloat16 else {}
    torch.testing.assert_close(cache, new_cache, **tolerance)
    # Where rounding to bfloat16 differs, what was stored is what counts.
    want = reference.sketch(cache, NUMELS, 32, 2)
    torch.testing.assert_close(got, want, rtol=0, atol=10 * 2.0**-24 * 9 * 4)


def test_update_and_sketch_of_bad_operands_is_explained():
    cache = [torch.zeros(4, 4)]
    options = {"decay": 0.5, "width": 32, "seed": 0}
    with pytest.raises(ValueError, match=r"`cache\[0\]` must be contiguous"):
        ops.cache_update_sketch([torch.zeros(4, 5).T], [None], **options)
    with pytest.raises(ValueError, match=r"`reference\[0\]` must have shape \(4, 4\)"):
        ops.cache_update_sketch(cache, [torch.zeros(4)], **options)
    with pytest.raises(ValueError, match="`width` must be a power of two"):
        ops.cache_update_sketch(cache, [None], **(options | {"width": 33}))


def test_triton_refuses_float64_with_the_remedy():
    pytest.importorskip("triton")
    cache = [torch.zeros(4, 4, dtype=torch.float64)]
    with pytest.raises(ValueError, match="float64; use impl='torch'"):
        ops.cache_update_sketch(cache, [None], decay=0.5, width=32, seed=0, impl="triton")


@pytest.mark.parametrize("options", [{}, {"mode": "mean"}, {"bias_correction": True}])
def test_a_cache_is_updated_and_sketched_at_once(options):
    parameters = {"a": nn.Parameter(torch.zeros(9, 8)), "b": nn.Parameter(torch.zeros(5))}
    fused, plain = (GradientCache(parameters.items(), decay=0.7, **options) for _ in range(2))
    sketcher = CountSketch(parameters.items(), width=32, seed=1)
    for step in range(3):
        gradients = {"a": torch.randn(9, 8), "b": torch.randn(5) if step else None}
        found = fused.update_and_sketch(gradients, sketcher)
        plain.update(gradients)
        for name in plain.names:
            assert torch.equal(fused[name], plain[name])
        expected = sketcher.sketch({name: plain[name] for name in plain.names})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert fused.n_updates == 3


def test_what_cannot_be_fused_is_updated_then_sketched():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    linear = nn.Linear(8, 3)
    for module, options in (
        (conv, {}),
        (linear, {"rowwise": ["*"]}),
        (linear, {"exclude": ["bias"]}),
    ):
        cache = GradientCache(module.named_parameters(), decay=0.5, **options)
        sketcher = CountSketch(module.named_parameters(), width=32, seed=0)
        gradients = {name: torch.randn_like(p) for name, p in module.named_parameters()}
        found = cache.update_and_sketch(gradients, sketcher)
        expected = sketcher.sketch({name: cache[name] for name in cache.names})
        assert torch.equal(found, expected)
    other = CountSketch([("x", nn.Parameter(torch.zeros(3)))], width=32, seed=0)
    with pytest.raises(GradientMismatchError, match="not part of this sketch"):
        cache.update_and_sketch(gradients, other)


def test_inner_products_are_kept_on_average_and_within_the_bound():
    x, y = (torch.randn(3000, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    y = y + 0.5 * x
    named = [("w", nn.Parameter(torch.zeros(3000)))]
    errors = []
    for seed in range(200):
        sketcher = CountSketch(named, width=128, seed=seed)
        estimate = sketcher.sketch({"w": x}).double() @ sketcher.sketch({"w": y}).double()
        errors.append(float(estimate) - float(x.double() @ y.double()))
    found = torch.tensor(errors)
    norms = float(x.norm()), float(y.norm())
    deviation = ((norms[0] * norms[1]) ** 2 + float(x @ y) ** 2) ** 0.5 / 128**0.5
    assert abs(found.mean()) < 4 * deviation / 200**0.5
    assert found.std() < 1.2 * deviation
    assert (found.abs() > sketcher.error_bound(*norms, probability=0.05)).float().mean() <= 0.05


def test_sketches_are_linear_and_seeded():
    named = [("a", nn.Parameter(torch.zeros(5, 8))), ("b", nn.Parameter(torch.zeros(100)))]
    sketcher = CountSketch(named, width=32, seed=1)
    a, b = torch.randn(5, 8), torch.randn(100)
    both = sketcher.sketch({"a": a, "b": b})
    torch.testing.assert_close(both, sketcher.sketch({"a": a}) + sketcher.sketch({"b": b}))
    assert torch.equal(both, CountSketch(named, width=32, seed=1).sketch({"a": a, "b": b}))
    assert not torch.equal(both, CountSketch(named, width=32, seed=2).sketch({"a": a, "b": b}))


def test_a_store_scores_against_any_cache_and_grows_over_restarts(tmp_path):
    named = [("w", nn.Parameter(torch.zeros(1000)))]
    sketcher = CountSketch(named, width=64, seed=0)
    gradients = torch.randn(5, 1000)
    store = SketchStore(tmp_path, sketcher)
    for i in range(3):
        store.append(f"unit {i}", sketcher.sketch({"w": gradients[i]}))
    store = SketchStore(tmp_path, sketcher)
    for i in range(3, 5):
        store.append(f"unit {i}", sketcher.sketch({"w": gradients[i]}))
    query = sketcher.sketch({"w": torch.randn(1000)})
    expected = torch.stack([sketcher.sketch({"w": g}).double() @ query.double() for g in gradients])
    torch.testing.assert_close(store.dots(query), expected)
    assert store.ids == [f"unit {i}" for i in range(5)]


@pytest.mark.parametrize("cut", ["row", "row without id", "half an id"])
def test_a_store_survives_being_killed_while_appending(tmp_path, cut):
    sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
    store = SketchStore(tmp_path, sketcher)
    for i in range(2):
        store.append(f"unit {i}", torch.full((32,), float(i)))
    rows, ids = tmp_path / "sketches.f32", tmp_path / "ids.jsonl"
    with rows.open("ab") as file:
        file.write(b"\1" * (60 if cut == "row" else 128))
    if cut == "half an id":
        with ids.open("a") as file:
            file.write('"uni')
    store = SketchStore(tmp_path, sketcher)
    assert store.ids == ["unit 0", "unit 1"]
    store.append("unit 2", torch.full((32,), 2.0))
    assert store.dots(torch.ones(32)).tolist() == [0.0, 32.0, 64.0]
    assert rows.stat().st_size == 3 * 128
    assert [json.loads(line) for line in ids.read_text().splitlines()] == store.ids


def test_opening_a_store_changes_nothing_that_a_writer_is_at(tmp_path):
    sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
    writer = SketchStore(tmp_path, sketcher)
    writer.append("a", torch.full((32,), 1.0))
    # The row of b is written, its id not yet, when another process opens the folder.
    rows, ids = tmp_path / "sketches.f32", tmp_path / "ids.jsonl"
    with rows.open("ab") as file:
        file.write(torch.full((32,), 2.0).numpy().tobytes())
        file.flush()
        reader = SketchStore(tmp_path, sketcher)
        assert reader.ids == ["a"]
        assert rows.stat().st_size == 2 * 128
        assert reader.dots(torch.ones(32)).tolist() == [32.0]
    with ids.open("a") as file:
        file.write('"b"\n')
    reader = SketchStore(tmp_path, sketcher)
    reader.append("c", torch.full((32,), 3.0))
    assert reader.ids == ["a", "b", "c"]
    assert SketchStore(tmp_path, sketcher).dots(torch.ones(32)).tolist() == [32.0, 64.0, 96.0]


def test_two_open_stores_see_each_other_when_they_append(tmp_path):
    sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
    first, second = (SketchStore(tmp_path, sketcher) for _ in range(2))
    for number, store in enumerate((first, second, second, first, second)):
        store.append(f"unit {number}", torch.full((32,), float(number)))
    assert second.ids == [f"unit {number}" for number in range(5)]
    assert second.dots(torch.ones(32)).tolist() == [32.0 * number for number in range(5)]


APPEND_MANY = """
import sys, torch
from torch import nn
from bsgal_score import CountSketch, SketchStore
sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
store = SketchStore(sys.argv[1], sketcher)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 40):
    store.append(str(number), torch.full((32,), float(number)))
"""


def test_processes_that_append_at_once_keep_rows_and_ids_together(tmp_path):
    command = [sys.executable, "-c", APPEND_MANY, str(tmp_path)]
    running = [subprocess.Popen([*command, str(start)]) for start in (0, 100, 200)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
    store = SketchStore(tmp_path, sketcher)
    assert sorted(map(int, store.ids)) == [start + i for start in (0, 100, 200) for i in range(40)]
    assert store.dots(torch.ones(32)).tolist() == [32.0 * int(one) for one in store.ids]


def test_a_damaged_store_is_named(tmp_path):
    sketcher = CountSketch([("w", nn.Parameter(torch.zeros(100)))], width=32, seed=0)
    store = SketchStore(tmp_path, sketcher)
    for i in range(2):
        store.append(f"unit {i}", torch.zeros(32))
    ids = tmp_path / "ids.jsonl"
    ids.write_bytes(b'"unit 0"\n"unit\n')
    with pytest.raises(StateMismatchError, match=r"ids\.jsonl, line 2 is damaged"):
        SketchStore(tmp_path, sketcher)
    (tmp_path / "meta.json").write_bytes(b"{")
    with pytest.raises(StateMismatchError, match=r"meta\.json is damaged"):
        SketchStore(tmp_path, sketcher)


def test_a_store_belongs_to_one_sketcher(tmp_path):
    named = [("w", nn.Parameter(torch.zeros(100)))]
    SketchStore(tmp_path, CountSketch(named, width=32, seed=0))
    with pytest.raises(StateMismatchError, match="belongs to other sketches"):
        SketchStore(tmp_path, CountSketch(named, width=32, seed=1))


def test_misuse_is_explained(tmp_path):
    named = [("w", nn.Parameter(torch.zeros(100)))]
    with pytest.raises(ValueError, match="`width` must be a power of two"):
        CountSketch(named, width=100, seed=0)
    sketcher = CountSketch(named, width=32, seed=0)
    with pytest.raises(GradientMismatchError, match="'v' is not part of this sketch"):
        sketcher.sketch({"v": torch.zeros(1)})
    with pytest.raises(GradientMismatchError, match=r"'w' must have shape \(100,\)"):
        sketcher.sketch({"w": torch.zeros(1)})
    with pytest.raises(GradientMismatchError, match="no gradient to sketch"):
        sketcher.sketch({})
    store = SketchStore(tmp_path, sketcher)
    with pytest.raises(ValueError, match=r"must be finite and of shape \(32,\)"):
        store.append("x", torch.full((32,), float("nan")))
    assert store.dots(torch.zeros(32)).shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_eight_large_gradients_in_a_wide_sketch():
    for seed in range(8):
        gradient = torch.randn(10**6, generator=torch.Generator().manual_seed(seed))
        kernel = ops.sketch([gradient.cuda()], [10**6], width=2**15, seed=seed, impl="triton")
        expected = reference.sketch([gradient], [10**6], 2**15, seed)
        # 31 blocks share a bucket.
        bound = 34 * 2.0**-24 * 31 * float(gradient.abs().max())
        torch.testing.assert_close(kernel.cpu(), expected, rtol=0, atol=bound)
