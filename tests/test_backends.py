"""The compiled loops and the matrix products are the same model; derivatives of the loops are right to second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ELEMENTS, cluster, crystal, small_potential
from sapis.data.batch import Batch, collate, prepare
from sapis.data.system import System
from sapis.model import fused
from sapis.model.config import ModelConfig
from sapis.model.layers import Coupling
from sapis.model.potential import TransformerPotential
from sapis.so3.contraction import is_compiled, matrix_products_only
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss

LONE = System(numbers=[8], positions=np.zeros((1, 3)))
SYSTEMS = [cluster(6), LONE, crystal(4), cluster(9, seed=2)]
EQUAL = 1e-10

pytestmark = pytest.mark.skipif(not is_compiled(torch.zeros(1)), reason="numba is not installed")


def labelled_batch(potential: TransformerPotential, systems: list[System] = SYSTEMS) -> Batch:
    random = np.random.default_rng(0)
    frames = [System(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=s.pbc, energy=float(random.normal()),
                     forces=random.normal(size=s.positions.shape)) for s in systems]
    samples = [prepare(frame, elements=potential.elements, cutoff=potential.cutoff) for frame in frames]
    return collate(samples, cutoff=potential.cutoff, dtype=potential.dtype)


def outcome(potential: TransformerPotential, batch: Batch) -> dict[str, torch.Tensor]:
    """Energies, forces, virials and the gradient of the loss by every weight."""
    potential.zero_grad()
    energies, forces, virials = potential(batch, create_graph=True)
    loss(batch, energies, forces, virials, TrainingConfig(epochs=1), 1.0).backward()
    return {"energies": energies.detach(), "forces": forces.detach(), "virials": virials.detach(),
            **{name: torch.zeros(1) if weight.grad is None else weight.grad.clone()
               for name, weight in potential.named_parameters()}}


@pytest.mark.parametrize("options", [
    {}, {"l_max": 1}, {"l_max": 3, "l_max_carried": 2}, {"order": 1}, {"order": 2}, {"n_layers": 1}, {"n_layers": 3},
    {"l_max": 0, "l_max_carried": 0}, {"n_heads": 2}, {"n_radial": 5}, {"n_channels": 24, "n_channels_carried": 16},
], ids=str)
def test_both_give_the_same(options: dict[str, int]) -> None:
    potential = small_potential(**options)
    batch = labelled_batch(potential)
    compiled = outcome(potential, batch)
    with matrix_products_only():
        products = outcome(potential, batch)
    for name, value in products.items():
        scale = value.abs().max().clamp(min=1e-12)
        assert float((compiled[name] - value).abs().max() / scale) < EQUAL, name


def test_a_large_batch_is_worked_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """More atoms than a group holds, with a last group that is not full."""
    systems = [cluster(9, seed=seed) for seed in range(9)]
    potential = small_potential()
    whole = outcome(potential, labelled_batch(potential, systems))
    n_grouped = max(4, 98_304 // (35 * 16))
    assert sum(len(system) for system in systems) < n_grouped, "one group holds the small model's batch"
    parts = [outcome(potential, labelled_batch(potential, [system]))["energies"] for system in systems]
    assert torch.allclose(torch.cat(parts), whole["energies"], rtol=1e-12, atol=1e-12)
    wide = TransformerPotential(ModelConfig(cutoff=3.5, n_channels=128, n_channels_carried=32), elements=ELEMENTS,
                                reference_energies=[0.0] * len(ELEMENTS), scale=1.0, average_neighbors=5.0, precision="float64")
    batch = labelled_batch(wide, systems)
    assert len(batch.species) > 98_304 // (9 * 8 * 128), "several groups hold the wide model's"
    compiled = outcome(wide, batch)
    with matrix_products_only():
        products = outcome(wide, batch)
    assert all(float((compiled[name] - products[name]).abs().max()) < EQUAL * float(products[name].abs().max() + 1e-9)
               for name in products)


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def couple_case() -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    coupling = Coupling(2, 2, 1, 3, 2, torch.float64)
    one, other = tensors((9, 4, 3), (9, 4, 3))
    weight = coupling.weight.detach().flatten(0, 1).requires_grad_()
    return lambda *inputs: fused.couple(coupling.plan, *inputs), [one, other, weight]


def collect_case() -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    n_radial, n_carried, slots = 2, 2, 3
    coupling = Coupling(1, 1, 1, n_radial * n_carried, 2, torch.float64, n_radial=n_radial)
    senders, counts = torch.tensor([[1, 2, 0], [0, 1, 1], [0, 2, 2], [3, 3, 3]]), torch.tensor([2, 1, 1, 0])
    heads = fused.Heads(np.array([0, 0, 1, 1]), np.array([0, 1] * 4), 0.7)
    inputs = tensors((4, 4), (4, 4), (4, 4 * n_carried), (4, slots, n_radial), (4, slots, 4), (n_radial, 2))
    weight = coupling.weight.detach().flatten(0, 1).requires_grad_()
    return lambda *inputs: fused.collect(coupling.plan, heads, senders, counts, *inputs), [*inputs, weight]


def weigh_case() -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    species = torch.tensor([0, 1, 1])
    return lambda *inputs: fused.weigh(*inputs, species, 1), tensors((9, 3, 2), (4, 3, 2), (2, 2, 3, 2))


CASES: dict[str, Callable[[], tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]] = {
    "couple": couple_case, "collect": collect_case, "weigh": weigh_case,
    "linear": lambda: (fused.linear, tensors((9, 3, 4), (2, 4, 5))),
    "norm": lambda: (lambda values: fused.norm(values, 3, 0.4), tensors((4, 6))),
    "swiglu": lambda: (lambda wide: fused.swiglu(wide, 3), tensors((4, 8))),
    "gate": lambda: (lambda *inputs: fused.gate(*inputs, 2), tensors((9, 3, 2), (3, 6), (3, 2))),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_right_to_second_order(name: str) -> None:
    function, inputs = CASES[name]()
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_derivative_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused.Operation.run

    def wrong(self: fused.Operation, kind: str, *operands: torch.Tensor, **options: Any) -> None:
        right(self, kind, *operands, **options)
        if kind == "_double_backward":
            operands[0].mul_(1.01)

    monkeypatch.setattr(fused.Operation, "run", wrong)
    function, inputs = CASES[name]()
    assert not torch.autograd.gradgradcheck(function, inputs, raise_exception=False)


def test_forces_alone_cost_no_gradients_by_weights() -> None:
    """Within `constant_weights` the backward pass gives the same forces and no gradient by a weight."""
    function, inputs = couple_case()
    out = function(*inputs)
    with fused.constant_weights():
        gradients = torch.autograd.grad(out.sum(), inputs, allow_unused=True)
    whole = torch.autograd.grad(function(*inputs).sum(), inputs)
    assert gradients[2] is None
    assert torch.equal(gradients[0], whole[0]) and torch.equal(gradients[1], whole[1])


def test_a_number_that_is_not_finite_stays_visible() -> None:
    potential = small_potential("float32")
    with torch.no_grad():
        potential.transformer.embedding[0, 0] = float("nan")
    energies, _, _ = potential(labelled_batch(potential))
    assert torch.isnan(energies).any()
