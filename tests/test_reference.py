"""Reference energies: known values recovered, one composition harmless, never two kinds mixed."""

import os
from pathlib import Path

import numpy as np
import pytest

from sapis.core.errors import DataError
from sapis.data.formats import read_systems
from sapis.data.reference import (
    choose_reference_energies,
    fit_reference_energies,
    reference_energies_from_isolated,
    total_reference,
)
from sapis.data.system import System

SHARED = Path(os.environ.get("SAPIS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no reference data in {SHARED}")

ATOMS = {1: -13.57, 6: -1026.85, 8: -2037.80}


def gas(numbers: list[int], energy: float | None = None) -> System:
    positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    return System(numbers, positions, energy=energy)


def mixtures(seed: int, noise: float) -> list[System]:
    random = np.random.default_rng(seed)
    systems = []
    for _ in range(200):
        numbers = random.choice(list(ATOMS), size=random.integers(2, 12)).tolist()
        systems.append(gas(numbers, sum(ATOMS[z] for z in numbers) + noise * random.normal()))
    return systems


def test_planted_values_are_recovered() -> None:
    values = fit_reference_energies(mixtures(0, noise=0.0))
    assert values == pytest.approx(ATOMS, abs=1e-3)
    assert fit_reference_energies(mixtures(0, noise=0.1)) == pytest.approx(ATOMS, abs=0.05)


def test_one_composition_keeps_its_mean_energy() -> None:
    systems = [gas([6, 1, 1, 1, 1], energy) for energy in (-1101.0, -1102.0, -1103.5)]
    values = fit_reference_energies(systems)
    mean = np.mean([system.energy for system in systems])
    assert total_reference(systems[0], values) == pytest.approx(mean, rel=1e-9)
    assert values[1] == pytest.approx(values[6]) == pytest.approx(mean / 5)


def test_elements_that_always_come_together_share_evenly() -> None:
    # C and O always together: only their sum is determined, and a bare solve could give them any values.
    systems = [gas([6, 8] * k + [1] * (k + h), 100.0 * k + 5.0 * h) for k in (1, 2, 3) for h in (0, 1, 2)]
    values = fit_reference_energies(systems)
    assert values[6] == pytest.approx(values[8], abs=1e-6)
    assert max(abs(value) for value in values.values()) < 100


def test_ridge_pulls_towards_the_mean_per_atom() -> None:
    systems = mixtures(0, noise=0.0)
    mean = sum(float(s.energy or 0) for s in systems) / sum(len(s) for s in systems)
    assert fit_reference_energies(systems, ridge=1e9) == pytest.approx(dict.fromkeys(ATOMS, mean), rel=1e-3)


def test_systems_without_energy_are_left_out() -> None:
    values = fit_reference_energies([gas([1, 1], -2.0), gas([1, 8], None)])
    assert values == pytest.approx({1: -1.0})
    with pytest.raises(DataError, match="1 without"):
        fit_reference_energies([gas([1, 8], None)])


def test_isolated_atoms() -> None:
    atoms = [gas([1], -13.5), gas([8], -2037.0), gas([8], -2035.0)]
    assert reference_energies_from_isolated(atoms) == {1: -13.5, 8: -2037.0}
    for wrong in (gas([1, 1], -1.0), gas([1], None), System([1], [[0, 0, 0]], energy=-0.1, charge=1)):
        with pytest.raises(DataError, match="neutral atom"):
            reference_energies_from_isolated([*atoms, wrong])


def test_all_isolated_or_all_fitted() -> None:
    systems = mixtures(1, noise=0.0)
    chosen = choose_reference_energies(systems, {**ATOMS, 26: -1.0})
    assert chosen.values == ATOMS and set(chosen.source.values()) == {"isolated atom"}
    fitted = choose_reference_energies(systems, {1: 0.0, 6: 0.0})
    assert fitted.values == pytest.approx(ATOMS, abs=1e-3)
    assert fitted.source == dict.fromkeys(ATOMS, "least squares")


def test_total_reference() -> None:
    assert total_reference(gas([8, 1, 1]), ATOMS) == pytest.approx(-2037.80 - 2 * 13.57, rel=1e-15)
    with pytest.raises(DataError, match=r"received: S, Fe") as error:
        total_reference(gas([8, 16, 26]), ATOMS)
    assert "(H, C, O)" in error.value.expected


@needs_data
def test_real_data() -> None:
    isolated = reference_energies_from_isolated(read_systems(SHARED / "acac/isolated_atoms.extxyz.gz"))
    systems = read_systems(SHARED / "acac/train_300K.extxyz.gz")
    chosen = choose_reference_energies(systems, isolated)
    binding = [float(s.energy or 0) - total_reference(s, chosen.values) for s in systems]
    assert -75 < np.mean(binding) < -55  # eV: 14 bonds of 4 to 6 eV
    values = fit_reference_energies(systems)
    mean = np.mean([float(s.energy or 0) for s in systems])
    assert total_reference(systems[0], values) == pytest.approx(mean, rel=1e-9)


@needs_data
def test_many_compositions() -> None:
    systems = read_systems(SHARED / "qm7x_2500/qm7x_2500.extxyz.gz", index=":800")
    values = fit_reference_energies(systems)
    residuals = np.array([(float(s.energy or 0) - total_reference(s, values)) / len(s) for s in systems])
    assert values[1] == pytest.approx(-16.0, abs=1.5)  # free atom -13.6 eV and its share of the bonds
    assert np.sqrt(np.mean(residuals**2)) < 0.3
