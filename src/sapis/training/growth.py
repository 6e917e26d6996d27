"""A training goes on with a larger model: its weights, their running mean and the optimiser's state grow together."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import torch

from sapis.model.growth import Growth, Place
from sapis.model.potential import TransformerPotential
from sapis.potential.bundle import write_tensors
from sapis.training.loop import BEST, CHECKPOINT, Training, read_checkpoint
from sapis.training.optimizer import weight_groups

Moments = dict[str, torch.Tensor]


def grow_checkpoint(source: Path, growth: Growth, target: Training) -> None:
    """Write the state of the training in ``source``, grown, to where ``target`` takes it up; a checkpoint there already is kept.

    Steps, costs and history go on, so that the schedule does, if both trainings have the same budget. Only the learning rate
    rises from zero once more: all new weights that read into one outcome move alike at first, and at full speed would undo much
    of what was learned.

    Args:
        source: folder of a training of the smaller potential.
        growth: from that potential (with any weights) to the one of ``target``.
        target: training of the larger potential that has not run.

    Raises:
        FileError: no whole checkpoint in ``source``.
    """
    if (target.folder / CHECKPOINT).exists():
        return
    tensors, state = read_checkpoint(source / CHECKPOINT)
    parts: dict[str, Moments] = defaultdict(dict)
    for name, tensor in tensors.items():
        kind, rest = name.split(".", 1)
        parts[kind][rest] = tensor
    grown = {f"{kind}.{name}": value for kind in ("weights", "mean") for name, value in growth.weights(parts[kind]).items()}
    for index, moments in _grown_moments(parts["optimizer"], growth, target).items():
        grown |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    if state["history"]:
        best, header = read_checkpoint(source / BEST)
        write_tensors(target.folder / BEST, growth.weights(best), header)
    write_tensors(target.folder / CHECKPOINT, grown, {
        **state, "warm_from": state["step"], "identity": target.identity,
    })


def _grown_moments(old: Moments, growth: Growth, target: Training) -> dict[int, Moments]:
    """The optimiser's state by the number of the weight; a weight that is all new has none, as at the start of a training."""
    by_weight: dict[int, Moments] = defaultdict(dict)
    for name, value in old.items():
        index, moment = name.split(".", 1)
        by_weight[int(index)][moment] = value
    numbers, new_numbers = _numbers(growth.small), _numbers(target.potential)
    return {
        new_numbers[name]: _grown_state(by_weight[numbers[place.origin]], place, growth.fresh[name].shape)
        for name, place in growth.places.items() if numbers[place.origin] in by_weight
    }


def _numbers(potential: TransformerPotential) -> dict[str, int]:
    """Of each weight in the optimiser."""
    names = [name for group in weight_groups(potential) for name in group["names"]]
    return {name: number for number, name in enumerate(names)}


def _grown_state(old: Moments, place: Place, shape: torch.Size) -> Moments:
    """Numbers stay; what has the weight's size is placed as its entries are; all else (factors of it) starts anew.

    Torch's names: a mean of squares ends in ``_sq``.
    """
    if place.is_same:
        return old
    grown: Moments = {}
    for name, value in old.items():
        if value.ndim == 0:
            grown[name] = value
        elif value.numel() == math.prod(place.old_shape):
            # With the number of steps far on, a mean of squares that starts at zero would make the first steps of new entries
            # several times as long as those of the others; a momentum has no such effect.
            start = float(value.mean()) if name.endswith("_sq") else 0.0
            grown[name] = place.placed(value, torch.full(shape, start, dtype=value.dtype))
    return grown
