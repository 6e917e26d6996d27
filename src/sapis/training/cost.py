"""Arithmetic of a training step, counted once and scaled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sapis.data.batch import collate, prepare
from sapis.data.system import System
from sapis.model.potential import TransformerPotential
from sapis.model.backend import backend


class _MatrixProducts(TorchDispatchMode):
    """Adds up the FLOPs of matrix products; torch's own counter has module hooks that a force loss does not survive."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def training_flops(potential: TransformerPotential) -> Callable[[int, int], float]:
    """FLOPs of one training step (energy, forces, double backward) as a function of atoms and slots.

    The count is linear in atoms and, per atom, linear in slots, so two counts determine it. It is that of the matrix products
    with dense tables over all slots: the compiled loops do less.
    """
    element = potential.elements[0]

    def count(n_atoms: int) -> int:
        positions = np.random.default_rng(0).normal(size=(n_atoms, 3)) * 0.2 * potential.cutoff
        sample = prepare(System(numbers=np.full(n_atoms, element), positions=positions), elements=potential.elements,
                         cutoff=10 * potential.cutoff)
        batch = collate([sample], cutoff=potential.cutoff, dtype=potential.dtype)
        with backend("padded"), _MatrixProducts() as counter:
            energies, forces, virials = potential(batch, create_graph=True)
            total = energies.sum() + forces.square().sum() + virials.sum()
            torch.autograd.grad(total, list(potential.parameters()), allow_unused=True)
        return counter.flops // n_atoms

    few, many = count(5), count(9)  # 4 and 8 slots
    slope = (many - few) / 4
    return lambda n_atoms, n_slots: n_atoms * (few + slope * (n_slots - 4))
