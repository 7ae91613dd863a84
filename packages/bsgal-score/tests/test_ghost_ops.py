from __future__ import annotations

import pytest
import torch

from bsgal_score import reference
from bsgal_score.ops import ghost_dot, ghost_sqnorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNIT_ROUNDOFF = 2.0**-24
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def make_rows(n_rows, n_inputs, n_outputs, dtype=torch.float32, *, unaligned=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        values = torch.randn(*shape[:-1], shape[-1] + unaligned, generator=generator)
        return values.to(DEVICE, dtype)[..., int(unaligned) :]

    unit_index = torch.randint(-2, 4, (n_rows,), generator=generator).to(DEVICE)
    return (
        normal(n_outputs, n_inputs),
        normal(n_rows, n_inputs),
        normal(n_rows, n_outputs),
        unit_index,
    )


def absolute_products(weights, inputs, output_grads, unit_index):
    """Return Σ|δ||C||a| by unit, what the rounding bound of a dot product is relative to."""
    return reference.ghost_dot(weights.abs(), inputs.abs(), output_grads.abs(), unit_index, 5)


@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 65, 7), (130, 40, 129), (17, 500, 3)])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_dots_agree_with_formed_gradients(impl, shape, dtype, unaligned):
    weights, inputs, output_grads, unit_index = make_rows(*shape, dtype, unaligned=unaligned)
    got = ghost_dot(weights, inputs, output_grads, unit_index, 5, impl=impl)
    want = reference.ghost_dot(weights, inputs, output_grads, unit_index, 5)
    # A sum over inputs, a sum over outputs, two products; rows are added up in float64.
    depth = shape[1] + shape[2] + 3
    bound = depth * UNIT_ROUNDOFF * absolute_products(weights, inputs, output_grads, unit_index)
    assert got.dtype == torch.float64
    assert ((got - want).abs() <= bound).all()


@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 65, 7), (400, 40, 129), (17, 500, 3)])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_norms_agree_with_formed_gradients(impl, shape, dtype, unaligned):
    _, inputs, output_grads, unit_index = make_rows(*shape, dtype, unaligned=unaligned)
    got = ghost_sqnorm(inputs, output_grads, unit_index, 5, impl=impl)
    want = reference.ghost_sqnorm(inputs, output_grads, unit_index, 5)
    # Two Gram products and the sum over pairs (or the rows, then the squares); four times the
    # number of rows covers the longest chain in either order.
    absolute = reference.ghost_sqnorm(inputs.abs(), output_grads.abs(), unit_index, 5)
    depth = shape[1] + shape[2] + 4 * shape[0] + 3
    assert got.dtype == torch.float64
    assert ((got - want).abs() <= depth * UNIT_ROUNDOFF * absolute).all()


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_units_without_rows_are_zero(impl):
    weights, inputs, output_grads, _ = make_rows(9, 4, 3)
    nothing = torch.full((9,), -1, device=DEVICE)
    assert ghost_dot(weights, inputs, output_grads, nothing, 2, impl=impl).tolist() == [0, 0]
    assert ghost_sqnorm(inputs, output_grads, nothing, 2, impl=impl).tolist() == [0, 0]


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_the_order_of_rows_does_not_matter(impl):
    weights, inputs, output_grads, unit_index = make_rows(100, 30, 20)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    rows = (inputs, output_grads, unit_index)
    shuffled = [tensor[order] for tensor in rows]
    for op, first in ((ghost_dot, (weights,)), (ghost_sqnorm, ())):
        torch.testing.assert_close(
            op(*first, *rows, 4, impl=impl),
            op(*first, *shuffled, 4, impl=impl),
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_equal_inputs_give_equal_bits(impl):
    weights, inputs, output_grads, unit_index = make_rows(100, 30, 20)
    for op, first in ((ghost_dot, (weights,)), (ghost_sqnorm, ())):
        results = [op(*first, inputs, output_grads, unit_index, 4, impl=impl) for _ in range(2)]
        assert torch.equal(*results)


def test_float64_is_exact_to_float64_rounding_in_torch():
    weights, inputs, output_grads, unit_index = make_rows(200, 30, 20, torch.float64)
    for op, define, first in (
        (ghost_dot, reference.ghost_dot, (weights,)),
        (ghost_sqnorm, reference.ghost_sqnorm, ()),
    ):
        rows = (*first, inputs, output_grads, unit_index, 4)
        torch.testing.assert_close(op(*rows, impl="torch"), define(*rows), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit_index": torch.zeros(5).long()}, r"`unit_index` must be int64 of shape \(6,\)"),
        ({"unit_index": torch.zeros(6)}, "got torch.float32"),
        ({"n_units": 0}, "`n_units` must be at least 1"),
        ({"unit_index": torch.full((6,), 2)}, "a largest index of 2"),
        ({"output_grads": torch.zeros(5, 3)}, "`output_grads` must have 6 rows"),
        ({"inputs": torch.zeros(6, 0)}, "must be non-empty"),
        ({"weights": torch.zeros(4, 3)}, r"`weights` must have shape \(3, 4\)"),
    ],
)
def test_bad_rows_are_named(change, message):
    operands = {
        "weights": torch.zeros(3, 4),
        "inputs": torch.zeros(6, 4),
        "output_grads": torch.zeros(6, 3),
        "unit_index": torch.zeros(6).long(),
        "n_units": 2,
    }
    with pytest.raises(ValueError, match=message):
        ghost_dot(**(operands | change))
    if "weights" not in change:
        del operands["weights"]
        with pytest.raises(ValueError, match=message):
            ghost_sqnorm(**(operands | change))


def test_triton_refuses_float64_with_the_remedy():
    pytest.importorskip("triton")
    weights, *rows = make_rows(3, 4, 5, torch.float64)
    with pytest.raises(ValueError, match="float64; use impl='torch'"):
        ghost_dot(weights, *rows, 4, impl="triton")
    with pytest.raises(ValueError, match="float64; use impl='torch'"):
        ghost_sqnorm(*rows, 4, impl="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_rows_beyond_what_int32_counts():
    n_rows, n_inputs = 2**15 + 1, 2**16  # the last row begins at element 2**31
    inputs = torch.zeros(n_rows, n_inputs, dtype=torch.bfloat16, device="cuda")
    inputs[-1] = 1
    output_grads = torch.ones(n_rows, 2, dtype=torch.bfloat16, device="cuda")
    weights = torch.ones(2, n_inputs, dtype=torch.bfloat16, device="cuda")
    unit_index = torch.zeros(n_rows, dtype=torch.int64, device="cuda")
    dot = ghost_dot(weights, inputs, output_grads, unit_index, 1, impl="triton")
    assert dot.tolist() == [2.0 * n_inputs]
    last = unit_index - 1
    last[-1] = 0
    sqnorm = ghost_sqnorm(inputs, output_grads, last, 1, impl="triton")
    assert sqnorm.tolist() == [2.0 * n_inputs]
