"""The back-ends are the same model; derivatives of the loops are right to second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ELEMENTS, cluster, crystal, small_potential
from sapis.core.errors import ModelError
from sapis.data.batch import Batch, collate, prepare
from sapis.data.system import System
from sapis.model import compiled
from sapis.model.backend import BACKENDS, MAX_PADDING, backend, backend_of, fastest
from sapis.model.compiled.mixing import GROUP_SIZE
from sapis.model.config import ModelConfig
from sapis.model.edges import EdgeList
from sapis.model.layers import Coupling
from sapis.model.potential import TransformerPotential
from sapis.so3.harmonics import Harmonics
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss

LONE = System(numbers=[8], positions=np.zeros((1, 3)))
SYSTEMS = [cluster(6), LONE, crystal(4), cluster(9, seed=2)]
EQUAL = 1e-10


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
    {"zbl": True},
], ids=str)
def test_all_give_the_same(options: dict[str, int]) -> None:
    """Energies, forces, virials and every gradient by a weight; among the atoms are some without neighbours."""
    potential = small_potential(**options)
    batch = labelled_batch(potential)
    found = {}
    for chosen in BACKENDS:
        with backend(chosen):
            assert backend_of(batch) == chosen
            found[chosen] = outcome(potential, batch)
    for chosen, other in (("compiled", "padded"), ("edges", "padded")):
        for name, value in found[other].items():
            scale = value.abs().max().clamp(min=1e-12)
            assert float((found[chosen][name] - value).abs().max() / scale) < EQUAL, (chosen, name)


def test_lone_atoms_only() -> None:
    potential = small_potential()
    for chosen in BACKENDS:
        with backend(chosen):
            found = outcome(potential, labelled_batch(potential, [LONE, LONE]))
        assert not found["forces"].any() and torch.isfinite(found["transformer.embedding"]).all()


def test_the_list_of_edges_is_that_of_the_batch() -> None:
    """Every edge once, in one group; a group is not wider than twice what its atoms need."""
    batch = labelled_batch(small_potential())
    links, n_edges = EdgeList.of(batch), int(batch.counts.sum())
    assert torch.equal(torch.bincount(links.receivers, minlength=len(batch.species)), batch.counts)
    members = torch.cat([group.flatten() for group in links.groups])
    assert torch.equal(members[members < n_edges].sort().values, torch.arange(n_edges))
    for group in links.groups:
        assert ((group < n_edges).sum(1).clamp(min=1) * 2 >= group.shape[1]).all()


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = labelled_batch(small_potential())
    assert backend_of(batch) == "compiled"
    monkeypatch.setattr("sapis.model.backend.has_loops", lambda: False)
    n_slots, n_edges = batch.senders.numel(), int(batch.counts.sum())
    assert backend_of(batch) == fastest(n_slots=n_slots, n_edges=n_edges)
    assert fastest(n_slots=100, n_edges=100) == "padded" and fastest(n_slots=int(100 * MAX_PADDING) + 1, n_edges=100) == "edges"
    with pytest.raises(ModelError, match="numba"), backend("compiled"):
        backend_of(batch)
    with pytest.raises(ModelError, match="compiled, padded, edges"), backend("scatter"):
        pass


def test_a_large_batch_is_worked_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """More atoms than a group holds, with a last group that is not full."""
    systems = [cluster(9, seed=seed) for seed in range(9)]
    potential = small_potential()
    whole = outcome(potential, labelled_batch(potential, systems))
    n_grouped = max(4, GROUP_SIZE // (35 * 16))
    assert sum(len(system) for system in systems) < n_grouped, "one group holds the small model's batch"
    parts = [outcome(potential, labelled_batch(potential, [system]))["energies"] for system in systems]
    assert torch.allclose(torch.cat(parts), whole["energies"], rtol=1e-12, atol=1e-12)
    wide = TransformerPotential(ModelConfig(cutoff=3.5, n_channels=128, n_channels_carried=32, n_heads=8), elements=ELEMENTS,
                                reference_energies=[0.0] * len(ELEMENTS), scale=1.0, average_neighbors=5.0, precision="float64")
    batch = labelled_batch(wide, systems)
    n_rows = wide.transformer.layers[1].attention.coupling.couplings.layouts[0].size
    assert len(batch.species) > GROUP_SIZE // (n_rows * 32), "several groups hold the wide model's"
    loops = outcome(wide, batch)
    with backend("padded"):
        products = outcome(wide, batch)
    assert all(float((loops[name] - products[name]).abs().max()) < EQUAL * float(products[name].abs().max() + 1e-9)
               for name in products)


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape) for shape in shapes]


def one_coupling(**options: Any) -> Coupling:
    torch.manual_seed(0)
    return Coupling(2, 2, 1, 3, 2, torch.float64, **options)


def couple_case() -> Case:
    coupling = one_coupling()
    rows = coupling.couplings.layouts[0]
    paths = (*rows[:3], *coupling.couplings.rows, coupling.couplings.values[torch.float64])
    weight = coupling.weight.detach().flatten(0, 1).numpy()
    return (4, 4, 2), [*arrays((9, 4, 3), (9, 4, 3)), weight], (paths, coupling.widths, rows.size), True


def collect_case() -> Case:
    n_radial, n_carried, slots = 2, 2, 3
    coupling = Coupling(1, 1, 1, n_radial * n_carried, 2, torch.float64, n_radial=n_radial)
    senders, counts = np.array([[1, 2, 0], [0, 1, 1], [0, 2, 2], [3, 3, 3]]), np.array([2, 1, 1, 0])
    rows, density = coupling.couplings.layouts
    couplings = (*rows[:3], density.starts, density.inner_stride, coupling.couplings.starts, coupling.couplings.rows[1],
                 coupling.couplings.values[torch.float64])
    inputs = arrays((4, 4), (4, 4), (4, 4 * n_carried), (4, slots, n_radial), (4, slots, 4), (n_radial, 2))
    constants = (couplings, coupling.widths, rows.size, senders, counts, np.array([0, 0, 1, 1]), np.array([0, 1] * 4), 0.7)
    return (4, 4, 2), [*inputs, coupling.weight.detach().flatten(0, 1).numpy()], constants, True


SPECIES = np.array([0, 1, 1])
COUNTS = np.array([2, 1, 0])
Case = tuple[tuple[int, ...], list[np.ndarray], tuple[Any, ...], bool]
CASES: dict[str, Callable[[], Case]] = {
    "couple": couple_case,
    "collect": collect_case,
    "weigh": lambda: ((9, 3, 2), arrays((9, 3, 2), (4, 3, 2), (2, 2, 3, 2)), (SPECIES, 1), True),
    "linear": lambda: ((4, 3, 5), arrays((9, 3, 4), (2, 4, 5)), (), True),
    "norm": lambda: ((4, 6), arrays((4, 6)), (0.4, 3, 0.3), False),
    "swiglu": lambda: ((4, 3), arrays((4, 8)), (), False),
    "gate": lambda: ((9, 3, 2), arrays((9, 3, 2), (3, 6), (3, 2)), (2,), False),
    "scalars": lambda: ((3, 2), arrays((4, 3, 2)), (), False),
    "columns": lambda: ((3, 8), arrays((4, 3, 2)), (), False),
    "dense": lambda: ((3, 4), arrays((3, 2), (4, 2)), (), True),
    "shift": lambda: ((3, 4), arrays((3, 4), (4,)), (), True),
    "scale_heads": lambda: ((3, 4), arrays((3, 4), (2,)), (np.array([0, 0, 1, 1]),), True),
    "silu": lambda: ((3, 4), arrays((3, 4)), (), False),
    "add": lambda: ((3, 4), arrays((3, 4), (3, 4)), (), False),
    "radial": lambda: ((3, 2, 3), arrays((3, 2, 3)), (np.array([0.7, 1.4, 2.1]), COUNTS, 4.5), False),
    "harmonics": lambda: ((3, 2, 25), arrays((3, 2, 3)), (COUNTS, *Harmonics(4, torch.float64).steps(np.dtype(float))), False),
}


def check_derivatives(name: str) -> None:
    """Both derivatives of a loop against central differences of the one before."""
    shape, inputs, constants, has_weight = CASES[name]()
    random, step = np.random.default_rng(1), 1e-5
    flag = (True,) if has_weight else ()
    d_out, tangent = random.normal(size=shape), [random.normal(size=item.shape) for item in inputs]
    # Training has no tangent of a weight; see `Tape`.
    tangent[-1:] = [np.zeros_like(inputs[-1])] if has_weight else tangent[-1:]

    def forward(values: list[np.ndarray]) -> np.ndarray:
        out = np.empty(shape)
        getattr(compiled, name)(out, *values, *constants)
        return out

    def double(values: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        change, results = np.empty(shape), [np.zeros_like(item) for item in values]
        moves = tangent[:-1] if has_weight else tangent
        getattr(compiled, name + "_double_backward")(change, *results, d_out, *values, *moves, *constants)
        return change, results

    def slope(function: Callable[[list[np.ndarray]], float], number: int, direction: np.ndarray) -> float:
        up, down = ([item + sign * step * direction if place == number else item for place, item in enumerate(inputs)]
                    for sign in (1, -1))
        return (function(up) - function(down)) / (2 * step)

    first = [np.zeros_like(item) for item in inputs]
    getattr(compiled, name + "_backward")(*first, d_out, *inputs, *constants, *flag)
    change, second = double(inputs)
    ahead, behind = (forward([item + sign * step * move for item, move in zip(inputs, tangent, strict=True)]) for sign in (1, -1))
    np.testing.assert_allclose(change, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)
    for number, item in enumerate(inputs):
        for _ in range(4):
            direction = random.normal(size=item.shape)
            assert (first[number] * direction).sum() == pytest.approx(
                slope(lambda values: float((d_out * forward(values)).sum()), number, direction), rel=1e-6, abs=1e-8)
            assert (second[number] * direction).sum() == pytest.approx(
                slope(lambda values: float((d_out * double(values)[0]).sum()), number, direction), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_a_loop(name: str) -> None:
    check_derivatives(name)


@pytest.mark.parametrize("kind", ["_backward", "_double_backward"])
@pytest.mark.parametrize("name", ["couple", "collect", "gate", "radial", "harmonics"])
def test_a_wrong_derivative_is_caught(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(compiled, name + kind)

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        arguments[0][...] *= 1.01

    monkeypatch.setattr(compiled, name + kind, wrong)
    with pytest.raises(AssertionError):
        check_derivatives(name)


def test_a_number_that_is_not_finite_stays_visible() -> None:
    potential = small_potential("float32")
    with torch.no_grad():
        potential.transformer.embedding[0, 0] = float("nan")
    energies, _, _ = potential(labelled_batch(potential))
    assert torch.isnan(energies).any()


def test_energies_alone_and_forces_alone_can_be_learned() -> None:
    """A loss on one of the two outcomes leaves the other's gradient out."""
    potential = small_potential()
    batch = labelled_batch(potential)
    for chosen in (0, 1):
        gradients = []
        for name in BACKENDS:
            with backend(name):
                outcomes = potential(batch, create_graph=True)
                potential.zero_grad()
                outcomes[chosen].square().sum().backward()
                gradients.append(potential.transformer.embedding.grad.clone())
        for other in gradients[1:]:
            assert torch.allclose(gradients[0], other, rtol=1e-9, atol=1e-12)
