"""What all tests of this package share."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

# Triton reads this when a kernel module is imported, so it has to be set before any of them is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the kernels out where Triton is not installed; PyTorch brings it on Linux only."""
    if importlib.util.find_spec("triton") is not None:
        return
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("impl") == "triton":
            item.add_marker(pytest.mark.skip(reason="needs triton"))


@pytest.fixture
def nan_filled_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.empty` return NaN, so that an element a kernel leaves unwritten shows."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
