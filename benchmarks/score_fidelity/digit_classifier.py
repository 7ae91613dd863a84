"""The classifier's setting: a small convolutional network on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .scenes import digits
from .setting import Gradients, Memory, Setting, gradients, total

BATCH = 16
N_STEPS = 1500
N_TAIL = 60
RATES = {"sgd": 0.1, "adamw": 1e-3}


def make_setting(optimizer_name: str, seed: int, *, n_candidates: int, quick: bool) -> Setting:
    """Train on 300 scans and draw candidates: a third each clean, noisy, mislabelled."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    scans, numbers = digits()
    images, labels = torch.from_numpy(scans)[:, None], torch.from_numpy(numbers)
    order = torch.from_numpy(rng.permutation(len(images)))
    training, reference, pool, new = order.split([300, 256, 600, len(order) - 1156])
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    make: Callable[..., Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer_name]
    optimizer = make(model.parameters(), lr=RATES[optimizer_name])
    memory = Memory.of(model, optimizer, rowwise=["9.*"])

    def loss(rows: Tensor) -> Tensor:
        return functional.cross_entropy(model(images[rows]), labels[rows])

    def feed() -> None:
        fresh = pool[torch.from_numpy(rng.integers(len(pool), size=32))]
        memory.feed(
            gradients(model, loss(fresh)), labels[fresh].unique(), gradients(model, loss(reference))
        )

    n_steps = 100 if quick else N_STEPS
    for step in range(n_steps):
        if step >= n_steps - N_TAIL:
            feed()
        optimizer.zero_grad()
        loss(training[torch.from_numpy(rng.integers(300, size=BATCH))]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    feed()

    chosen = new[:n_candidates]
    x, y = images[chosen].clone(), labels[chosen].clone()
    third = n_candidates // 3
    x[:third] += torch.randn_like(x[:third]) * 2 * torch.rand(third, 1, 1, 1)
    y[third : 2 * third] += torch.randint(1, 10, (third,))
    y %= 10

    def candidate_loss(i: int) -> Tensor:
        return functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / BATCH

    candidates: list[Gradients] = [gradients(model, candidate_loss(i)) for i in range(n_candidates)]
    rest = training[torch.from_numpy(rng.integers(300, size=BATCH - 1))]
    return Setting(
        model=model,
        optimizer=optimizer,
        reference_loss=lambda: loss(reference),
        rest=gradients(model, loss(rest) * (BATCH - 1) / BATCH),
        candidates={
            "image": candidates,
            "batch": [
                total([candidates[i] for i in rng.permutation(n_candidates)[:BATCH]])
                for _ in range(n_candidates)
            ],
        },
        head_modules=[model[7], model[9]],
        head_excludes=["0.*", "3.*"],
        ghost_passes={
            "image": [
                lambda i=i: (candidate_loss(i), torch.zeros(1, dtype=torch.int64))
                for i in range(n_candidates)
            ]
        },
        memory=memory,
        quality={"accuracy": (model(images[new]).argmax(1) == labels[new]).double().mean().item()},
    )
