"""What a labeler is, what describes it, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import Field

from sapis.core.config import Config
from sapis.data.system import System
from sapis.executors.outcome import Failure

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator


FILES = (("potential", "path"), ("openmm", "topology"), ("command", "files"))  # arguments that name files


class LabelerConfig(Config):
    """Which method computes the labels.

    Attributes:
        name: ``gfn2`` or ``gfn1`` (tight binding, by tblite), ``dft`` (by PySCF), ``openmm`` (AMBER, CHARMM), ``potential`` (a
            trained model), ``emt`` or ``lj`` (ASE's own), ``command`` (a program), or ``ase`` for any ASE calculator.
        calculator: import path of a class or factory (``ase.calculators.emt.EMT``); with ``name: ase`` only.
        arguments: of the method; see docs/howto/label.md.
        level: level of theory that the labels are given; default: what the method says of itself.
        timeout_s: a label that takes longer is recorded as a failure.
        max_force_eV_A: a label with a larger force is recorded as a failure: the structure is beyond what is worth learning.
        is_stateless: build the calculator once per process and not once per label. Only for calculators whose
            result does not depend on what they computed before, such as a machine-learned potential.
        scratch: folder in which programs work; those of failed labels stay there. Default: the system's, nothing stays.
    """

    name: str = "gfn2"
    calculator: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    level: str = ""
    timeout_s: float = Field(default=600.0, gt=0)
    max_force_eV_A: float | None = Field(default=None, gt=0)
    is_stateless: bool = False
    scratch: Path | None = None

    def limits(self) -> dict[str, Any]:
        """What decides which labels fail, apart from the method."""
        return {"level": self.level, "timeout_s": self.timeout_s, "max_force_eV_A": self.max_force_eV_A}

    def relative_to(self, folder: Path) -> LabelerConfig:
        """A copy whose paths, of a model, a topology, files of a program and scratch, are relative to ``folder``."""
        arguments = dict(self.arguments)
        for method, key in FILES:
            value = arguments.get(key) if self.name == method else None
            if isinstance(value, list | tuple):
                arguments[key] = [str(folder / str(each)) for each in value]
            elif value is not None:
                arguments[key] = str(folder / str(value))
        scratch = None if self.scratch is None else folder / self.scratch
        return self.model_copy(update={"arguments": arguments, "scratch": scratch})


@dataclass(frozen=True, eq=False)
class Label:
    """What the reference method says of one structure.

    Attributes:
        energy: total energy, eV; the free energy where electrons are smeared, as the forces derive from that.
        forces: eV/Å, ``(atoms, 3)`` float64.
        stress: (1/V) dE/dstrain, eV/Å^3, ``(3, 3)``; None unless periodic throughout and implemented.
        cpu_seconds: what it cost.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    cpu_seconds: float

    def applied_to(self, system: System, *, level: str = "") -> System:
        """``system`` with this label in place of those it has, at a level of theory if one is given."""
        return replace(system, energy=self.energy, forces=self.forces, stress=self.stress, level=level or system.level)


Outcome = Label | Failure


class Labeler(Protocol):
    """A source of labels.

    Attributes:
        method: what determines a label apart from the structure, as JSON values; part of the cache key.
        level: level of theory of its labels, in the words of the field (``PBE-D3BJ/def2-SVP``).
    """

    @property
    def method(self) -> dict[str, Any]: ...

    @property
    def level(self) -> str: ...

    def label(self, system: System) -> Outcome:
        """The label of ``system``: on one thread the same bits whatever was labelled before."""
        ...

    def calculator(self, system: System) -> Calculator:
        """An ASE calculator for dynamics that start from ``system`` (its charge and spin are fixed)."""
        ...
