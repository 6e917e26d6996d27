"""Labelers made of ASE calculators: tblite's tight binding, and any calculator by its import path."""

from __future__ import annotations

import difflib
import importlib
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import ground_state_magnetic_moments

from sapis.core.errors import ConfigError, LabelerError, MissingDependencyError
from sapis.core.files import hash_file
from sapis.data.system import System
from sapis.labelers.labeler import Failure, FailureKind, Label, Labeler, LabelerConfig, Outcome

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

TBLITE_METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
TBLITE_RESERVED = ("method", "charge", "multiplicity", "verbosity")


@dataclass(frozen=True)
class AseLabeler:
    """Labels from an ASE calculator.

    Attributes:
        method: see `Labeler`.
        calculator: makes a calculator for one structure.
        objection: why the method must not be asked about a structure, or None.
    """

    method: dict[str, Any]
    calculator: Callable[[System], Calculator]
    objection: Callable[[System], str | None] = lambda system: None

    def label(self, system: System) -> Outcome:
        """The label of ``system``, by a calculator without history: a restarted SCF ends on other bits."""
        start = process_cpu_seconds()
        if (objection := self.objection(system)) is not None:
            return Failure("unsupported", objection, 0.0)
        try:
            energy, forces, stress = _evaluate(system, self.calculator(system))
        except Exception as error:  # foreign code: whatever it raises is this structure's failure
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return Failure(_kind(error), reason[:500], process_cpu_seconds() - start)
        cost = process_cpu_seconds() - start
        if not all(np.isfinite(value).all() for value in (energy, forces, stress) if value is not None):
            return Failure("not_finite", "the calculator returned NaN or infinity", cost)
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


def tblite_labeler(config: LabelerConfig) -> Labeler:
    """GFN1-xTB or GFN2-xTB (Bannwarth, Ehlert and Grimme, JCTC 15, 1652, 2019) through tblite."""
    try:
        from tblite.ase import TBLite
    except ImportError:
        purpose = f"the labeler {config.name!r}"
        raise MissingDependencyError.of("tblite", extra="xtb", purpose=purpose) from None

    known = [name for name in TBLite.default_parameters if name not in TBLITE_RESERVED]
    for name in config.arguments:
        if name not in known:  # tblite itself ignores an unknown argument
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                expected=f"arguments among {', '.join(known)}", received=repr(name),
                where="labeler: arguments",
                todo=f"did you mean {near[0]!r}?" if near
                else "remove it; charge and spin belong to the structure, not to the labeler",
            )

    def calculator(system: System) -> Calculator:
        return TBLite(method=TBLITE_METHODS[config.name], charge=system.charge, multiplicity=system.spin,
                      verbosity=0, **config.arguments)

    method = {"name": config.name, "package": "tblite", "version": metadata.version("tblite"),
              "arguments": config.arguments}
    return AseLabeler(method, calculator, _tblite_objection)


def _tblite_objection(system: System) -> str | None:
    if system.pbc.any() and not system.pbc.all():
        return ("tblite would silently treat this structure, periodic in one or two directions, as periodic "
                "in three; set pbc to True throughout and leave vacuum, or to False throughout")
    return None


def ase_labeler(config: LabelerConfig) -> Labeler:
    """Any ASE calculator. A charge other than 0 or a spin other than 1 reaches it through ``atoms.info``."""
    path = config.calculator or ""
    module, create = _imported(path)
    first = _created(create, config)

    def calculator(system: System) -> Calculator:
        return first if config.is_stateless else _created(create, config)

    method = {"name": "ase", "calculator": path, "arguments": config.arguments, "version": _version(module)}
    return AseLabeler(method, calculator)


def _imported(path: str) -> tuple[ModuleType, Callable[..., Any]]:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError(expected="an import path such as ase.calculators.emt.EMT", received=repr(path),
                          where="labeler: calculator", todo="write package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs foreign code
        raise LabelerError(
            expected=f"a module {module_name!r} that can be imported",
            received=f"{type(error).__name__}: {error}", where="labeler: calculator",
            todo="check the spelling and install the package, or put your own file's folder on PYTHONPATH",
        ) from error
    create = getattr(module, name, None)
    if not callable(create):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise LabelerError(
            expected=f"a class or factory {name!r} in {module_name}", received="no such name",
            where=f"labeler: {path}",
            todo=f"did you mean {module_name}.{near[0]}?" if near else f"see the names in {module_name}",
        )
    return module, create


def _created(create: Callable[..., Any], config: LabelerConfig) -> Calculator:
    try:
        calculator = create(**config.arguments)
    except Exception as error:  # so does building a calculator
        raise LabelerError(
            expected="a calculator that can be built from the given arguments",
            received=f"{type(error).__name__}: {error}",
            where=f"labeler: {config.calculator}({config.arguments})",
            todo="mend `arguments`, or whatever the calculator asks for",
        ) from error
    if not hasattr(calculator, "get_forces") or not hasattr(calculator, "implemented_properties"):
        raise LabelerError(
            expected="an ASE calculator", received=f"a {type(calculator).__name__}",
            where=f"labeler: {config.calculator}", todo="give a class derived from ASE's Calculator",
        )
    return calculator


def _version(module: ModuleType) -> str:
    """The package's version, or where there is none a hash of the source: an edit makes another method."""
    package = importlib.import_module(module.__name__.partition(".")[0])
    try:
        version: str | None = metadata.version(package.__name__)
    except metadata.PackageNotFoundError:
        version = getattr(package, "__version__", None)
    if version is None and module.__file__ is not None:
        version = hash_file(Path(module.__file__))
    return str(version)


def isolated_atom_energies(labeler: Labeler, elements: Iterable[int]) -> dict[int, float]:
    """Energies (eV) of free atoms in their ground-state multiplicity; elements that fail are left out.

    The multiplicities are ASE's table of unpaired electrons of the free atom (H 1, C 2, N 3, O 2 …) plus one.
    """
    multiplicities = {z: round(n) + 1 for z, n in enumerate(ground_state_magnetic_moments) if np.isfinite(n)}
    energies = {}
    for number in sorted(set(elements) & set(multiplicities)):
        spin = multiplicities[number]
        atom = System(numbers=np.array([number]), positions=np.zeros((1, 3)), spin=spin)
        if isinstance(outcome := labeler.label(atom), Label):
            energies[number] = outcome.energy
    return energies
