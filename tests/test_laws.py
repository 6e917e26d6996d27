"""The laws pass on potentials that obey them and catch each planted fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.potential.prediction import Potential, Prediction
from sapis.testing.analytic import HarmonicBonds, LennardJones
from sapis.testing.laws import LAWS, PotentialContract, check_potential


def crystal(seed: int = 0) -> System:
    """Four argon atoms in a skewed cell smaller than the cutoff: every edge crosses a face."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Ar", "fcc", 5.3, cubic=True)
    atoms.set_cell(atoms.cell.array + rng.normal(0, 0.2, (3, 3)), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.15, (4, 3))
    return System.from_atoms(atoms)


def cluster(seed: int = 1) -> System:
    atoms = bulk("Ar", "fcc", 5.3, cubic=True).repeat((2, 1, 1))
    atoms.positions += np.random.default_rng(seed).normal(0, 0.2, (8, 3))
    return System(numbers=atoms.numbers, positions=atoms.positions)


SYSTEMS = [crystal(), cluster()]


@dataclass(frozen=True)
class Faulty:
    """A potential with something wrong in what it returns."""

    fault: Callable[[System, Prediction], Prediction]
    inner: LennardJones = field(default_factory=LennardJones)
    precision: str = "float64"

    @property
    def elements(self) -> tuple[int, ...]:
        return self.inner.elements

    @property
    def cutoff(self) -> float:
        return self.inner.cutoff

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        return [self.fault(s, p) for s, p in zip(systems, self.inner.predict(systems), strict=True)]


def add(prediction: Prediction, energies: np.ndarray, forces: np.ndarray | float = 0.0) -> Prediction:
    energies = prediction.energies + energies
    forces = prediction.forces + forces
    return replace(prediction, energy=float(energies.sum()), energies=energies, forces=forces)


def flipped_forces(_: System, p: Prediction) -> Prediction:
    return replace(p, forces=-p.forces)


def non_conservative(_: System, p: Prediction) -> Prediction:
    """A small curl that keeps every symmetry: forces scaled by the size of the neighbourhood's energy."""
    return replace(p, forces=p.forces * (1 + 0.01 * p.energies[:, None]))


def flipped_stress(_: System, p: Prediction) -> Prediction:
    return replace(p, stress=None if p.stress is None else -p.stress)


def missing_stress(_: System, p: Prediction) -> Prediction:
    return replace(p, stress=None)


def absolute_position(s: System, p: Prediction) -> Prediction:
    slope = 1e-4 * np.ones_like(s.positions)
    return add(p, 1e-4 * s.positions.sum(axis=1), -slope)


def axis_dependent(s: System, p: Prediction) -> Prediction:
    """A conservative, translation-invariant energy that prefers the x axis."""
    x = s.positions[:, 0] - s.positions[:, 0].mean()
    return add(p, 1e-4 * x**2, np.outer(-2e-4 * x, [1, 0, 0]))


def chiral(s: System, p: Prediction) -> Prediction:
    """A triple product: unchanged by rotation, its sign flipped by a mirror."""
    r = s.positions
    handed = sum(np.linalg.det(r[i + 1:i + 4] - r[i]) for i in range(len(r) - 3))
    return add(p, np.full(len(s), 1e-6 * handed))


def order_dependent(s: System, p: Prediction) -> Prediction:
    return add(p, 1e-4 * np.arange(len(s)) ** 2)


def non_extensive(s: System, p: Prediction) -> Prediction:
    return add(p, np.full(len(s), 1e-4 * len(s)))


def sum_missing_an_atom(_: System, p: Prediction) -> Prediction:
    return replace(p, energy=float(p.energies[1:].sum()))


def haunted_atom(s: System, p: Prediction) -> Prediction:
    return replace(p, forces=p.forces + (1e-6 if len(s) == 1 else 0.0))


def not_a_number(_: System, p: Prediction) -> Prediction:
    return replace(p, energy=float("nan"))


class NoImages(LennardJones):
    """Forgets the image shift: edges across a face are dropped."""

    def _predict_one(self, system: System) -> Prediction:
        volume = system.volume
        inside = super()._predict_one(replace(system, pbc=np.zeros(3, dtype=bool)))
        return replace(inside, stress=None if volume is None else np.zeros((3, 3)))


class Truncated(LennardJones):
    """Lennard-Jones cut off without an envelope."""

    def pair_energy(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sixth = (self.sigma / r) ** 6
        return 4 * self.epsilon * (sixth**2 - sixth), -24 * self.epsilon * (2 * sixth**2 - sixth) / r


class OnceContinuous(LennardJones):
    """A cubic envelope: energy and force are continuous, the curvature is not."""

    def pair_energy(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, slope = Truncated.pair_energy(self, r)  # type: ignore[arg-type]
        width = self.cutoff - self.onset
        x = np.clip((r - self.onset) / width, 0, 1)
        return u * (1 - x**2 * (3 - 2 * x)), slope * (1 - x**2 * (3 - 2 * x)) - u * 6 * x * (1 - x) / width


class CountingNeighbours(LennardJones):
    """Adds energy for each neighbour after the first: smooth for a pair, a jump in company."""

    def _predict_one(self, system: System) -> Prediction:
        counts = np.bincount(neighbor_list("i", system.to_atoms(), self.cutoff), minlength=len(system))
        return add(super()._predict_one(system), 1e-4 * np.maximum(0, counts - 1))


class Spiked(LennardJones):
    """A bump far narrower than the bond is stiff, smooth in every derivative, where few frames have a pair."""

    def pair_energy(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, slope = super().pair_energy(r)
        x = (r - 3.9) / 0.005
        bump = 1e-3 * np.exp(-x**2)
        return u + bump, slope - 2 * x * bump / 0.005


class Leaking(LennardJones):
    """Adds the mean energy of the batch: what is predicted together influences each other."""

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        predictions = super().predict(systems)
        mean = float(np.mean([p.energy / len(p.forces) for p in predictions]))
        return [add(p, np.full(len(p.forces), 1e-3 * mean)) for p in predictions]


class SinglePrecision(LennardJones):
    """Rounds positions and results to float32, as a model in float32 does."""

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        def rounded(a: np.ndarray) -> np.ndarray:
            return a.astype(np.float32).astype(np.float64)

        coarse = [replace(s, positions=rounded(s.positions), cell=rounded(s.cell)) for s in systems]
        return [Prediction(float(np.float32(p.energy)), rounded(p.energies), rounded(p.forces),
                           None if p.stress is None else rounded(p.stress)) for p in super().predict(coarse)]


def failed(potential: Potential) -> set[str]:
    return {check.name for check in check_potential(potential, SYSTEMS) if not check.passed}


def obeys(law: str, potential: Potential, systems: Sequence[System] = SYSTEMS) -> bool:
    check = LAWS[law](potential, systems, generator(0, law))
    assert check is not None
    return check.passed


def test_an_honest_potential_passes_every_law() -> None:
    checks = check_potential(LennardJones(), SYSTEMS)
    assert [check.name for check in checks] == list(LAWS)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


def test_an_honest_potential_in_float32_passes_with_the_limits_of_float32() -> None:
    assert failed(SinglePrecision(precision="float32")) == set()
    assert not obeys("rotation", SinglePrecision()), "float32 rounding must not pass as float64"


@pytest.mark.parametrize("fault, caught_by", [
    (flipped_forces, "forces"),
    (non_conservative, "forces"),
    (flipped_stress, "stress"),
    (missing_stress, "stress"),
    (absolute_position, "translation"),
    (axis_dependent, "rotation"),
    (chiral, "inversion"),
    (order_dependent, "permutation"),
    (non_extensive, "extensivity"),
    (sum_missing_an_atom, "energy_sum"),
    (haunted_atom, "isolated_atom"),
    (not_a_number, "isolated_atom"),
], ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_fault_is_caught(fault: Callable[[System, Prediction], Prediction], caught_by: str) -> None:
    assert not obeys(caught_by, Faulty(fault))


@pytest.mark.parametrize("fault, law", [(non_conservative, "forces"), (flipped_stress, "stress")])
def test_only_the_broken_law_fails(fault: Callable[[System, Prediction], Prediction], law: str) -> None:
    assert failed(Faulty(fault)) == {law}


@pytest.mark.parametrize("potential, caught_by", [
    (NoImages(), "extensivity"),
    (Truncated(), "smoothness"),
    (OnceContinuous(), "smoothness"),
    (CountingNeighbours(), "smoothness"),
    (Spiked(), "spikes"),
    (Leaking(), "batching"),
], ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_a_planted_potential_is_caught(potential: Potential, caught_by: str) -> None:
    assert not obeys(caught_by, potential)


@pytest.mark.parametrize("name", LAWS)
def test_not_a_number_never_passes(name: str) -> None:
    def poisoned(_: System, p: Prediction) -> Prediction:
        nan = float("nan")
        return Prediction(nan, p.energies * nan, p.forces * nan, None if p.stress is None else p.stress * nan)

    assert not obeys(name, Faulty(poisoned))


def test_laws_that_the_systems_cannot_show_are_left_out() -> None:
    names = [check.name for check in check_potential(LennardJones(), [cluster()])]
    assert "stress" not in names and "forces" in names


def test_springs_obey_what_springs_can() -> None:
    water = System.from_atoms(molecule("H2O"))
    springs = HarmonicBonds(bonds=((0, 1), (0, 2)))
    assert obeys("rotation", springs, [water]) and obeys("forces", springs, [water])
    swapped = [replace(water, numbers=water.numbers[order], positions=water.positions[order])
               for order in ([1, 0, 2], [0, 1, 2])]
    energies = [p.energy for p in springs.predict(swapped)]
    assert energies[0] != energies[1], "bonds that name atoms by index depend on the order"
    assert LAWS["smoothness"](springs, [water], np.random.default_rng(0)) is None


def test_the_same_seed_gives_the_same_checks() -> None:
    first, second = (check_potential(LennardJones(), [cluster()], seed=3) for _ in range(2))
    assert first == second


def test_lennard_jones_known_answers() -> None:
    potential = LennardJones()
    for distance, energy in ((2 ** (1 / 6) * potential.sigma, -potential.epsilon), (potential.sigma, 0.0),
                             (potential.cutoff, 0.0)):
        pair = System(numbers=np.array([18, 18]), positions=np.array([[0, 0, 0], [distance, 0, 0]]))
        assert potential.predict([pair])[0].energy == pytest.approx(energy, abs=1e-15)


class TestLennardJones(PotentialContract):
    def potential(self) -> Potential:
        return LennardJones()

    def systems(self) -> list[System]:
        return SYSTEMS
