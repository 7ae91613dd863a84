"""The optimizer of a recipe, and its rate at every step."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn

from bsgal_train.recipe import OptimizerConfig, Recipe, ScheduleConfig

__all__ = ["build_optimizer", "learning_rate", "peak_learning_rate"]

logger = logging.getLogger(__name__)


def build_optimizer(detector: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and kernels, and norms and biases if they are to."""
    parameters = [p for p in detector.parameters() if p.requires_grad]
    rest_decay = config.weight_decay if config.decay_all else 0.0
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": rest_decay},
        ],
        lr=config.lr,
    )


def learning_rate(step: int, lr: float, schedule: ScheduleConfig) -> float:
    """Return the rate of a step, counted from 1: linear warm-up, then cosine."""
    if step <= schedule.warmup_steps:
        return lr * step / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(schedule.n_steps - schedule.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return lr * (schedule.final_lr_factor + (1 - schedule.final_lr_factor) * cosine)


def peak_learning_rate(recipe: Recipe) -> float:
    """Return the recipe's rate at the batch size it runs with, and log where that changes it.

    The rate of Adam goes with the root of the batch size (arXiv 2205.10287); the number of steps is
    the recipe's, whatever the batch.
    """
    config, meant = recipe.optimizer, recipe.optimizer.lr_batch_size
    batch = recipe.schedule.batch_size
    if meant in (0, batch):
        return config.lr
    lr = config.lr * math.sqrt(batch / meant)
    logger.warning(
        "the recipe's rate %g is meant for batches of %d; with %d it is %g (root of their ratio). "
        "To see as many images, %d steps would be needed instead of %d; schedule.n_accumulate "
        "runs large batches in parts",
        config.lr, meant, batch, lr,
        round(recipe.schedule.n_steps * meant / batch), recipe.schedule.n_steps,
    )  # fmt: skip
    return lr
