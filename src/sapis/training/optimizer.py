"""Optimiser, learning-rate schedule, running mean of the weights."""

from __future__ import annotations

import math

import torch

from sapis.training.config import TrainingConfig
from sapis.training.muon import Muon


def make_optimizer(parameters: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Muon, or Adam with AMSGrad."""
    if config.optimizer == "muon":
        return Muon(parameters, lr=config.learning_rate)
    return torch.optim.Adam(parameters, lr=config.learning_rate, amsgrad=True, foreach=True)


def learning_rate(config: TrainingConfig, *, step: int, progress: float) -> float:
    """Linear warm-up over steps, then half a cosine over ``progress`` from 0 to 1."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
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
