"""What every potential must obey, checked by what `predict` returns and nothing else.

Each law takes ``(potential, systems, rng)``, predicts all its variations in one call, and returns a `Check`,
or None where the systems cannot show it (no periodic one for the stress). Systems should be small (5 to 50
atoms), away from equilibrium, and of elements that the potential knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np

from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.potential.prediction import Potential, Prediction
from sapis.testing import tolerances
from sapis.testing.tolerances import Tolerance

N_COMPONENTS = 12  # force components tried per system: each costs four energies
N_LINES = 4  # straight lines followed through each system

# Fourth-order central difference: f'(0) = sum(weight * f(step * h)) / h (Fornberg, Math. Comput. 51, 1988).
STENCIL_STEPS = np.array([-2, -1, 1, 2])
STENCIL_WEIGHTS = np.array([1, -8, 8, -1]) / 12

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

# One-sided, from values at h, 2h, 3h, 4h: f(0) and h f'(0) of the cubic through them.
ONE_SIDED_STEPS = np.array([1, 2, 3, 4])
ONE_SIDED_VALUE = np.array([4.0, -6.0, 4.0, -1.0])
ONE_SIDED_SLOPE = np.array([-13 / 3, 19 / 2, -7.0, 11 / 6])


@dataclass(frozen=True)
class Check:
    """One law put to one potential.

    Attributes:
        name: the law.
        value: the largest violation found; NaN if the potential returned NaN.
        limit: the largest allowed.
        unit: of both.
        passed: value <= limit.
        what: the law in words.
    """

    name: str
    value: float
    limit: float
    unit: str
    passed: bool
    what: str

    def __str__(self) -> str:
        sign, verdict = ("<=", "passed") if self.passed else (">", "FAILED")
        return f"{self.name} {verdict}: {self.value:.2e} {sign} {self.limit:.0e} {self.unit} ({self.what})"


Law = Callable[[Potential, Sequence[System], np.random.Generator], Check | None]


def check_potential(potential: Potential, systems: Sequence[System], *, seed: int = 0) -> list[Check]:
    """Put every law that the systems can show to a potential.

    Args:
        systems: of elements that the potential knows; periodic and not, if both matter.
        seed: of the random rotations, permutations and components.

    Returns:
        One check a law, in the order of `LAWS`.
    """
    checks = (law(potential, systems, generator(seed, "laws", name)) for name, law in LAWS.items())
    return [check for check in checks if check is not None]


def translation(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """E(r + t) = E(r), and forces and stress alike, for a random t of some Å."""
    moved = [replace(system, positions=system.positions + rng.uniform(-5, 5, 3)) for system in systems]
    return _compare("translation", potential, systems, moved, lambda before, _: before,
                    "energy, forces and stress do not change when everything is moved")


def rotation(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """E(Rr) = E(r), F(Rr) = R F(r), stress(Rr) = R stress(r) R^T for random proper R; the cell turns too."""
    return _turn("rotation", potential, systems, [_random_rotation(rng) for _ in systems],
                 "the energy keeps its value and forces and stress turn along in a random rotation")


def inversion(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """As `rotation` for a random improper matrix: inversion and a rotation."""
    return _turn("inversion", potential, systems, [-_random_rotation(rng) for _ in systems],
                 "a mirror image has the same energy and mirrored forces")


def permutation(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """E(Pr) = E(r), F(Pr) = P F(r) for a random order of the atoms."""
    orders = [rng.permutation(len(system)) for system in systems]
    shuffled = [replace(system, numbers=system.numbers[order], positions=system.positions[order])
                for system, order in zip(systems, orders, strict=True)]

    def expected(before: Prediction, k: int) -> Prediction:
        return replace(before, energies=before.energies[orders[k]], forces=before.forces[orders[k]])

    return _compare("permutation", potential, systems, shuffled, expected,
                    "the order in which atoms are listed does not matter")


def forces(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """F = -dE/dr by fourth-order central differences in at most `N_COMPONENTS` random components a system."""
    step = tolerances.FORCE_STEP.at(potential.precision)
    components = [rng.choice(3 * len(system), min(N_COMPONENTS, 3 * len(system)), replace=False)
                  for system in systems]
    displaced = [_displaced(system, component, k * step)
                 for system, chosen in zip(systems, components, strict=True)
                 for component in chosen for k in STENCIL_STEPS]
    before, after = _predict_both(potential, systems, displaced)
    slopes = iter(_energies(after).reshape(-1, len(STENCIL_STEPS)) @ STENCIL_WEIGHTS / step)
    errors = [
        abs(prediction.forces.reshape(-1)[component] + next(slopes)) / _force_scale(prediction)
        for prediction, chosen in zip(before, components, strict=True) for component in chosen
    ]
    return judged("forces", errors, tolerances.FORCES, potential,
                  "forces are minus the gradient of the energy")


def stress(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check | None:
    """Stress = (1/V) dE/dstrain by finite strain of cell and positions, all six components."""
    periodic = [system for system in systems if system.pbc.all()]
    if not periodic:
        return None
    step = tolerances.STRAIN_STEP.at(potential.precision)
    strained = [_strained(system, a, b, k * step)
                for system in periodic for a, b in VOIGT for k in STENCIL_STEPS]
    before, after = _predict_both(potential, periodic, strained)
    slopes = _energies(after).reshape(len(periodic), len(VOIGT), -1) @ STENCIL_WEIGHTS / step
    errors = []
    for system, prediction, slope in zip(periodic, before, slopes, strict=True):
        reference = np.zeros((3, 3))
        for (a, b), value in zip(VOIGT, slope, strict=True):
            reference[a, b] = reference[b, a] = value / abs(np.linalg.det(system.cell))
        errors.append(_stress_error(prediction.stress, reference))
    return judged("stress", errors, tolerances.STRESS, potential,
                  "stress is the derivative of the energy by strain over the volume, tension positive")


def smoothness(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check | None:
    """Energy, force and curvature are continuous where two atoms stop to see each other.

    Two kinds of path lead through the cutoff: a lone pair of each two elements, and one atom of each system
    leaving another in the presence of the rest. From four points on either side the three are extrapolated to
    the cutoff; the value is the largest gap between the sides (eV, Å) over max(1, the path's largest force).
    """
    cutoff = potential.cutoff
    if not np.isfinite(cutoff):
        return None
    step = tolerances.SMOOTHNESS_STEP.at(potential.precision)
    pairs = _combinations(systems, 2)
    clusters = [replace(system, cell=np.zeros((3, 3)), pbc=np.zeros(3, dtype=bool))
                for system in systems if len(system) > 2]
    leavers = [_leaving_atom(cluster, cutoff, rng) for cluster in pairs + clusters]
    offsets = step * np.concatenate([-ONE_SIDED_STEPS, ONE_SIDED_STEPS])
    path = [_moved(cluster, leaver.atom, leaver.origin + (cutoff + offset) * leaver.direction)
            for cluster, leaver in zip(pairs + clusters, leavers, strict=True) for offset in offsets]
    predictions = potential.predict([system.without_labels() for system in path])
    errors = []
    for k, leaver in enumerate(leavers):
        on_path = predictions[k * len(offsets):(k + 1) * len(offsets)]
        force = np.array([prediction.forces[leaver.atom] @ leaver.direction for prediction in on_path])
        gaps = [*_gaps(_energies(on_path), step)[:1], *_gaps(force, step)]
        errors.append(np.max(np.abs(gaps)) / max(_force_scale(prediction) for prediction in on_path))
    return judged("smoothness", errors, tolerances.SMOOTHNESS, potential,
                  "energy, force and curvature have no jump at the cutoff")


def spikes(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """No spikes: along straight lines on which every atom moves, the force along the line changes as smoothly as bonds do.

    A trained model can be smooth in every derivative and have bumps much narrower than any bond is stiff, where it has no data
    (docs/lab/0010-spikes.md); errors on test frames and finite differences pass them by.
    """
    errors = [roughness(potential, system, rng) for system in systems for _ in range(N_LINES)]
    return judged("spikes", errors, tolerances.SPIKES, potential, "along a line the force has no spike")


def extensivity(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check | None:
    """Two copies out of sight of each other, or a doubled periodic cell, have twice the energy."""
    if not np.isfinite(potential.cutoff):
        return None
    doubled = [_doubled(system, potential.cutoff) for system in systems]

    def expected(before: Prediction, _: int) -> Prediction:
        energies, forces = np.tile(before.energies, 2), np.tile(before.forces, (2, 1))
        return Prediction(2 * before.energy, energies, forces, before.stress)

    return _compare("extensivity", potential, systems, doubled, expected,
                    "two copies have twice the energy and the same forces", tolerances.EXTENSIVITY)


def batching(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """What is predicted together equals what is predicted one by one."""
    ordered = [*systems, *reversed(systems)]
    together = potential.predict(ordered)
    alone = [potential.predict([system])[0] for system in systems]
    apart = [*alone, *reversed(alone)]
    errors = [_error(one, expected) for one, expected in zip(together, apart, strict=True)]
    return judged("batching", errors, tolerances.BATCHING, potential,
                  "a system's prediction does not depend on what else is in the batch")


def isolated_atom(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """A single atom of each element has a finite energy and no force."""
    lone = _combinations(systems, 1)
    predictions = potential.predict(lone)
    errors = [np.abs(p.forces).max() if np.isfinite(p.energy) else np.inf for p in predictions]
    return judged("isolated_atom", errors, tolerances.ISOLATED_FORCE, potential,
                  "a lone atom has a finite energy and no force")


def energy_sum(potential: Potential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """The per-atom energies sum to the energy."""
    predictions = potential.predict(list(systems))
    errors = [abs(p.energies.sum() - p.energy) / len(system) if p.energies.shape == (len(system),) else np.inf
              for p, system in zip(predictions, systems, strict=True)]
    return judged("energy_sum", errors, tolerances.ENERGY_SUM, potential,
                  "the per-atom energies sum to the energy")


LAWS: dict[str, Law] = {
    "translation": translation, "rotation": rotation, "inversion": inversion, "permutation": permutation,
    "forces": forces, "stress": stress, "smoothness": smoothness, "spikes": spikes, "extensivity": extensivity,
    "batching": batching, "isolated_atom": isolated_atom, "energy_sum": energy_sum,
}


def same_function(potential: Potential, other: Potential, systems: Sequence[System]) -> Check:
    """``other`` (a grown model) predicts what ``potential`` does: energies, forces and stresses."""
    plain = [system.without_labels() for system in systems]
    errors = [_error(got, expected) for got, expected in zip(other.predict(plain), potential.predict(plain), strict=True)]
    return judged("growth", errors, tolerances.GROWTH, potential, "the grown model is the same function as the smaller one")


def roughness(potential: Potential, system: System, rng: np.random.Generator) -> float:
    """The largest fourth difference of the force along a random straight line, on which every atom moves, over max(1 eV/Å, the
    largest force on the line).
    """
    step, reach = tolerances.SPIKE_STEP.at(potential.precision), tolerances.SPIKE_REACH
    direction = rng.standard_normal(system.positions.shape)
    direction /= np.linalg.norm(direction, axis=1).max()
    line = potential.predict([replace(system.without_labels(), positions=system.positions + place * direction)
                              for place in np.arange(-reach, reach + step / 2, step)])
    along = np.array([(prediction.forces * direction).sum() for prediction in line])
    return float(np.abs(np.diff(along, 4)).max() / max(map(_force_scale, line)))


class PotentialContract:
    """The laws as tests: subclass in a test file, name the class ``Test...``, and give the two methods.

    ::

        class TestMine(PotentialContract):
            def potential(self): return my_potential()
            def systems(self): return my_systems()
    """

    def potential(self) -> Potential:
        """The potential to test."""
        raise NotImplementedError

    def systems(self) -> Sequence[System]:
        """Small systems away from equilibrium, of elements that the potential knows."""
        raise NotImplementedError

    def _require(self, name: str) -> None:
        import pytest

        check = LAWS[name](self.potential(), self.systems(), generator(0, "laws", name))
        if check is None:
            pytest.skip(f"these systems cannot show the law of {name}")
        assert check.passed, str(check)

    def test_translation(self) -> None:
        self._require("translation")

    def test_rotation(self) -> None:
        self._require("rotation")

    def test_inversion(self) -> None:
        self._require("inversion")

    def test_permutation(self) -> None:
        self._require("permutation")

    def test_forces(self) -> None:
        self._require("forces")

    def test_stress(self) -> None:
        self._require("stress")

    def test_smoothness(self) -> None:
        self._require("smoothness")

    def test_spikes(self) -> None:
        self._require("spikes")

    def test_extensivity(self) -> None:
        self._require("extensivity")

    def test_batching(self) -> None:
        self._require("batching")

    def test_isolated_atom(self) -> None:
        self._require("isolated_atom")

    def test_energy_sum(self) -> None:
        self._require("energy_sum")


def judged(
    name: str, errors: Sequence[float], tolerance: Tolerance, potential: Potential, what: str
) -> Check:
    """The largest of ``errors`` against ``tolerance`` in the precision of ``potential``; for suites of laws beside this one."""
    value, limit = float(np.max(errors)), tolerance.at(potential.precision)
    return Check(name, value, limit, tolerance.unit, bool(value <= limit), what)


def _compare(
    name: str, potential: Potential, systems: Sequence[System], varied: Sequence[System],
    expected: Callable[[Prediction, int], Prediction], what: str,
    tolerance: Tolerance = tolerances.EQUIVARIANCE,
) -> Check:
    """Compare the varied systems' predictions with what ``expected(before, k)`` makes of the originals'."""
    before, after = _predict_both(potential, systems, varied)
    errors = [_error(got, expected(before[k], k)) for k, got in enumerate(after)]
    return judged(name, errors, tolerance, potential, what)


def _turn(
    name: str, potential: Potential, systems: Sequence[System], matrices: Sequence[np.ndarray], what: str
) -> Check:
    turned = [replace(system, positions=system.positions @ matrix.T, cell=system.cell @ matrix.T)
              for system, matrix in zip(systems, matrices, strict=True)]

    def expected(before: Prediction, k: int) -> Prediction:
        matrix = matrices[k]
        stress = None if before.stress is None else matrix @ before.stress @ matrix.T
        return replace(before, forces=before.forces @ matrix.T, stress=stress)

    return _compare(name, potential, systems, turned, expected, what)


def _predict_both(
    potential: Potential, systems: Sequence[System], varied: Sequence[System]
) -> tuple[list[Prediction], list[Prediction]]:
    predictions = potential.predict([system.without_labels() for system in (*systems, *varied)])
    return predictions[:len(systems)], predictions[len(systems):]


def _error(got: Prediction, expected: Prediction) -> float:
    """The largest of the errors of energy (eV/atom), energies, forces and stress (relative)."""
    if got.forces.shape != expected.forces.shape or got.energies.shape != expected.energies.shape:
        return np.inf
    return float(np.max([
        abs(got.energy - expected.energy) / len(expected.forces),
        np.abs(got.energies - expected.energies).max(),
        np.abs(got.forces - expected.forces).max() / _force_scale(expected),
        _stress_error(got.stress, expected.stress),
    ]))


def _stress_error(got: np.ndarray | None, expected: np.ndarray | None) -> float:
    if got is None or expected is None:
        return 0.0 if got is expected else np.inf
    scale = max(tolerances.STRESS_FLOOR, np.abs(expected).max())
    return float(np.abs(got - expected).max() / scale)


def _combinations(systems: Sequence[System], n_atoms: int) -> list[System]:
    """``n_atoms`` of the elements that occur together, 1.4 Å apart, with each charge, multiplicity and level of theory."""
    elements: dict[tuple[int, int, str], set[int]] = {}
    for system in systems:
        elements.setdefault((system.charge, system.spin, system.level), set()).update(system.numbers.tolist())
    return [System(numbers=np.array(numbers), positions=np.eye(n_atoms, 3), charge=charge, spin=spin, level=level)
            for (charge, spin, level), found in elements.items()
            for numbers in combinations_with_replacement(sorted(found), n_atoms)]


def _force_scale(prediction: Prediction) -> float:
    return max(tolerances.FORCE_FLOOR, float(np.abs(prediction.forces).max()))


def _energies(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([prediction.energy for prediction in predictions])


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    # A normalised Gaussian quaternion is uniform over rotations.
    return np.asarray(Rotation.from_quat(rng.standard_normal(4)).as_matrix())


def _moved(system: System, atom: int, position: np.ndarray) -> System:
    positions = system.positions.copy()
    positions[atom] = position
    return replace(system, positions=positions)


def _displaced(system: System, component: int, distance: float) -> System:
    atom, axis = divmod(int(component), 3)
    return _moved(system, atom, system.positions[atom] + distance * np.eye(3)[axis])


def _strained(system: System, a: int, b: int, size: float) -> System:
    """The system under a symmetric strain with dE/dsize = V stress[a, b]."""
    deformation = np.eye(3)
    deformation[a, b] += size / 2
    deformation[b, a] += size / 2
    return replace(system, positions=system.positions @ deformation, cell=system.cell @ deformation)


def _doubled(system: System, cutoff: float) -> System:
    """Two copies: a supercell if periodic, else too far apart to see each other even through a chain."""
    cell, axes = system.cell.copy(), np.flatnonzero(system.pbc)
    if len(axes):
        shift = cell[axes[0]].copy()
        cell[axes[0]] *= 2
    else:
        shift = np.array([np.ptp(system.positions[:, 0]) + 3 * cutoff, 0.0, 0.0])
    positions = np.concatenate([system.positions, system.positions + shift])
    # To a model the charge, multiplicity and level of theory are what each atom is told, alike in both copies.
    return System(numbers=np.tile(system.numbers, 2), positions=positions, cell=cell, pbc=system.pbc, charge=system.charge,
                  spin=system.spin, level=system.level)


@dataclass(frozen=True)
class _Leaver:
    """An atom that leaves the atom at ``origin`` along ``direction``."""

    atom: int
    origin: np.ndarray
    direction: np.ndarray


def _leaving_atom(system: System, cutoff: float, rng: np.random.Generator) -> _Leaver:
    """Choose an atom and a way out that leads past the others: near enough to feel them, not into them."""
    atom, origin = rng.choice(len(system), 2, replace=False)
    rest = np.delete(system.positions, atom, axis=0)
    directions = rng.standard_normal((64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = system.positions[origin] + cutoff * directions
    nearest = np.linalg.norm(places[:, None] - rest, axis=2).min(axis=1)
    apart = np.linalg.norm(system.positions[:, None] - system.positions, axis=2)
    closest_allowed = min(apart[np.triu_indices(len(system), 1)].min(), nearest.max())
    best = np.argmin(np.where(nearest >= closest_allowed, nearest, np.inf))
    return _Leaver(int(atom), system.positions[origin], directions[best])


def _gaps(values: np.ndarray, step: float) -> tuple[float, float]:
    """Jumps at 0 of a function and its derivative, from its values at (-h, -2h, -3h, -4h, h, 2h, 3h, 4h)."""
    below, above = np.split(values, 2)
    jump = (above - below) @ ONE_SIDED_VALUE
    return float(jump), float((above + below) @ ONE_SIDED_SLOPE / step)
