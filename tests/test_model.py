"""The Transformer obeys every law for every architecture, and planted faults are caught."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from conftest import ELEMENTS, cluster, crystal, small_config, small_potential
from sapis.core.errors import DataError, ModelError
from sapis.core.seeds import generator
from sapis.data.batch import Batch, collate, prepare
from sapis.data.neighbors import PADDING_DISTANCE, Neighbors, neighbors
from sapis.data.system import System
from sapis.model import compiled
from sapis.model.backend import backend
from sapis.model.edges import Slots, gather, sum_from_reverse
from sapis.model.layers import RadialBasis
from sapis.model.potential import TransformerPotential
from sapis.potential.prediction import Potential, Prediction
from sapis.so3.harmonics import Harmonics
from sapis.testing.laws import LAWS, PotentialContract, check_potential

MOLECULES = [cluster(5, seed=1), cluster(7, seed=2)]
MIXED = [cluster(6), crystal(3)]


def batch_of(systems: Sequence[System], potential: TransformerPotential) -> Batch:
    samples = [prepare(system, elements=potential.elements, cutoff=potential.cutoff) for system in systems]
    return collate(samples, cutoff=potential.cutoff, dtype=potential.dtype)


def broken_laws(potential: Potential, systems: Sequence[System] = MIXED) -> str:
    return "\n".join(str(check) for check in check_potential(potential, systems) if not check.passed)


def obeys(law: str, potential: Potential, systems: Sequence[System] = MIXED) -> bool:
    check = LAWS[law](potential, systems, generator(0, law))
    assert check is not None
    return check.passed


class TestMolecules(PotentialContract):
    def potential(self) -> Potential:
        return small_potential()

    def systems(self) -> list[System]:
        return MOLECULES


class TestCrystals(PotentialContract):
    def potential(self) -> Potential:
        return small_potential()

    def systems(self) -> list[System]:
        return [crystal(1), crystal(4)]


class TestFloat32(PotentialContract):
    def potential(self) -> Potential:
        return small_potential("float32")

    def systems(self) -> list[System]:
        return MIXED


@pytest.mark.parametrize("l_max, order, n_layers, l_max_carried", [
    (0, 1, 1, 0), (0, 3, 2, 0), (0, 2, 3, 0),
    (1, 2, 1, 0), (1, 3, 2, 1), (1, 1, 3, 1),
    (2, 1, 2, 0), (2, 3, 1, 1), (2, 2, 3, 2), (2, 3, 2, 2),
    (3, 3, 1, 0), (3, 1, 2, 1), (3, 2, 2, 2),
])
def test_every_architecture_obeys_the_laws(l_max: int, order: int, n_layers: int, l_max_carried: int) -> None:
    potential = small_potential(l_max=l_max, order=order, n_layers=n_layers, l_max_carried=l_max_carried)
    assert broken_laws(potential) == ""


@pytest.mark.parametrize("changes", [
    {"n_heads": 1}, {"n_heads": 4, "n_channels": 32}, {"n_channels": 8, "n_channels_carried": 4}, {"n_radial": 1},
], ids=str)
def test_widths_and_heads_do_not_matter_to_the_laws(changes: dict[str, int]) -> None:
    assert broken_laws(small_potential(**changes), [cluster(5), crystal(2)]) == ""


def test_what_a_layer_sees_grows_with_the_order() -> None:
    """Laws hold for a constant too. Order 1 sees distances and species, order 2 also angles."""
    def energy_of_oxygen(potential: TransformerPotential, angle: float, length: float = 1.0, partner: int = 1) -> float:
        positions = np.array([[0, 0, 0], [length, 0, 0], [np.cos(angle), np.sin(angle), 0]])
        return float(potential.predict([System(numbers=[8, partner, 1], positions=positions)])[0].energies[0])

    for order in (1, 2, 3):
        potential = small_potential(n_layers=1, order=order)
        reference = energy_of_oxygen(potential, 1.8)
        assert abs(energy_of_oxygen(potential, 1.8, length=1.05) - reference) > 1e-4
        assert abs(energy_of_oxygen(potential, 1.8, partner=6) - reference) > 1e-4
        assert (abs(energy_of_oxygen(potential, 2.9) - reference) > 1e-4) == (order > 1)


def test_a_second_layer_sees_twice_as_far() -> None:
    chain = np.array([[0, 0, 0], [2.0, 0, 0], [4.0, 0, 0]])
    moved = np.array([*chain[:2], [4.0, 0.3, 0]])
    for n_layers in (1, 2):
        one, other = small_potential(n_layers=n_layers).predict([System(numbers=[8, 6, 1], positions=positions)
                                                                 for positions in (chain, moved)])
        assert (abs(one.energies[0] - other.energies[0]) > 1e-6) == (n_layers == 2)


# Derivatives


@pytest.mark.parametrize("changes", [{"n_layers": 1, "order": 2}, {"n_layers": 2, "order": 3, "l_max": 1}], ids=str)
def test_energies_have_the_right_derivatives_of_first_and_second_order(changes: dict[str, int]) -> None:
    potential = small_potential(n_channels=4, n_channels_carried=4, n_radial=2, **changes)
    batch = batch_of([cluster(3)], potential)
    vectors = batch.vectors.clone().requires_grad_()

    def energies(v: torch.Tensor) -> torch.Tensor:
        return potential.atom_energies(batch, v)

    assert torch.autograd.gradcheck(energies, vectors)
    assert torch.autograd.gradgradcheck(energies, vectors)


def test_the_gradient_of_a_force_loss_by_the_weights_is_right() -> None:
    """Along random directions in weight space, against central differences: the double backward pass of training."""
    potential = small_potential()
    batch, weights = batch_of(MIXED, potential), list(potential.parameters())

    def value() -> torch.Tensor:
        energies, forces, virials = potential(batch, create_graph=True)
        return energies.square().sum() + forces.square().sum() + virials.square().sum()

    slopes = torch.autograd.grad(value(), weights)
    torch.manual_seed(0)
    for _ in range(3):
        directions = [torch.randn_like(weight) for weight in weights]
        expected = sum(float((slope * way).sum()) for slope, way in zip(slopes, directions, strict=True))
        values = []
        for step in (1e-5, -2e-5, 1e-5):  # to +h, to -h, and back
            with torch.no_grad():
                for weight, way in zip(weights, directions, strict=True):
                    weight += step * way
            values.append(float(value().detach()))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5)


def test_gather_and_its_adjoint_are_what_they_say() -> None:
    potential = small_potential()
    batch = batch_of([*MIXED, System(numbers=[1], positions=np.zeros((1, 3)))], potential)
    senders, reverse = batch.senders, batch.reverse
    torch.manual_seed(1)
    nodes = torch.randn(len(senders), 5, dtype=torch.float64)
    edges = torch.randn(*senders.shape, 5, dtype=torch.float64)
    assert torch.equal(gather(nodes, senders, reverse), nodes[senders])
    scattered = torch.zeros_like(nodes).index_add(0, senders.flatten(), edges.flatten(0, 1))
    torch.testing.assert_close(sum_from_reverse(edges, senders, reverse), scattered)
    torch.testing.assert_close((gather(nodes, senders, reverse) * edges).sum(), (nodes * scattered).sum())


def test_gather_and_its_adjoint_have_derivatives_of_any_order() -> None:
    batch = batch_of([cluster(4)], small_potential())
    senders, reverse = batch.senders, batch.reverse
    for function, shape in ((gather, (4, 2)), (sum_from_reverse, (*senders.shape, 2))):
        values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, senders, reverse) ** 2, values)
        assert torch.autograd.gradgradcheck(lambda v, f=function: f(v, senders, reverse) ** 2, values)


def test_radial_functions_are_bessel_functions_under_the_envelope() -> None:
    cutoff, r = 3.5, np.linspace(0.3, 3.4, 7)
    x = r / cutoff
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    expected = [np.sqrt(2 / cutoff) * np.sin(k * np.pi * x) / r * envelope for k in (1, 2, 3)]
    got = RadialBasis(3, cutoff, torch.float64)(torch.from_numpy(r))
    np.testing.assert_allclose(got, np.stack(expected, axis=-1), atol=1e-14)


def test_radial_functions_and_two_derivatives_vanish_from_the_cutoff_on() -> None:
    basis = RadialBasis(4, 3.5, torch.float64)
    for r, limit in ((3.5 - 1e-6, 1e-4), (3.5, 1e-9), (3.6, 0.0), (PADDING_DISTANCE * 3.5, 0.0)):
        distance = torch.tensor(r, dtype=torch.float64, requires_grad=True)
        for value in basis(distance):
            (slope,) = torch.autograd.grad(value, distance, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, distance, retain_graph=True)
            assert max(abs(float(value.detach())), abs(float(slope.detach())), abs(float(curvature))) <= limit


# Physics beyond the laws


@pytest.mark.parametrize("company", [[], [cluster(5)]], ids=["pair", "in company"])
def test_an_interaction_sets_in_with_the_third_power_or_later(company: list[System]) -> None:
    """As r -> cutoff the change of the energy falls at least as (cutoff - r)^3: two derivatives are continuous."""
    potential = small_potential()
    host = company[0].positions if company else np.zeros((1, 3))
    numbers = np.concatenate([company[0].numbers if company else [8], [1]])
    front = int(host[:, 0].argmax())

    def energy(distance: float) -> float:
        guest = host[front] + [distance, 0, 0]
        return potential.predict([System(numbers=numbers, positions=np.vstack([host, guest]))])[0].energy

    apart = energy(potential.cutoff + 0.1)
    near, nearer = (abs(energy(potential.cutoff - delta) - apart) for delta in (0.02, 0.04))
    assert near > 1e-12, "the interaction is there"
    assert nearer / near > 2**3 * 0.95


def test_single_atoms_and_isolated_atoms_in_company() -> None:
    potential = small_potential()
    lone = [System(numbers=[z], positions=np.zeros((1, 3))) for z in ELEMENTS]
    alone = potential.predict(lone)
    assert all(np.isfinite(p.energy) and p.stress is None for p in alone)
    assert all(np.array_equal(p.forces, np.zeros((1, 3))) for p in alone)
    together = potential.predict([MIXED[0], lone[2], MIXED[1]])[1]
    assert together.energy == pytest.approx(alone[2].energy, abs=1e-10) and not together.forces.any()
    host = MIXED[0]
    with_guest = System(numbers=[*host.numbers, 8], positions=np.vstack([host.positions, [90.0, 0, 0]]))
    joined, bare = potential.predict([with_guest, host])
    assert joined.energies[-1] == pytest.approx(alone[2].energy, abs=1e-10)
    assert not joined.forces[-1].any()
    np.testing.assert_allclose(joined.forces[:-1], bare.forces, atol=1e-10)


def test_eighty_neighbours_all_count() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(80, 3))
    shell = directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(2.4, 3.0, (80, 1))
    system = System(numbers=[8, *rng.choice(ELEMENTS, 80)], positions=np.vstack([np.zeros(3), shell]))
    potential = small_potential(n_layers=1)
    batch = batch_of([system], potential)
    vectors = batch.vectors.clone().requires_grad_()
    (slope,) = torch.autograd.grad(potential.atom_energies(batch, vectors)[0], vectors)
    is_near = vectors.detach()[0].norm(dim=-1) < potential.cutoff
    assert int(is_near.sum()) == 80
    assert float(slope[0][is_near].norm(dim=-1).min()) > 1e-6, "the middle atom feels each of its neighbours"
    order = rng.permutation(81)
    shuffled = replace(system, numbers=system.numbers[order], positions=system.positions[order])
    one, other = potential.predict([system, shuffled])
    assert one.energy == pytest.approx(other.energy, abs=1e-8)


def test_no_net_force_and_no_net_torque() -> None:
    for system, prediction in zip(MIXED, small_potential().predict(MIXED), strict=True):
        np.testing.assert_allclose(prediction.forces.sum(axis=0), 0, atol=1e-10)
        if not system.pbc.any():
            torque = np.cross(system.positions, prediction.forces).sum(axis=0)
            np.testing.assert_allclose(torque, 0, atol=1e-10)
        else:
            assert prediction.stress is not None
            np.testing.assert_array_equal(prediction.stress, prediction.stress.T)


def test_the_image_an_atom_is_given_in_does_not_matter() -> None:
    system = crystal(4)
    images = np.array([[0, 0, 0], [3, 0, -1], [0, -2, 0], [1, 1, 1]])
    moved = replace(system, positions=system.positions + images @ system.cell)
    one, other = small_potential().predict([system, moved])
    assert one.energy == pytest.approx(other.energy, abs=1e-9)
    np.testing.assert_allclose(one.forces, other.forces, atol=1e-9)


def test_reference_energies_and_scale_enter_as_stated() -> None:
    system = cluster(6)
    settings = small_potential().settings()
    bare, shifted = (TransformerPotential.from_settings({**settings, **changes}).predict([system])[0] for changes in (
        {"reference_energies": [0.0, 0.0, 0.0], "scale": 1.0}, {"reference_energies": [1.0, 2.0, 4.0], "scale": 3.0}))
    references = np.array([1.0, 2.0, 4.0])[np.searchsorted(ELEMENTS, system.numbers)]
    np.testing.assert_allclose(shifted.energies, 3 * bare.energies + references, rtol=1e-12)
    np.testing.assert_allclose(shifted.forces, 3 * bare.forces, rtol=1e-10)


def test_predictions_do_not_depend_on_how_they_are_batched() -> None:
    potential, systems = small_potential(), [cluster(n, seed=n) for n in (2, 9, 4, 1, 6)]
    whole, pieces = potential.predict(systems), potential.predict(systems, max_slots=20)
    for one, other in zip(whole, pieces, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-10)
    assert potential.predict([]) == []


def test_predictions_are_numpy_float64_and_remember_no_graph() -> None:
    for precision in ("float32", "float64"):
        prediction = small_potential(precision).predict([crystal(2)])[0]
        assert isinstance(prediction.energy, float)
        arrays = (prediction.energies, prediction.forces, prediction.stress)
        assert all(isinstance(array, np.ndarray) and array.dtype == np.float64 for array in arrays)


def test_bad_input_is_refused_with_its_reason() -> None:
    with pytest.raises(ModelError, match="Au"):
        small_potential().predict([cluster(3), System(numbers=[79], positions=np.zeros((1, 3)))])
    with pytest.raises(DataError, match="apart"):
        small_potential().predict([System(numbers=[1, 1], positions=np.zeros((2, 3)))])


# Precision, seeds, settings


def test_float32_agrees_with_float64() -> None:
    exact, coarse = small_potential("float64"), small_potential("float64").with_precision("float32")
    for one, other in zip(exact.predict(MIXED), coarse.predict(MIXED), strict=True):
        np.testing.assert_allclose(one.energies, other.energies, atol=2e-4)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-4 * max(1, np.abs(one.forces).max()))


def test_with_precision_rounds_constants_afresh() -> None:
    coarse = small_potential("float32", l_max=3)
    exact = coarse.with_precision("float64")
    assert exact.precision == "float64" and exact.dtype == torch.float64 and coarse.dtype == torch.float32
    for name in ("rotation", "inversion", "forces", "smoothness"):
        assert obeys(name, exact)
    merely_cast = small_potential("float32", l_max=3).double()
    merely_cast.precision = "float64"
    with backend("padded"):
        assert not obeys("rotation", merely_cast), "tables rounded to float32 would show"
    back = exact.with_precision("float32")
    assert all(torch.equal(one, other) for one, other in zip(coarse.parameters(), back.parameters(), strict=True))


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    one, two, other = small_potential(seed=4), small_potential(seed=4), small_potential(seed=5)
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    torch.manual_seed(123)
    torch.randn(3)
    assert torch.equal(next(small_potential(seed=4).parameters()), next(one.parameters()))


def test_global_random_states_are_left_alone() -> None:
    torch.manual_seed(0)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    potential = small_potential()
    potential.with_precision("float32").predict(MIXED)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # noqa: NPY002


def test_settings_survive_json() -> None:
    potential = small_potential(l_max=3, order=2)
    settings = json.loads(json.dumps(potential.settings()))
    again = TransformerPotential.from_settings(settings)
    again.load_state_dict(potential.state_dict())
    assert again.settings() == potential.settings()
    for one, other in zip(potential.predict(MIXED), again.predict(MIXED), strict=True):
        assert one.energy == other.energy
        assert (one.forces == other.forces).all()


def test_models_from_before_norms_were_softened_stay_the_functions_they_were() -> None:
    potential = small_potential(norm_epsilon=1e-6)
    settings = potential.settings()
    del settings["config"]["norm_epsilon"]
    again = TransformerPotential.from_settings(settings)
    again.load_state_dict(potential.state_dict())
    for one, other in zip(potential.predict(MIXED), again.predict(MIXED), strict=True):
        assert one.energy == other.energy


def test_weights_are_all_that_is_saved() -> None:
    potential = small_potential()
    assert set(potential.state_dict()) == {name for name, _ in potential.named_parameters()}
    assert potential.n_parameters == sum(value.numel() for value in potential.state_dict().values())


def test_every_weight_matters() -> None:
    """No weight is left without a gradient by a loss on energies and forces."""
    potential = small_potential()
    energies, forces, _ = potential(batch_of(MIXED, potential), create_graph=True)
    value = energies.square().sum() + forces.square().sum()
    slopes = torch.autograd.grad(value, list(potential.parameters()), allow_unused=True)
    idle = [name for (name, _), slope in zip(potential.named_parameters(), slopes, strict=True)
            if slope is None or not slope.any()]
    assert idle == []


@pytest.mark.parametrize("changes", [
    {"n_channels": 15}, {"n_channels_carried": 3}, {"cutoff": 0.0}, {"order": 4},
    {"n_layers": 0}, {"width": 3},
], ids=str)
def test_settings_that_cannot_be_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        small_config(**changes)


# Planted faults


Plant = Callable[[pytest.MonkeyPatch], None]


def _replace_neighbors(patch: pytest.MonkeyPatch, change: Callable[[System, Neighbors, float], Neighbors]) -> None:
    patch.setattr("sapis.data.batch.neighbors",
                  lambda system, cutoff: change(system, neighbors(system, cutoff), cutoff))


def plain_linear_envelope(patch: pytest.MonkeyPatch) -> None:
    """Energy and force are continuous (the waves vanish at the cutoff), the curvature is not."""
    def forward(self: RadialBasis, distances: torch.Tensor) -> torch.Tensor:
        envelope = 1 - (distances / self.cutoff).clamp(max=1.0)
        waves = torch.sin(distances.unsqueeze(-1) * self.frequencies)
        return waves * (np.sqrt(2 / self.cutoff) * envelope / distances).unsqueeze(-1)

    patch.setattr(RadialBasis, "forward", forward)


def no_envelope(patch: pytest.MonkeyPatch) -> None:
    def forward(self: RadialBasis, distances: torch.Tensor) -> torch.Tensor:
        waves = torch.sin(distances.unsqueeze(-1) * self.frequencies) * (distances < self.cutoff).unsqueeze(-1)
        return waves / distances.unsqueeze(-1)

    patch.setattr(RadialBasis, "forward", forward)


def wrong_reverse_index(patch: pytest.MonkeyPatch) -> None:
    def change(system: System, right: Neighbors, cutoff: float) -> Neighbors:
        reverse = right.reverse.copy().ravel()
        used = np.flatnonzero(np.linalg.norm(right.vectors, axis=-1).ravel() < cutoff)
        reverse[used] = np.roll(reverse[used], 1)
        return replace(right, reverse=reverse.reshape(right.reverse.shape))

    _replace_neighbors(patch, change)


def dropped_image_shift(patch: pytest.MonkeyPatch) -> None:
    def change(system: System, right: Neighbors, cutoff: float) -> Neighbors:
        receivers = np.arange(len(system))[:, None]
        inside = system.positions[right.senders] - system.positions[receivers]
        return replace(right, vectors=np.where((right.senders == receivers)[..., None], right.vectors, inside))

    _replace_neighbors(patch, change)


def capped_neighbours(patch: pytest.MonkeyPatch) -> None:
    """Only the first four neighbours of each atom are seen."""
    def change(system: System, right: Neighbors, cutoff: float) -> Neighbors:
        vectors = right.vectors.copy()
        vectors[:, 4:] = [PADDING_DISTANCE * cutoff, 0, 0]
        return replace(right, vectors=vectors)

    _replace_neighbors(patch, change)


def edges_turned_round(patch: pytest.MonkeyPatch) -> None:
    """Vectors from sender to receiver: the energy is that of the mirror image, the same, but the forces turn."""
    _replace_neighbors(patch, lambda system, right, cutoff: replace(right, vectors=-right.vectors))


def coupling_of_wrong_parity(patch: pytest.MonkeyPatch) -> None:
    """The cross product of two vectors passes as a vector."""
    from sapis.model import layers
    from sapis.so3 import contraction

    paths, table = layers.coupling_paths, contraction.gaunt_table
    cross = np.zeros((3, 3, 3))
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[a, b, c], cross[b, a, c] = np.sqrt(0.5), -np.sqrt(0.5)

    def more_paths(*limits: int, **options: Any) -> list[tuple[int, int, int]]:
        extra = [(1, 1, 1)] if min(limits) >= 1 else []
        return sorted([*paths(*limits, **options), *extra], key=lambda path: path[2])

    patch.setattr(layers, "coupling_paths", more_paths)
    patch.setattr(contraction, "gaunt_table", lambda *path: cross if path == (1, 1, 1) else table(*path))


def harmonics_in_another_order(patch: pytest.MonkeyPatch) -> None:
    right = Harmonics.forward

    def forward(self: Harmonics, units: torch.Tensor) -> torch.Tensor:
        values = right(self, units).clone()
        values[..., 1:4] = values[..., 1:4].flip(-1)
        return values

    patch.setattr(Harmonics, "forward", forward)


def forces_without_the_reverse_edges(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slots, "forces", lambda _, gradient: gradient.sum(1))


def padding_that_leaks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sapis.data.batch.PADDING_DISTANCE", 0.5)


def half_a_virial(patch: pytest.MonkeyPatch) -> None:
    right = TransformerPotential.forward

    def forward(self: TransformerPotential, batch: Batch, **options: Any) -> tuple[torch.Tensor, ...]:
        energies, forces, virials = right(self, batch, **options)
        return energies, forces, virials / 2

    patch.setattr(TransformerPotential, "forward", forward)


def compiled_harmonics_in_another_order(patch: pytest.MonkeyPatch) -> None:
    right = compiled.harmonics

    def harmonics(out: np.ndarray, *arguments: Any) -> None:
        right(out, *arguments)
        out[..., 1:4] = out[..., 3:0:-1].copy()

    patch.setattr(compiled, "harmonics", harmonics)


def compiled_envelope_that_stops_short(patch: pytest.MonkeyPatch) -> None:
    """Radial functions of a longer cutoff: they have not vanished where the neighbours end."""
    for name in ("radial", "radial_backward"):
        right = getattr(compiled, name)

        def longer(*arguments: Any, right: Callable[..., None] = right) -> None:
            *others, cutoff = arguments
            right(*others, cutoff * 1.2)

        patch.setattr(compiled, name, longer)


# Faults of modules that the compiled loops stand in for.
IN_TORCH = (plain_linear_envelope, no_envelope, harmonics_in_another_order, padding_that_leaks)


@pytest.mark.parametrize("plant, caught_by", [
    (plain_linear_envelope, "smoothness"),
    (no_envelope, "smoothness"),
    (wrong_reverse_index, "forces"),
    (dropped_image_shift, "extensivity"),
    (capped_neighbours, "permutation"),
    (coupling_of_wrong_parity, "inversion"),
    (harmonics_in_another_order, "rotation"),
    (edges_turned_round, "forces"),
    (forces_without_the_reverse_edges, "forces"),
    (padding_that_leaks, "batching"),
    (compiled_harmonics_in_another_order, "rotation"),
    (compiled_envelope_that_stops_short, "smoothness"),
    (half_a_virial, "stress"),
], ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_fault_is_caught(plant: Plant, caught_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = [cluster(6), crystal(3), cluster(3)]
    assert obeys(caught_by, small_potential(), systems)
    plant(monkeypatch)
    with backend("padded") if plant in IN_TORCH else nullcontext():
        assert not obeys(caught_by, small_potential(), systems)


def test_a_coupling_of_wrong_parity_still_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that the law of inversion, not of rotation, guards parity."""
    coupling_of_wrong_parity(monkeypatch)
    assert obeys("rotation", small_potential())


def test_the_laws_of_float64_catch_forces_wrong_in_the_fifth_digit() -> None:
    class Tilted(TransformerPotential):
        def predict(self, systems: Sequence[System], **options: Any) -> list[Prediction]:
            return [replace(p, forces=p.forces * (1 + 1e-5)) for p in super().predict(systems, **options)]

    settings = small_potential().settings()
    assert obeys("forces", TransformerPotential.from_settings(settings))
    assert not obeys("forces", Tilted.from_settings(settings))
