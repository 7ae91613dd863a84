from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from bsgal_score import _unit_sqnorms
from bsgal_score._linear_maps import LINEAR_MAPS, LinearCall
from bsgal_score._unit_sqnorms import unit_sqnorms

INDEX = torch.tensor([0, 2, -1, 0, -2, 2, 0])
N_UNITS = 4  # two of them without rows

LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 6)),
    "wide conv": (nn.Conv2d(4, 30, (3, 2), padding=(2, 0)), (4, 3, 3)),
    "dilated grouped": (nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding=2), (4, 6, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 6, 5)),
    "same, uneven": (nn.Conv2d(4, 3, (4, 3), padding="same", dilation=(1, 2)), (4, 6, 5)),
    "valid": (nn.Conv2d(4, 3, 2, padding="valid"), (4, 6, 5)),
    "one axis": (nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 9)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 6, 5),
    ),
    "transposed, one axis": (nn.ConvTranspose1d(4, 3, 4, stride=3, dilation=2), (4, 6)),
    "group norm": (nn.GroupNorm(2, 4), (4, 6, 5)),
    "layer norm": (nn.LayerNorm(8), (8,)),
    "layer norm over positions": (nn.LayerNorm(8), (3, 5, 8)),
    "layer norm over two axes": (nn.LayerNorm((4, 8)), (3, 4, 8)),
    "frozen batch norm": (nn.BatchNorm2d(4).eval(), (4, 3, 2)),
}  # fmt: skip


def record(layer, inputs):
    """Call a layer and return the call as it is recorded, without a graph."""
    calls = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in LINEAR_MAPS:
                arguments = dict(zip(LINEAR_MAPS[func], args, strict=False)) | (kwargs or {})
                calls.append((func, arguments))
            return func(*args, **(kwargs or {}))

    with Watch():
        outputs = layer(inputs)
    function, arguments = calls[0]
    roles = {r: r for r in ("weight", "bias") if arguments.get(r) is not None}
    return LinearCall(function, arguments, roles, edge=None), outputs


def by_autograd(layer, rows):
    """Form every unit's gradient, over all calls."""
    expected = torch.zeros(N_UNITS, dtype=torch.float64)
    for unit in range(N_UNITS):
        losses = [
            (layer(inputs[index == unit]) * grads[index == unit]).sum()
            for inputs, index, grads in rows
        ]
        found = torch.autograd.grad(sum(losses), list(layer.parameters()))
        expected[unit] = sum(float(g.square().sum()) for g in found)
    return expected


# Torch remarks that an even window with "same" padding costs it a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("block", [1 << 22, 8000])
@pytest.mark.parametrize("name", LAYERS)
def test_norms_equal_those_of_formed_gradients(name, block, monkeypatch):
    monkeypatch.setattr(_unit_sqnorms, "_BLOCK_ELEMENTS", block)
    layer, shape = LAYERS[name]
    layer = layer.double()
    torch.manual_seed(0)
    inputs = torch.randn(len(INDEX), *shape).double()
    call, outputs = record(layer, inputs)
    grads = torch.randn_like(outputs)
    found = unit_sqnorms([(call, INDEX, grads)], N_UNITS, "torch")
    assert found is not None
    torch.testing.assert_close(found, by_autograd(layer, [(inputs, INDEX, grads)]))


def test_rows_of_several_calls_belong_to_one_gradient():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    rows, calls = [], []
    for height, index in ((5, INDEX), (3, INDEX.flip(0)[:4])):
        inputs = torch.randn(len(index), 3, height, 4).double()
        call, outputs = record(layer, inputs)
        grads = torch.randn_like(outputs)
        rows.append((inputs, index, grads))
        calls.append((call, index, grads))
    found = unit_sqnorms(calls, N_UNITS, "torch")
    torch.testing.assert_close(found, by_autograd(layer, rows))


def test_what_is_better_formed_one_by_one_is_left_to_the_caller(monkeypatch):
    index = torch.zeros(2, dtype=torch.int64)
    call, outputs = record(nn.Conv3d(1, 1, 2), torch.randn(2, 1, 3, 3, 3))
    assert unit_sqnorms([(call, index, torch.ones_like(outputs))], 1, "torch") is None
    call, outputs = record(nn.Embedding(3, 2), torch.tensor([[1], [2]]))
    assert unit_sqnorms([(call, index, torch.ones_like(outputs))], 1, "torch") is None
    call, outputs = record(nn.Conv2d(1, 1, 2), torch.randn(2, 1, 3, 3))
    assert unit_sqnorms([(call, index, torch.ones_like(outputs))], 1, "torch") is not None
    monkeypatch.setattr(_unit_sqnorms, "_BLOCK_ELEMENTS", 20)
    assert unit_sqnorms([(call, index, torch.ones_like(outputs))], 1, "torch") is None


def test_functional_calls_with_defaults_are_understood():
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(7, 3, 4, 4).double()
    outputs = functional.conv2d(inputs, weight)
    grads = torch.randn_like(outputs)
    call = LinearCall(functional.conv2d, {"input": inputs, "weight": weight}, {"weight": "w"}, None)
    found = unit_sqnorms([(call, INDEX, grads)], N_UNITS, "torch")
    chosen = INDEX == 2
    (expected,) = torch.autograd.grad((outputs * grads)[chosen].sum(), weight)
    assert float(found[2]) == pytest.approx(float(expected.square().sum()))
