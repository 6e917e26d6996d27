"""Labels from ASE calculators, whatever computes behind them."""

from __future__ import annotations

import difflib
import resource
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.core.errors import ConfigError
from sapis.data.system import System
from sapis.executors.outcome import Failure, FailureKind
from sapis.labelers.labeler import Label, LabelerConfig, Outcome

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator


def keep(calculator: Calculator) -> None:
    """Leave what a calculator has written where it is."""


@dataclass(frozen=True)
class AseLabeler:
    """Labels from an ASE calculator.

    Attributes:
        method, level: see `Labeler`.
        calculator: makes a calculator for one structure.
        objection: why the method must not be asked about a structure, or None.
        on_success, on_failure: called with the calculator of a label that was computed, or was not.
    """

    method: dict[str, Any]
    level: str
    calculator: Callable[[System], Calculator]
    objection: Callable[[System], str | None] = lambda system: None
    on_success: Callable[[Calculator], None] = keep
    on_failure: Callable[[Calculator], None] = keep

    def label(self, system: System) -> Outcome:
        """The label of ``system``, by a calculator without history: a restarted SCF ends on other bits."""
        start = process_cpu_seconds()
        if (objection := self.objection(system)) is not None:
            return Failure("unsupported", objection, 0.0)
        calculator: Calculator | None = None
        try:
            calculator = self.calculator(system)
            energy, forces, stress = _evaluate(system, calculator)
        except Exception as error:  # foreign code: whatever it raises is this structure's failure
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if calculator is not None:
                self.on_failure(calculator)
            return Failure(_kind(error), reason[:500], process_cpu_seconds() - start)
        cost = process_cpu_seconds() - start
        if not all(np.isfinite(value).all() for value in (energy, forces, stress) if value is not None):
            self.on_failure(calculator)
            return Failure("not_finite", "the calculator returned NaN or infinity", cost)
        self.on_success(calculator)
        return Label(energy, forces, stress, cost)


def _evaluate(system: System, calculator: Calculator) -> tuple[float, np.ndarray, np.ndarray | None]:
    from ase.stress import voigt_6_to_full_3x3_stress

    atoms = system.to_atoms()
    atoms.calc = calculator
    forces = np.array(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    energy = float(atoms.get_potential_energy())
    # With smeared electrons ASE's "energy" is extrapolated to 0 K, and only the free energy has these forces.
    energy = float(getattr(calculator, "results", {}).get("free_energy", energy))
    stress = None
    if system.pbc.all() and "stress" in calculator.implemented_properties:
        try:
            stress = voigt_6_to_full_3x3_stress(np.array(atoms.get_stress(), dtype=np.float64))
        except NotImplementedError:  # some calculators list it for some of their settings only
            stress = None
    return energy, forces, stress


def _kind(error: Exception) -> FailureKind:
    from ase.calculators.calculator import InputError, SCFError

    if isinstance(error, SCFError) or "converge" in str(error).lower():
        return "not_converged"
    return "unsupported" if isinstance(error, InputError | NotImplementedError) else "error"


def process_cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children, to the microsecond."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def within_limit(outcome: Outcome, max_force_eV_A: float | None) -> Outcome:
    """``outcome``, or a failure in its place where a force exceeds the limit."""
    if max_force_eV_A is None or isinstance(outcome, Failure):
        return outcome
    largest = float(np.linalg.norm(outcome.forces, axis=1).max())
    if largest <= max_force_eV_A:
        return outcome
    return Failure("too_large", f"a force of {largest:.3g} eV/Å, above {max_force_eV_A:g}", outcome.cpu_seconds)


def check_arguments(config: LabelerConfig, known: Collection[str], hint: str = "remove it") -> None:
    """Refuse arguments that are not among ``known``: many packages would ignore them.

    Raises:
        ConfigError: names the nearest known one, else ``hint``.
    """
    for name in config.arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                expected=f"arguments among {', '.join(known)}", received=repr(name), where=f"labeler {config.name}: arguments",
                todo=f"did you mean {near[0]!r}?" if near else hint,
            )
