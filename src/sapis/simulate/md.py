"""Molecular dynamics that tests a potential: conservation of energy, order of convergence, stability.

Everything takes ``atoms`` with an ASE calculator in ``atoms.calc`` and leaves them as they were. Constraints
are dropped: these runs test the potential. A run that leaves the region where its result means anything is
not an error but a result with ``is_stable`` False and a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from sapis.core.errors import SapisError, SimulationError
from sapis.core.progress import progress_bar
from sapis.core.seeds import generator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet

MAX_BOND_CHANGE = 0.5  # Å; the stability criterion of Fu et al., "Forces are not enough", TMLR 2023
BOND_FACTOR = 1.2  # a bond is shorter than this times the sum of the covalent radii
EXPLOSION_FACTOR = 10.0
N_BLOCKS = 10
UNCERTAIN = "uncertain"  # how the reason begins of a run that was ended for that
MAX_TRACE = 500  # points of a trace that go into a record
NONMETALS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53})


@dataclass(frozen=True, eq=False)
class NveTrace:
    """A run at constant energy, sampled.

    Attributes:
        temperature_K: of the initial velocities.
        timestep_fs: step of velocity Verlet.
        n_atoms: number of atoms.
        time_ps: ``(samples,)``, from 0.
        energy_meV_atom: kinetic plus potential energy relative to the start, ``(samples,)``.
        kinetic_K: 2 E_kin / (k n_degrees), ``(samples,)``.
        centre_drift_A: how far the centre of mass has moved, ``(samples,)``; 0 if forces sum to 0.
        is_stable: False if the run ended early.
        reason: why it ended early, else empty.
        final: where it ended.
        n_uncertain: steps at which the force on some atom was more uncertain than the limit, if there was one.
        uncertain_at: where the first of these was; None if there was none.
    """

    temperature_K: float
    timestep_fs: float
    n_atoms: int
    time_ps: np.ndarray
    energy_meV_atom: np.ndarray
    kinetic_K: np.ndarray
    centre_drift_A: np.ndarray
    is_stable: bool
    reason: str
    final: Atoms | None = None
    n_uncertain: int = 0
    uncertain_at: Atoms | None = None

    def to_record(self) -> dict[str, Any]:
        """JSON values; figures that an unstable run cannot give are None, the trace is thinned."""
        slope, error = drift(self)
        kept = _thinned(len(self.time_ps))
        return {
            "temperature_K": self.temperature_K, "timestep_fs": self.timestep_fs,
            "time_ps": float(self.time_ps[-1]), "n_atoms": self.n_atoms,
            "drift_meV_atom_ps": _number(slope), "drift_standard_error": _number(error),
            "fluctuation_meV_atom": _number(fluctuation(self)),
            "centre_drift_A": float(self.centre_drift_A[-1]),
            "is_stable": self.is_stable, "reason": self.reason, "n_uncertain": self.n_uncertain,
            "trace": {"time_ps": self.time_ps[kept].tolist(),
                      "energy_meV_atom": self.energy_meV_atom[kept].tolist()},
        }


@dataclass(frozen=True)
class OrderTest:
    """Fluctuation of the total energy against the timestep; its log-log slope is 2 for a smooth potential."""

    timesteps_fs: tuple[float, ...]
    fluctuations_meV_atom: tuple[float, ...]
    slope: float

    def to_record(self) -> dict[str, Any]:
        """JSON values; None where a run was unstable."""
        return {
            "timesteps_fs": list(self.timesteps_fs),
            "fluctuations_meV_atom": [_number(value) for value in self.fluctuations_meV_atom],
            "slope": _number(self.slope),
        }


@dataclass(frozen=True, eq=False)
class NvtTrace:
    """A Langevin run at constant temperature, sampled.

    Attributes:
        target_K: temperature of the bath.
        mean_K: mean kinetic temperature after equilibration.
        standard_error_K: expected standard error of ``mean_K`` for a canonical run of this length.
        time_ps: ``(samples,)``, from 0.
        kinetic_K: ``(samples,)``.
        is_stable: False if the run ended early or its mean temperature is wrong.
        reason: why, else empty.
        final: where it ended.
        n_uncertain, uncertain_at: see `NveTrace`.
    """

    target_K: float
    mean_K: float
    standard_error_K: float
    time_ps: np.ndarray
    kinetic_K: np.ndarray
    is_stable: bool
    reason: str
    final: Atoms | None = None
    n_uncertain: int = 0
    uncertain_at: Atoms | None = None

    def to_record(self) -> dict[str, Any]:
        """JSON values; ``time_ps`` is the time for which the run was stable."""
        kept = _thinned(len(self.time_ps))
        return {
            "target_K": self.target_K, "mean_K": _number(self.mean_K),
            "standard_error_K": _number(self.standard_error_K), "time_ps": float(self.time_ps[-1]),
            "is_stable": self.is_stable, "reason": self.reason, "n_uncertain": self.n_uncertain,
            "trace": {"time_ps": self.time_ps[kept].tolist(), "temperature_K": self.kinetic_K[kept].tolist()},
        }


def run_nve(
    atoms: Atoms, *, temperature_K: float, timestep_fs: float, time_ps: float, seed: int,
    sample_every_fs: float = 1.0, max_uncertainty_eV_A: float | None = None, goes_on: bool = False,
) -> NveTrace:
    """Velocity Verlet from Maxwell-Boltzmann velocities.

    Rigid motion (of the centre of mass and, unless periodic, rotation) is removed and the rest scaled to
    exactly ``temperature_K``.

    Args:
        seed: of the velocities; runs with one seed and different timesteps start alike.
        sample_every_fs: rounded to whole timesteps.
        max_uncertainty_eV_A: end the run at the first step at which the force on some atom is more uncertain than this.
        goes_on: count such steps instead, and go on.

    Raises:
        SimulationError: no calculator, or a temperature, timestep or time that is not positive; a limit of uncertainty with a
            calculator that has none.
    """
    from ase.md.verlet import VelocityVerlet

    _require_run(atoms, temperature_K, timestep_fs, time_ps)
    moving, n_degrees = _started(atoms, temperature_K, seed, is_rigid_motion_removed=True)
    start_energy, start_centre = moving.get_total_energy(), moving.get_center_of_mass()

    def sample() -> tuple[float, float, float]:
        gained = (moving.get_total_energy() - start_energy) / len(moving) * 1000.0
        travelled = float(np.linalg.norm(moving.get_center_of_mass() - start_centre))
        return gained, _temperature(moving, n_degrees), travelled

    dynamics = VelocityVerlet(moving, timestep=timestep_fs * units.fs)
    stride = max(1, round(sample_every_fs / timestep_fs))
    watch = _Watch(moving, temperature_K, n_degrees, max_uncertainty_eV_A, goes_on=goes_on)
    n_steps = round(time_ps * 1000 / timestep_fs)
    samples, reason = _integrated(dynamics, n_steps, stride, sample, watch, f"NVE {timestep_fs:g} fs")
    times_ps = np.arange(len(samples)) * stride * timestep_fs / 1000
    energy, kelvin, centre = samples.T
    return NveTrace(
        temperature_K, timestep_fs, len(moving), times_ps, energy, kelvin, centre, not reason, reason, moving, watch.n_uncertain,
        watch.uncertain_at,
    )


def drift(trace: NveTrace) -> tuple[float, float]:
    """Slope of the total energy against time and its standard error, meV/atom/ps.

    NaN if unstable or too short. Ordinary least squares: slope = sum(x y) / sum(x^2) with x the centred time.
    Its error allows for correlated samples by blocks: with residuals e and S_b the sum of x e over block b of
    B = `N_BLOCKS`, error^2 = B/(B - 2) sum(S_b^2) / sum(x^2)^2 (Liang and Zeger, Biometrika 73, 13, 1986).
    It is right if the energy's memory is short against a block.
    """
    if not trace.is_stable or len(trace.time_ps) < 2 * N_BLOCKS:
        return float("nan"), float("nan")
    x = trace.time_ps - trace.time_ps.mean()
    slope = x @ trace.energy_meV_atom / (x @ x)
    scores = x * _residual(trace)
    blocks = np.array([block.sum() for block in np.array_split(scores, N_BLOCKS)])
    variance = N_BLOCKS / (N_BLOCKS - 2) * (blocks @ blocks) / (x @ x) ** 2
    return float(slope), float(np.sqrt(variance))


def fluctuation(trace: NveTrace) -> float:
    """Root mean square of the total energy about its linear fit, meV/atom; NaN if unstable or too short."""
    if not trace.is_stable or len(trace.time_ps) < 3:
        return float("nan")
    return float(np.sqrt(np.mean(_residual(trace) ** 2)))


def order_test(
    atoms: Atoms, timesteps_fs: Sequence[float] = (0.125, 0.25, 0.5), *, temperature_K: float = 300.0,
    time_ps: float = 1.0, seed: int = 0, sample_every_fs: float = 1.0,
) -> OrderTest:
    """Run the same start for the same time with several timesteps, sampled at the same times.

    Velocity Verlet conserves a shadow energy that differs from the true one by a term of timestep^2 (Hairer,
    Lubich, Wanner, Acta Numerica 12, 399, 2003) if the potential is smooth: then log(fluctuation) against
    log(timestep) has slope 2. Jumps in energy or force add errors that shrink more slowly: a lower slope.
    Keep the time short enough that trajectories do not part by chaos. The default timesteps are those at which terms of
    timestep^4 no longer show: between 0.5 and 1 fs, bonds to hydrogen alone bend the slope by 0.1 to 0.3, with a
    quantum-chemistry method as with a model of it; between 0.125 and 0.25 fs by 0.01.

    Raises:
        SimulationError: fewer than two timesteps, or ``sample_every_fs`` is not a multiple of each.
    """
    ratios = np.array([sample_every_fs / timestep for timestep in timesteps_fs])
    if len(set(timesteps_fs)) < 2 or not np.allclose(ratios, np.maximum(1, np.round(ratios)), atol=1e-6):
        raise SimulationError(
            expected=f"at least two timesteps that divide the sampling interval of {sample_every_fs:g} fs",
            received=f"{list(timesteps_fs)} fs", where="order test",
            todo="choose timesteps like 0.125, 0.25, 0.5 fs, or another sampling interval",
        )
    traces = [run_nve(atoms, temperature_K=temperature_K, timestep_fs=timestep, time_ps=time_ps, seed=seed,
                      sample_every_fs=sample_every_fs) for timestep in timesteps_fs]
    fluctuations = [fluctuation(trace) for trace in traces]
    if all(value > 0 for value in fluctuations):
        slope = float(np.polyfit(np.log(timesteps_fs), np.log(fluctuations), 1)[0])
    else:
        slope = float("nan")
    return OrderTest(tuple(timesteps_fs), tuple(fluctuations), slope)


def run_nvt(
    atoms: Atoms, *, temperature_K: float, time_ps: float, timestep_fs: float = 0.5,
    friction_per_fs: float = 0.01, seed: int, sample_every_fs: float = 10.0, max_uncertainty_eV_A: float | None = None,
    goes_on: bool = False,
) -> NvtTrace:
    """Langevin dynamics; unstable if a bond breaks, it explodes, it does not hold the temperature, or, if
    ``max_uncertainty_eV_A`` is given, the force on some atom is more uncertain than this (if it ``goes_on``, such steps are only
    counted).

    The mean temperature leaves out the first 20 % or 5/friction, whichever is longer, but at most half. It is
    wrong if it differs from the target by more than 5 % plus four standard errors. The standard error is that
    of a canonical run: the kinetic energy of f degrees of freedom has relative variance 2/f and correlation
    time 1/friction, so error^2 = T^2 (2/f) 2 / (friction time).

    Raises:
        SimulationError: no calculator, or a temperature, timestep, friction or time that is not positive; a limit of uncertainty
            with a calculator that has none.
    """
    from ase.md.langevin import Langevin

    _require_run(atoms, temperature_K, timestep_fs, time_ps)
    if not friction_per_fs > 0:
        raise SimulationError(expected="friction_per_fs > 0", received=f"{friction_per_fs}", where="run_nvt",
                              todo="use about 0.01 per fs")
    moving, n_degrees = _started(atoms, temperature_K, seed, is_rigid_motion_removed=False)
    # fixcm would disturb the ensemble, and divides by zero for one atom.
    dynamics = Langevin(moving, timestep_fs * units.fs, temperature_K=temperature_K, fixcm=False,
                        friction=friction_per_fs / units.fs, rng=generator(seed, "langevin"))
    stride = max(1, round(sample_every_fs / timestep_fs))
    watch = _Watch(moving, temperature_K, n_degrees, max_uncertainty_eV_A, goes_on=goes_on)
    n_steps = round(time_ps * 1000 / timestep_fs)

    def sample() -> tuple[float]:
        return (_temperature(moving, n_degrees),)

    samples, reason = _integrated(dynamics, n_steps, stride, sample, watch, f"NVT {temperature_K:g} K")
    kelvin = samples[:, 0]
    times_ps = np.arange(len(kelvin)) * stride * timestep_fs / 1000
    equilibration_ps = min(max(0.2 * times_ps[-1], 0.005 / friction_per_fs), 0.5 * times_ps[-1])
    counted = kelvin[times_ps >= equilibration_ps]
    mean = float(counted.mean())
    counted_fs = max((times_ps[-1] - equilibration_ps) * 1000, timestep_fs)
    error = temperature_K * float(np.sqrt(4 / (n_degrees * friction_per_fs * counted_fs)))
    if not reason and abs(mean - temperature_K) > 0.05 * temperature_K + 4 * error:
        reason = f"the mean temperature is {mean:.0f} K with an expected error of {error:.0f} K"
    return NvtTrace(temperature_K, mean, error, times_ps, kelvin, not reason, reason, moving, watch.n_uncertain,
                    watch.uncertain_at)


class _Watch:
    """Tells when a run has left the region where its result means anything."""

    def __init__(self, atoms: Atoms, temperature_K: float, n_degrees: int, max_uncertainty_eV_A: float | None = None, *,
                 goes_on: bool = False) -> None:
        from ase.neighborlist import natural_cutoffs, neighbor_list

        self._atoms, self._n_degrees, self._max_uncertainty, self._goes_on = atoms, n_degrees, max_uncertainty_eV_A, goes_on
        self.n_uncertain, self.uncertain_at = 0, None
        if max_uncertainty_eV_A is not None and "forces_uncertainty" not in atoms.calc.results:
            raise SimulationError(expected="a calculator that says how uncertain its forces are", received="one that does not",
                                  where="max_uncertainty_eV_A", todo="train with an uncertainty, or run without this limit")
        # The kinetic energy of a few degrees of freedom alone exceeds ten times its mean now and then.
        self._max_K = EXPLOSION_FACTOR * (1 + 3 / max(1, n_degrees)) * temperature_K
        first, second, vectors = neighbor_list("ijD", atoms, natural_cutoffs(atoms, mult=BOND_FACTOR))
        is_nonmetal = np.isin(atoms.numbers, list(NONMETALS))
        kept = (first < second) & is_nonmetal[first] & is_nonmetal[second]
        self._first, self._second, self._vectors = first[kept], second[kept], vectors[kept]
        self._start = atoms.positions.copy()

    def problem(self) -> str:
        """What went wrong, or an empty string."""
        if self._max_uncertainty is not None:
            doubt = np.asarray(self._atoms.calc.results["forces_uncertainty"])
            worst = int(doubt.argmax())
            if not doubt[worst] <= self._max_uncertainty:  # also true for NaN
                self.n_uncertain += 1
                self.uncertain_at = self.uncertain_at or self._atoms.copy()
            if self.n_uncertain and not self._goes_on:
                return (f"{UNCERTAIN}: the force on {self._atoms.symbols[worst]}{worst} by {doubt[worst]:.3g} eV/Å, more than "
                        f"{self._max_uncertainty:g}")
        kelvin = _temperature(self._atoms, self._n_degrees)
        if not kelvin <= self._max_K:  # also true for NaN
            return f"explosion: the kinetic temperature reached {kelvin:.3g} K"
        moved = self._atoms.positions - self._start  # dynamics does not wrap, so images stay what they were
        lengths = np.linalg.norm(self._vectors + moved[self._second] - moved[self._first], axis=1)
        starts = np.linalg.norm(self._vectors, axis=1)
        broken = np.flatnonzero(np.abs(lengths - starts) > MAX_BOND_CHANGE)
        if len(broken) == 0:
            return ""
        bond, symbols = broken[0], self._atoms.symbols
        i, j = self._first[bond], self._second[bond]
        name = f"{symbols[i]}{i}-{symbols[j]}{j}"
        return f"the bond {name} went from {starts[bond]:.2f} to {lengths[bond]:.2f} Å"


def _integrated(
    dynamics: VelocityVerlet | Langevin, n_steps: int, stride: int,
    sample: Callable[[], tuple[float, ...]], watch: _Watch, label: str,
) -> tuple[np.ndarray, str]:
    """Samples ``(samples, quantities)`` every ``stride`` steps, and why the run ended early (else empty)."""
    from ase.calculators.calculator import CalculatorError

    samples, forces = [sample()], dynamics.atoms.get_forces()
    reason = watch.problem()
    with progress_bar(is_transient=True) as bar:
        task = bar.add_task(label, total=n_steps, note="")
        for step in range(1, n_steps + 1):
            if reason:
                break
            if not np.isfinite(forces).all():
                reason = f"forces that are not finite numbers at step {step}"
                break
            try:
                # step, not run: run looks up the forces twice more, which costs more than a small potential.
                forces = dynamics.step(forces)
            except (CalculatorError, SapisError) as error:
                reason = f"the calculator failed at step {step}: {error}".replace("\n", "; ")
            if reason := reason or watch.problem():
                break
            if step % stride == 0:
                samples.append(sample())
            bar.advance(task)
    return np.array(samples), reason


def _started(
    atoms: Atoms, temperature_K: float, seed: int, *, is_rigid_motion_removed: bool
) -> tuple[Atoms, int]:
    """A copy with Maxwell-Boltzmann momenta at exactly ``temperature_K``, and its degrees of freedom."""
    moving = atoms.copy()
    moving.set_constraint()
    moving.calc = atoms.calc
    moving.get_forces()  # a calculator that cannot do these atoms says so here, not as an instability
    momenta = generator(seed, "velocities").standard_normal((len(moving), 3))
    momenta *= np.sqrt(moving.get_masses() * units.kB * temperature_K)[:, None]
    n_degrees = 3 * len(moving)
    if is_rigid_motion_removed:
        momenta, n_degrees = _without_rigid_motion(moving, momenta)
    moving.set_momenta(momenta)
    if n_degrees > 0:
        moving.set_momenta(momenta * np.sqrt(temperature_K / _temperature(moving, n_degrees)))
    return moving, n_degrees


def _without_rigid_motion(atoms: Atoms, momenta: np.ndarray) -> tuple[np.ndarray, int]:
    """Project translation and, unless periodic, rotation out of the momenta; count what is left.

    In mass-weighted coordinates the rigid motions span a space whose rank says how many there are: 3 for one
    atom, 5 for a linear molecule, 6 else.
    """
    roots = np.sqrt(atoms.get_masses())[:, None]
    axes = np.eye(3)
    motions = [roots * axis for axis in axes]
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        motions += [roots * np.cross(axis, arms) for axis in axes]
    basis, sizes, _ = np.linalg.svd(np.array([motion.ravel() for motion in motions]).T, full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    weighted = (momenta / roots).ravel()
    weighted = weighted - basis @ (basis.T @ weighted)
    n_degrees = 3 * len(atoms) - basis.shape[1]
    return (weighted.reshape(-1, 3) * roots if n_degrees else np.zeros_like(momenta)), n_degrees


def _temperature(atoms: Atoms, n_degrees: int) -> float:
    return 2 * float(atoms.get_kinetic_energy()) / (units.kB * max(1, n_degrees))


def _residual(trace: NveTrace) -> np.ndarray:
    x = trace.time_ps - trace.time_ps.mean()
    y = trace.energy_meV_atom - trace.energy_meV_atom.mean()
    return y - x * (x @ y) / (x @ x)


def _thinned(n: int) -> np.ndarray:
    """Indices of at most `MAX_TRACE` of ``n`` points, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_TRACE)).round().astype(np.int64))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _require_run(atoms: Atoms, temperature_K: float, timestep_fs: float, time_ps: float) -> None:
    if atoms.calc is None:
        raise SimulationError(expected="atoms with a calculator", received="atoms.calc is None",
                              where=str(atoms.symbols), todo="set atoms.calc")
    values = {"temperature_K": temperature_K, "timestep_fs": timestep_fs, "time_ps": time_ps}
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise SimulationError(expected=f"{name} > 0", received=f"{value}", where=str(atoms.symbols),
                                  todo="give a positive number")
    if time_ps * 1000 < timestep_fs:
        raise SimulationError(expected="a time of at least one timestep", received=f"{time_ps} ps",
                              where=str(atoms.symbols), todo="give a longer time, in ps")
