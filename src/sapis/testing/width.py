"""Does one learning rate fit all widths? The coordinate check (Yang et al., arXiv 2203.03466, appendix D.1).

Models of several widths make a few steps on the same batch. In each, every activation and its change must have the same size: a
change that grows with the width bounds the learning rate of wide models, one that shrinks means that a part does not learn there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sapis.data.batch import Batch, collate
from sapis.data.system import System
from sapis.model.edges import Slots
from sapis.model.layers import Attention, DegreeLinear, Gate, Product
from sapis.model.potential import TransformerPotential
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss
from sapis.training.optimizer import make_optimizer, weight_groups

WATCHED = (Attention, Product, DegreeLinear, Gate, nn.Linear)
Sizes = dict[str, dict[str, list[float]]]


def coordinates(potential: TransformerPotential, systems: Sequence[System], config: TrainingConfig, n_steps: int) -> Sizes:
    """Sizes of all activations while ``potential`` is trained (in place) at a constant learning rate.

    Returns:
        For each part of the model the root mean square of what it makes, ``"size"``, and of how far that has moved since the
        start, ``"change"``, each before the first step and after every step. ``"energy"`` is that of an atom.
    """
    batch = collate([potential.sample(system) for system in systems], cutoff=potential.cutoff, dtype=potential.dtype)
    optimizer = make_optimizer(weight_groups(potential), config)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["rate_factor"]
    start = activations(potential, batch)
    found: Sizes = {name: {"size": [_rms(value)], "change": [0.0]} for name, value in start.items()}
    for _ in range(n_steps):
        optimizer.zero_grad(set_to_none=True)
        energies, forces, virials = potential(batch, create_graph=True)
        loss(batch, energies, forces, virials, config, potential.scale).backward()
        optimizer.step()
        for name, value in activations(potential, batch).items():
            found[name]["size"].append(_rms(value))
            found[name]["change"].append(_rms(value - start[name]))
    return found


def activations(potential: TransformerPotential, batch: Batch) -> dict[str, torch.Tensor]:
    """What each part of the Transformer makes of ``batch``, and the energies of atoms in units of the force scale."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, result: torch.Tensor) -> None:
        found[name] = result.detach()

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in potential.transformer.named_modules()
             if isinstance(module, WATCHED)]
    try:
        with torch.no_grad():
            found["energy"] = potential.transformer(batch.species, batch.conditions, Slots.of(batch), batch.vectors)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def slopes(runs: Mapping[int, Sizes], quantity: str, step: int) -> dict[str, float]:
    """Exponent with which each part's ``"size"`` or ``"change"`` after ``step`` steps grows with the width: 0 if it does not.

    Args:
        runs: the result of `coordinates` for each width.
    """
    widths = np.log(list(runs))
    return {name: float(np.polyfit(widths, np.log([run[name][quantity][step] for run in runs.values()]), 1)[0])
            for name in next(iter(runs.values()))}


def mean_sizes(runs: Sequence[Sizes]) -> Sizes:
    """Of several seeds."""
    return {name: {quantity: np.mean([run[name][quantity] for run in runs], axis=0).tolist() for quantity in values}
            for name, values in runs[0].items()}


def average_runs(make: Callable[[int, int], TransformerPotential], systems: Sequence[System], config: TrainingConfig, *,
                 widths: Sequence[int], seeds: Sequence[int], n_steps: int) -> dict[int, Sizes]:
    """`coordinates` for each width, averaged over seeds; ``make(width, seed)`` gives an untrained potential."""
    return {width: mean_sizes([coordinates(make(width, seed), systems, config, n_steps) for seed in seeds]) for width in widths}


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
