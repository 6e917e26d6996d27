"""Molecular dynamics against known answers, and against potentials with planted faults."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, CalculatorError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.idealgas import IdealGas

from sapis.core.errors import SimulationError
from sapis.data.system import System
from sapis.potential.prediction import Potential
from sapis.simulate.md import NveTrace, drift, fluctuation, order_test, run_nve, run_nvt
from sapis.testing.analytic import HarmonicBonds, LennardJones
from sapis.testing.tolerances import NVE_DRIFT_MEV_ATOM_PS, ORDER_SLOPE, ORDER_SLOPE_DEVIATION

STIFFNESS = 30.0


class OfPotential(Calculator):
    """A potential as an ASE calculator, with a force that may be added or a step at which it fails."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, potential: Potential, extra_force: float = 0.0, fails_at: int = -1) -> None:
        super().__init__()
        self.potential, self.extra_force, self.fails_at, self.n_calls = potential, extra_force, fails_at, 0

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        if self.n_calls == self.fails_at:
            raise CalculatorError("no convergence")
        prediction = self.potential.predict([System.from_atoms(atoms)])[0]
        self.results = {"energy": prediction.energy, "forces": prediction.forces + self.extra_force}


class Truncated(LennardJones):
    """Lennard-Jones cut off without an envelope: pairs that cross the cutoff gain or lose energy."""

    def pair_energy(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sixth = (self.sigma / r) ** 6
        return 4 * self.epsilon * (sixth**2 - sixth), -24 * self.epsilon * (2 * sixth**2 - sixth) / r


def diatomic() -> Atoms:
    atoms = Atoms("NO", [[0, 0, 0], [0, 0, 1.0]])
    atoms.calc = OfPotential(HarmonicBonds(bonds=((0, 1),), stiffness=STIFFNESS))
    return atoms


def argon(potential: Potential) -> Atoms:
    atoms = Atoms("Ar13", bulk("Ar", "fcc", 5.4, cubic=True).repeat(2).positions[:13])
    atoms.calc = OfPotential(potential)
    return atoms


def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.calc = OfPotential(HarmonicBonds(bonds=((0, 1), (0, 2)), length=1.0))
    return atoms


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    return atoms


def trace_of(energy: np.ndarray, time_ps: float = 10.0) -> NveTrace:
    time = np.linspace(0, time_ps, len(energy))
    return NveTrace(300, 0.5, 10, time, energy, np.full_like(time, 300), np.zeros_like(time), True, "")


@pytest.mark.parametrize("timestep_fs", [0.5, 2.0])
def test_a_harmonic_oscillator_fluctuates_as_velocity_verlet_says(timestep_fs: float) -> None:
    """Verlet conserves p^2/2m + (1 - y) k x^2/2, y = (omega dt)^2/4, so E swings by E0 y/(1 - y) cos^2."""
    atoms = diatomic()
    trace = run_nve(atoms, temperature_K=300, timestep_fs=timestep_fs, time_ps=0.5, seed=0, sample_every_fs=2)
    omega = np.sqrt(STIFFNESS * np.sum(1 / atoms.get_masses())) * units.fs
    y = (omega * timestep_fs) ** 2 / 4
    energy_meV_atom = 1000 * units.kB * 300 / 2 / len(atoms)  # one vibration, at rest length at the start
    assert fluctuation(trace) == pytest.approx(energy_meV_atom * y / (1 - y) / np.sqrt(8), rel=0.01)


def test_nve_starts_at_the_temperature_without_rigid_motion_and_leaves_the_atoms_alone() -> None:
    atoms = diatomic()
    before = atoms.positions.copy()
    trace = run_nve(atoms, temperature_K=250, timestep_fs=1, time_ps=0.2, seed=1)
    assert trace.kinetic_K[0] == pytest.approx(250)
    assert trace.centre_drift_A.max() < 1e-12
    assert (atoms.positions == before).all() and not atoms.has("momenta")
    assert trace.time_ps[-1] == pytest.approx(0.2) and trace.is_stable


def test_nve_of_one_atom_stands_still() -> None:
    atoms = Atoms("Ar")
    atoms.calc = OfPotential(LennardJones())
    trace = run_nve(atoms, temperature_K=300, timestep_fs=1, time_ps=0.1, seed=0)
    assert trace.is_stable and trace.kinetic_K.max() == 0 and trace.energy_meV_atom.max() == 0


def test_a_smooth_potential_does_not_drift() -> None:
    trace = run_nve(argon(LennardJones()), temperature_K=30, timestep_fs=4, time_ps=2, seed=0)
    slope, error = drift(trace)
    assert abs(slope) < NVE_DRIFT_MEV_ATOM_PS.float64 and abs(slope) < 4 * error + 1e-6


def test_the_same_seed_gives_the_same_run() -> None:
    first, second, other = (run_nve(copper(), temperature_K=300, timestep_fs=2, time_ps=0.05, seed=seed)
                            for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.energy_meV_atom, second.energy_meV_atom)
    assert (first.energy_meV_atom != other.energy_meV_atom).any()
    one, two = (run_nvt(copper(), temperature_K=300, timestep_fs=2, time_ps=0.05, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.kinetic_K, two.kinetic_K)


@pytest.mark.parametrize("atoms, temperature_K, timesteps_fs", [
    (copper(), 300, (1, 2, 4)), (argon(LennardJones()), 40, (2, 4, 8)),
], ids=["EMT copper", "Lennard-Jones"])
def test_smooth_potentials_are_of_second_order(
    atoms: Atoms, temperature_K: float, timesteps_fs: tuple[float, ...]
) -> None:
    result = order_test(atoms, timesteps_fs, temperature_K=temperature_K, time_ps=0.4,
                        sample_every_fs=timesteps_fs[-1])
    assert result.slope == pytest.approx(ORDER_SLOPE, abs=ORDER_SLOPE_DEVIATION)
    assert json.loads(json.dumps(result.to_record()))["timesteps_fs"] == list(timesteps_fs)


def test_a_truncated_potential_is_caught_by_the_order_test() -> None:
    result = order_test(argon(Truncated()), (2, 4, 8), temperature_K=40, time_ps=0.6, sample_every_fs=8)
    assert abs(result.slope - ORDER_SLOPE) > 4 * ORDER_SLOPE_DEVIATION


def test_a_steady_gain_of_energy_is_seen_as_drift_and_a_net_force_as_moving_centre() -> None:
    atoms = argon(LennardJones())
    atoms.calc.extra_force = 0.001  # eV/Å on every atom, without an energy to it
    trace = run_nve(atoms, temperature_K=30, timestep_fs=4, time_ps=2, seed=0)
    slope, error = drift(trace)
    assert slope > 50 * NVE_DRIFT_MEV_ATOM_PS.float64 and slope > 4 * error
    assert trace.centre_drift_A[-1] > 0.4


def test_drift_recovers_a_known_slope_within_its_standard_error() -> None:
    """Correlated noise (memory of 50 samples of 4000) about a slope of 0.02: the errors must be honest."""
    rng, deviations = np.random.default_rng(0), []
    for _ in range(200):
        noise = np.zeros(4000)
        for k, kick in enumerate(rng.normal(size=3999)):
            noise[k + 1] = 0.98 * noise[k] + 0.01 * kick
        slope, error = drift(trace_of(0.02 * np.linspace(0, 10, 4000) + noise))
        deviations.append((slope - 0.02) / error)
    assert abs(np.mean(deviations)) < 0.3
    assert 0.8 < np.std(deviations) < 1.5, "with independent samples assumed it would be about 7"


def test_drift_of_a_short_or_unstable_run_is_not_a_number() -> None:
    assert np.isnan(drift(trace_of(np.zeros(5)))).all()
    hot = water()
    hot.calc.extra_force = float("nan")
    trace = run_nve(hot, temperature_K=300, timestep_fs=1, time_ps=0.1, seed=0)
    assert not trace.is_stable and "not finite" in trace.reason
    record = trace.to_record()
    assert record["drift_meV_atom_ps"] is None and record["fluctuation_meV_atom"] is None
    json.dumps(record, allow_nan=False)


def test_a_timestep_too_long_explodes_and_says_so() -> None:
    trace = run_nve(water(), temperature_K=300, timestep_fs=15, time_ps=3, seed=0)
    assert not trace.is_stable and trace.reason
    result = order_test(water(), (7.5, 15), time_ps=3, sample_every_fs=15)
    assert np.isnan(result.slope) and result.to_record()["slope"] is None


def test_a_broken_bond_ends_the_run() -> None:
    """Springs that rest at twice the length of the bonds at the start pull them open."""
    atoms = water()
    atoms.calc = OfPotential(HarmonicBonds(bonds=((0, 1), (0, 2)), length=2.0, stiffness=5.0))
    trace = run_nvt(atoms, temperature_K=3000, time_ps=1, seed=0, timestep_fs=0.5)
    assert not trace.is_stable and "the bond" in trace.reason and "O0" in trace.reason
    assert trace.to_record()["time_ps"] < 0.1


def test_a_calculator_that_fails_on_the_way_ends_the_run_and_at_the_start_is_an_error() -> None:
    atoms = water()
    atoms.calc.fails_at = 10
    trace = run_nve(atoms, temperature_K=300, timestep_fs=1, time_ps=0.1, seed=0)
    assert not trace.is_stable and "no convergence" in trace.reason
    atoms.calc = OfPotential(LennardJones(), fails_at=1)
    with pytest.raises(CalculatorError):
        run_nve(atoms, temperature_K=300, timestep_fs=1, time_ps=0.1, seed=0)


def test_langevin_holds_its_temperature() -> None:
    trace = run_nvt(copper(), temperature_K=400, time_ps=3, timestep_fs=5, friction_per_fs=0.02, seed=0)
    assert trace.is_stable, trace.reason
    assert abs(trace.mean_K - 400) < 4 * trace.standard_error_K + 20
    record = trace.to_record()
    assert record.keys() >= {"target_K", "mean_K", "time_ps", "is_stable", "reason", "trace"}
    assert record["time_ps"] == pytest.approx(3) and len(record["trace"]["temperature_K"]) <= 500
    json.dumps(record, allow_nan=False)


def test_langevin_of_a_free_atom_matches_the_expected_standard_error() -> None:
    atoms = Atoms("Ar")
    atoms.calc = IdealGas()
    trace = run_nvt(atoms, temperature_K=300, time_ps=20, timestep_fs=10, friction_per_fs=0.02, seed=0)
    assert trace.is_stable and trace.mean_K == pytest.approx(300, abs=4 * trace.standard_error_K)


def test_a_potential_that_heats_is_unstable_at_constant_temperature() -> None:
    """Forces that always push along: the bath cannot take the energy away fast enough."""
    atoms = argon(LennardJones())
    atoms.calc.extra_force = 0.05
    trace = run_nvt(atoms, temperature_K=40, time_ps=1.2, timestep_fs=4, friction_per_fs=0.01, seed=0)
    assert not trace.is_stable and ("mean temperature" in trace.reason or "explosion" in trace.reason)


def test_the_nve_record_has_its_keys_and_a_thinned_trace() -> None:
    trace = run_nve(diatomic(), temperature_K=300, timestep_fs=1, time_ps=0.6, seed=0)
    record = json.loads(json.dumps(trace.to_record(), allow_nan=False))
    assert record.keys() >= {"temperature_K", "timestep_fs", "time_ps", "n_atoms", "drift_meV_atom_ps",
                             "drift_standard_error", "fluctuation_meV_atom", "is_stable", "trace"}
    assert record["n_atoms"] == 2 and record["time_ps"] == pytest.approx(0.6)
    assert len(record["trace"]["time_ps"]) == len(record["trace"]["energy_meV_atom"]) == 500
    assert (record["trace"]["time_ps"][0], record["trace"]["time_ps"][-1]) == (0, pytest.approx(0.6))


def test_runs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SimulationError, match="calculator"):
        run_nve(Atoms("Ar"), temperature_K=300, timestep_fs=1, time_ps=1, seed=0)
    for wrong in ({"temperature_K": 0}, {"timestep_fs": -1}, {"time_ps": float("nan")}, {"time_ps": 1e-6}):
        settings = {"temperature_K": 300, "timestep_fs": 1, "time_ps": 1, **wrong}
        with pytest.raises(SimulationError):
            run_nve(diatomic(), seed=0, **settings)
    with pytest.raises(SimulationError, match="friction"):
        run_nvt(diatomic(), temperature_K=300, time_ps=1, friction_per_fs=0, seed=0)
    for timesteps in ((0.5,), (0.3, 0.5), (0.5, 2.0)):
        with pytest.raises(SimulationError, match="sampling interval"):
            order_test(diatomic(), timesteps, time_ps=0.01)
