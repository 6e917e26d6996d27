"""How candidates are sampled: frames of one short hot trajectory, and rattled structures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from sapis.core.config import Config
from sapis.core.errors import ConfigError
from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.executors.outcome import Failure
from sapis.executors.worker import report_progress
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import LabelerConfig
from sapis.potential.biased import BiasedCalculator
from sapis.potential.calculator import SapisCalculator
from sapis.potential.posterior import UncertainPotential
from sapis.simulate.md import UNCERTAIN

if TYPE_CHECKING:
    from ase.md.langevin import Langevin

# A trajectory beyond these has left chemistry: forces of a collision, or heat that no thermostat would give.
MAX_FORCE_eV_A = 100.0
MAX_HEATING = 10.0
# Shortest distance of a rattled structure, in sums of covalent radii.
CLOSE_CONTACT = 0.6
MAX_REJECTIONS = 200


class CandidatesConfig(Config):
    """How candidates are made.

    Attributes:
        n_conformers: at most so many starting structures from a SMILES.
        n_replicas: trajectories at each temperature, from the starting structures in turn; more, if these are more than all
            trajectories.
        timestep_fs: of the molecular dynamics.
        friction_per_fs: of the Langevin thermostat.
        equilibration_fs: not sampled, at the start of each trajectory.
        decorrelation_fs: between two frames.
        rattle_fraction: of the candidates, rattled and not from dynamics.
        rattle_stdev_A: smallest and largest standard deviation of the rattling.
        bias: with a potential that knows its doubt, how strongly dynamics is drawn to what it does not know, see
            `BiasedCalculator`; after the equilibration.
        max_uncertainty_eV_A: with such a potential, a trajectory ends with the first frame in which the force on an atom is
            less certain than this.
    """

    n_conformers: int = Field(default=4, ge=1)
    n_replicas: int = Field(default=4, ge=1)
    timestep_fs: float = Field(default=0.5, gt=0, le=10)
    friction_per_fs: float = Field(default=0.02, gt=0)
    equilibration_fs: float = Field(default=200.0, ge=0)
    decorrelation_fs: float = Field(default=20.0, gt=0)
    rattle_fraction: float = Field(default=0.1, ge=0, le=1)
    rattle_stdev_A: tuple[float, float] = (0.01, 0.04)
    bias: float = Field(default=0.0, ge=0, le=2)
    max_uncertainty_eV_A: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> CandidatesConfig:
        if self.decorrelation_fs < self.timestep_fs:
            raise ValueError("decorrelation_fs not below timestep_fs")
        if not 0 < self.rattle_stdev_A[0] <= self.rattle_stdev_A[1]:
            raise ValueError("rattle_stdev_A: two positive numbers, the smaller first")
        return self

    @property
    def asks_for_doubt(self) -> bool:
        """Whether the dynamics needs a driver that knows its uncertainty."""
        return bool(self.bias) or self.max_uncertainty_eV_A is not None

    def without_doubt(self) -> CandidatesConfig:
        """The same for a driver that knows no uncertainty."""
        return self.model_copy(update={"bias": 0.0, "max_uncertainty_eV_A": None})


@dataclass(frozen=True)
class Trajectory:
    """What is planned as one piece: a start, a temperature and a number of frames."""

    name: str
    start: System
    temperature_K: float
    n_frames: int


def md_candidates(
    start: System,
    labeler_config: LabelerConfig,
    temperature_K: float,
    n_frames: int,
    config: CandidatesConfig,
    seed: int,
    trajectory: str,
) -> list[System]:
    """Frames of one Langevin trajectory (constant N, V, T), ``decorrelation_fs`` apart after equilibration.

    Velocities start from the Maxwell-Boltzmann distribution; the thermostat acts on all 3N degrees of
    freedom, so that a molecule drifts and turns. Frames carry the tags ``source``, ``trajectory``,
    ``temperature_K`` and ``time_fs``, and no labels: those of a trajectory depend on its history. If the
    labeler fails or the structure explodes, the frames before that are returned, with a `RuntimeWarning` that
    says so; if it explodes, also the last one in which it was whole. The same arguments give the same bits.
    """
    plan = Trajectory(trajectory, start, temperature_K, n_frames)
    frames, ending = simulate(plan, labeler_config, config, seed)
    if ending:
        warnings.warn(ending, RuntimeWarning, stacklevel=2)
    return frames


def simulate(
    plan: Trajectory, labeler_config: LabelerConfig, config: CandidatesConfig, seed: int
) -> tuple[list[System], str | None]:
    """The frames of a trajectory, and why it ended early if it did. One that explodes has its last whole structure, too, from the
    equilibration if need be: nowhere else are labels of so much use.
    """
    from ase import units
    from ase.md.langevin import Langevin

    labeler = build_labeler(labeler_config)
    if isinstance(first := labeler.label(plan.start), Failure):
        return [], f"the labeler fails on its starting structure ({first.reason})"
    rng = generator(seed, "md", plan.name)
    atoms = plan.start.to_atoms()
    thermal = np.sqrt(units.kB * plan.temperature_K * atoms.get_masses())
    atoms.set_momenta(thermal[:, None] * rng.standard_normal((len(atoms), 3)))
    atoms.calc = labeler.calculator(plan.start)
    dynamics = Langevin(
        atoms, timestep=config.timestep_fs * units.fs, temperature_K=plan.temperature_K,
        friction=config.friction_per_fs / units.fs, fixcm=False, rng=rng,
    )
    dynamics.attach(report_progress)
    n_between = max(1, round(config.decorrelation_fs / config.timestep_fs))
    n_steps = math.ceil(config.equilibration_fs / config.timestep_fs)
    frames: list[System] = []
    doubtful = _doubtful(atoms.calc, config)
    if config.max_uncertainty_eV_A is not None:
        dynamics.attach(_stop_above, atoms=atoms, limit=config.max_uncertainty_eV_A)
    whole = 0, atoms.get_positions()  # the last step at which forces were those of a molecule, and where its atoms were
    limit = labeler_config.max_force_eV_A or MAX_FORCE_eV_A

    def remember() -> None:
        nonlocal whole
        if np.linalg.norm(atoms.get_forces(), axis=1).max() < limit:
            whole = dynamics.nsteps, atoms.get_positions()

    def keep(step: int, positions: np.ndarray) -> None:
        frame = replace(plan.start, positions=positions).without_labels()
        frames.append(frame.with_tags(source="md", trajectory=plan.name, temperature_K=plan.temperature_K,
                                      time_fs=step * config.timestep_fs))
        report_progress(1)

    dynamics.attach(remember)

    problem = _advance(dynamics, n_steps, plan.temperature_K)
    if doubtful is not None and config.bias:
        atoms.calc = BiasedCalculator(doubtful.potential, config.bias, level=doubtful.level)
    while not problem and len(frames) < plan.n_frames:
        n_steps += n_between
        problem = _advance(dynamics, n_steps, plan.temperature_K)
        if not problem:
            keep(n_steps, atoms.get_positions())
    if problem and problem.startswith(UNCERTAIN):
        keep(dynamics.nsteps, atoms.get_positions())
    elif problem and whole[0] > (n_steps - n_between if frames else 0):
        keep(*whole)
    if not problem:
        return frames, None
    kept = f"{len(frames)} of {plan.n_frames} frames kept"
    return frames, f"stopped after {dynamics.nsteps * config.timestep_fs:g} fs: {problem}; {kept}"


def _doubtful(calculator: object, config: CandidatesConfig) -> Any:
    """``calculator``, if what is asked for needs one that knows its doubt."""
    if not config.asks_for_doubt:
        return None
    if not (isinstance(calculator, SapisCalculator) and isinstance(calculator.potential, UncertainPotential)):
        raise ConfigError(expected="a driver of the dynamics that knows its doubt", received=type(calculator).__name__,
                          where="candidates: bias or max_uncertainty_eV_A", todo="name a model trained with an uncertainty, or "
                          "leave these settings out")
    return calculator


class _TooUncertain(Exception):
    """Ends a trajectory."""


def _stop_above(atoms: Any, limit: float) -> None:
    doubt = float(np.max(atoms.calc.results["forces_uncertainty"]))
    if not doubt <= limit:
        raise _TooUncertain(f"{UNCERTAIN}: a force by {doubt:.3g} eV/Å, more than {limit:g}")


def _advance(dynamics: Langevin, n_steps: int, temperature_K: float) -> str | None:
    """Run up to step ``n_steps``; what is wrong with the structure then, or None."""
    atoms = dynamics.atoms
    try:
        dynamics.run(n_steps - dynamics.nsteps)
        force = float(np.abs(atoms.get_forces()).max())
    except _TooUncertain as reason:
        return str(reason)
    except Exception as error:  # an exploding structure breaks a calculator in many ways
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    heat = atoms.get_temperature()
    if not (force < MAX_FORCE_eV_A and heat < MAX_HEATING * temperature_K):
        return f"forces of {force:.3g} eV/Å at {heat:.3g} K"
    return None


def rattled_candidates(
    starts: Sequence[System], n: int, stdev: tuple[float, float], seed: int
) -> list[System]:
    """``n`` structures, from ``starts`` in turn, each atom displaced by a Gaussian.

    Args:
        starts: structures to displace.
        n: how many.
        stdev: range of the standard deviation, Å; drawn uniformly for each structure.
        seed: of the displacements.

    Raises:
        DataError: atoms are closer than 0.6 covalent bond lengths however they are displaced.
    """
    rng = generator(seed, "rattle")
    return [_rattled(starts[number % len(starts)], stdev, rng) for number in range(n)]


def _rattled(start: System, stdev: tuple[float, float], rng: np.random.Generator) -> System:
    for _ in range(MAX_REJECTIONS):
        scale = rng.uniform(*stdev)
        rattled = replace(
            start.without_labels(), positions=start.positions + rng.normal(scale=scale, size=(len(start), 3))
        )
        if not has_close_contact(rattled):
            return rattled.with_tags(source="rattle", trajectory="rattle", stdev_A=scale)
    raise start.error(
        expected=f"atoms no closer than {CLOSE_CONTACT} covalent bond lengths after rattling",
        received=f"closer ones, {MAX_REJECTIONS} times", key="positions",
        todo="mend the structure, or make rattle_stdev_A smaller",
    )


def has_close_contact(system: System) -> bool:
    """Whether two atoms are nearer than `CLOSE_CONTACT` of a bond's length, images included."""
    from ase.neighborlist import natural_cutoffs, neighbor_list

    atoms = system.to_atoms()
    return len(neighbor_list("i", atoms, natural_cutoffs(atoms, mult=CLOSE_CONTACT))) > 0
