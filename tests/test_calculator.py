"""The ASE calculator keeps ASE's contract."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from conftest import crystal, small_potential
from sapis.api import load, save
from sapis.core.errors import DataError, ModelError
from sapis.data.system import System
from sapis.potential.calculator import SapisCalculator
from sapis.testing.analytic import LennardJones

SMALL = {"l_max": 1, "order": 2}


def calculator(precision: str = "float64") -> SapisCalculator:
    return SapisCalculator(small_potential(precision, **SMALL))


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    atoms.calc = calculator()
    return atoms


def solid() -> Atoms:
    atoms = crystal(4).to_atoms()
    atoms.calc = calculator()
    return atoms


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_every_property_has_its_shape_and_type(precision: str) -> None:
    atoms = solid()
    atoms.calc = calculator(precision)
    assert set(atoms.calc.implemented_properties) >= {"energy", "free_energy", "energies", "forces", "stress"}
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    assert isinstance(energy, float)
    assert forces.shape == (4, 3) and forces.dtype == np.float64
    assert stress.shape == (6,) and stress.dtype == np.float64
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, rel=1e-7)
    assert atoms.get_stress(voigt=False).shape == (3, 3)
    assert atoms.calc.get_property("free_energy", atoms) == energy
    assert atoms.get_potential_energy(force_consistent=True) == energy


def test_it_says_what_the_potential_says() -> None:
    atoms = solid()
    (prediction,) = small_potential(**SMALL).predict([crystal(4)])
    assert atoms.get_potential_energy() == prediction.energy
    np.testing.assert_array_equal(atoms.get_forces(), prediction.forces)
    assert prediction.stress is not None
    np.testing.assert_array_equal(atoms.get_stress(), full_3x3_to_voigt_6_stress(prediction.stress))


def test_forces_and_stress_against_the_finite_differences_of_ase() -> None:
    """Sign, unit and Voigt order by code that is not ours."""
    atoms = solid()
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-5)
    stress = atoms.get_stress()
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6)
    assert len(set(np.round(np.abs(stress), 4))) == 6, "six components that could not be mistaken for each other"


def test_tension_is_positive() -> None:
    """A crystal of Lennard-Jones atoms that is stretched pulls, one that is pressed pushes."""
    for length, sign in ((5.6, 1), (4.9, -1)):
        atoms = bulk("Ar", "fcc", length, cubic=True)
        atoms.calc = SapisCalculator(LennardJones())
        assert (np.sign(atoms.get_stress()[:3]) == sign).all()
        assert abs(atoms.get_stress()[3:]).max() < 1e-12


def test_float32_and_float64_agree() -> None:
    fine, coarse = ethanol(), ethanol()
    coarse.calc = SapisCalculator(small_potential("float64", **SMALL).with_precision("float32"))
    assert coarse.get_potential_energy() == pytest.approx(fine.get_potential_energy(), abs=1e-3)
    np.testing.assert_allclose(coarse.get_forces(), fine.get_forces(), atol=1e-3)


@pytest.mark.parametrize("make", [ethanol, solid])
def test_it_survives_pickling(make: type) -> None:
    atoms = make()
    again = pickle.loads(pickle.dumps(atoms))
    again.calc.reset()
    assert again.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(again.get_forces(), atoms.get_forces())


def test_every_change_is_noticed() -> None:
    changes = {
        "positions": lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 0.05),
        "cell": lambda atoms: atoms.set_cell(1.02 * atoms.cell.array),
        "numbers": lambda atoms: atoms.numbers.__setitem__(0, 8 if atoms.numbers[0] == 1 else 1),
        "pbc": lambda atoms: atoms.set_pbc([True, True, False]),
    }
    for name, change in changes.items():
        atoms = solid()
        before, forces = atoms.get_potential_energy(), atoms.get_forces()
        change(atoms)
        fresh = atoms.copy()
        fresh.calc = calculator()
        assert atoms.get_potential_energy() == fresh.get_potential_energy() != before, name
        np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())
        assert not np.array_equal(atoms.get_forces(), forces), name


def test_nothing_is_computed_twice() -> None:
    atoms, calls = solid(), []
    compute = atoms.calc.calculate

    def counted(atoms: Atoms | None = None, properties: list[str] | None = None,
                system_changes: list[str] = all_changes) -> None:
        calls.append(system_changes)
        compute(atoms, properties, system_changes)

    atoms.calc.calculate = counted
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()
    assert len(calls) == 1
    atoms.positions[0] += 0.01
    atoms.get_stress(), atoms.get_forces()
    assert len(calls) == 2


def test_results_are_not_shared_with_the_caller() -> None:
    atoms = solid()
    atoms.get_forces()[:] = 1e9
    atoms.get_stress()[:] = 1e9
    assert np.abs(atoms.get_forces()).max() < 1e8 and np.abs(atoms.get_stress()).max() < 1e8


def test_one_atom_alone() -> None:
    atoms = Atoms("O", calculator=calculator())
    assert np.isfinite(atoms.get_potential_energy())
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))


@pytest.mark.parametrize("pbc", [False, [True, True, False]])
def test_no_stress_without_three_periodic_directions(pbc: object) -> None:
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]], cell=3 * np.eye(3), pbc=pbc, calculator=calculator())
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_dipoles_are_not_there() -> None:
    with pytest.raises(PropertyNotImplementedError):
        ethanol().get_dipole_moment()


def test_constraints_are_not_folded_into_the_results() -> None:
    atoms = ethanol()
    free = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), free)
    np.testing.assert_array_equal(atoms.calc.results["forces"], free)
    assert not atoms.get_forces()[:2].any(), "ASE applies them, on top"
    atoms.positions[5] += 0.01
    assert atoms.get_forces(apply_constraint=False)[:2].any()


def test_unknown_elements_and_broken_structures_are_named() -> None:
    with pytest.raises(ModelError, match="Au"):
        Atoms("OAu", positions=[[0, 0, 0], [0, 0, 2]], calculator=calculator()).get_forces()
    with pytest.raises(DataError, match="apart"):
        Atoms("OH", calculator=calculator()).get_potential_energy()
    with pytest.raises(DataError, match="positions"):
        Atoms("OH", positions=[[0, 0, 0], [0, 0, np.nan]], calculator=calculator()).get_potential_energy()


def test_after_an_error_it_goes_on() -> None:
    atoms = ethanol()
    expected, positions = atoms.get_potential_energy(), atoms.positions.copy()
    atoms.positions[0, 0] = np.nan
    with pytest.raises(DataError):
        atoms.get_potential_energy()
    atoms.positions[:] = positions
    assert atoms.get_potential_energy() == expected


def test_it_drives_dynamics_and_relaxations_of_ase() -> None:
    atoms = solid()
    atoms.calc = SapisCalculator(LennardJones(elements=(1, 6, 8), sigma=1.4, onset=2.5, cutoff=3.5))
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=30)
    assert atoms.get_potential_energy() < before
    gas = ethanol()
    energy = gas.get_total_energy()
    VelocityVerlet(gas, 0.1 * units.fs).run(20)
    assert gas.get_kinetic_energy() > 1e-4
    assert gas.get_total_energy() == pytest.approx(energy, abs=0.02 * gas.get_kinetic_energy())


def test_the_calculator_of_a_loaded_model(tmp_path: Path) -> None:
    potential = small_potential("float32", **SMALL)
    save(tmp_path / "model.sapis", potential, {})
    atoms = ethanol()
    for precision in (None, "float32", "float64"):
        atoms.calc = load(tmp_path / "model.sapis").calculator(precision)
        expected = potential.with_precision(precision or "float32").predict([System.from_atoms(atoms)])[0].energy
        assert atoms.get_potential_energy() == expected
