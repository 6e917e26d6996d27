"""Optimiser, learning-rate schedule, running mean of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from sapis.model.axes import rate_factors, reads
from sapis.model.potential import TransformerPotential
from sapis.training.config import TrainingConfig
from sapis.training.muon import Muon

ROOT_AFTER = 1000  # steps after which a learning rate with a cooldown falls


def weight_groups(potential: TransformerPotential) -> list[dict[str, Any]]:
    """The weights in groups that are treated alike, as optimisers take them; they are numbered in this order.

    Each group holds its ``params``, their ``names``, the ``rate_factor`` by which the learning rate of the default width is
    multiplied (1 at that width), and whether they may be matrices (``has_matrices``) or are tables.
    """
    known = potential.transformer, potential.elements, potential.conditions
    has_matrices = reads(*known)
    groups: dict[tuple[float, bool], list[str]] = defaultdict(list)
    for name, factor in rate_factors(*known).items():
        groups[factor, has_matrices[name]].append(f"transformer.{name}")
    return [{"params": [potential.get_parameter(name) for name in names], "names": names, "rate_factor": factor,
             "has_matrices": is_read} for (factor, is_read), names in sorted(groups.items())]


def make_optimizer(parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]], config: TrainingConfig,
                   ) -> torch.optim.Optimizer:
    """Muon, or Adam with AMSGrad, of weights or groups of them."""
    if config.optimizer == "muon":
        return Muon(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.Adam(parameters, lr=config.learning_rate, amsgrad=True, foreach=True)


def optimizer_flops(optimizer: torch.optim.Optimizer) -> int:
    """Of the matrix products of its last step: Adam has none."""
    return optimizer.flops if isinstance(optimizer, Muon) else 0


def learning_rate(config: TrainingConfig, *, step: int, progress: float, warm_from: int = 0) -> float:
    """Linear warm-up over the steps since ``warm_from``, then half a cosine over ``progress`` from 0 to 1.

    With a cooldown: after `ROOT_AFTER` steps one over their root, which knows no end, and at last a straight line to zero.
    """
    warmup = min(1.0, (step - warm_from + 1) / (config.warmup_steps + 1))
    if config.cooldown is not None:
        falling = min(1.0, math.sqrt(ROOT_AFTER / max(step, 1)))
        return config.learning_rate * warmup * falling * min(1.0, max(1.0 - progress, 0.0) / config.cooldown)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class RunningMean:
    """Exponential running mean of weights; early on it forgets faster, so that the first weights leave no trace."""

    def __init__(self, parameters: dict[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.Tensor], step: int) -> None:
        """Move towards ``parameters``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means = list(self.values.values())
        torch._foreach_lerp_(means, [parameters[name] for name in self.values], 1 - decay)
