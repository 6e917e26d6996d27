"""`System`: one structure with whatever labels it has. The currency of everything below training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import DataError
from sapis.core.files import hash_bytes

if TYPE_CHECKING:
    from ase import Atoms

Tag = str | int | float | bool

# Å; far beyond it (1e20) neighbour searches overflow and take the process with them.
MAX_COORDINATE = 1e12
# Å; a thinner cell is a mistake, and has millions of images within a cutoff.
MIN_CELL_WIDTH = 0.1


@dataclass(frozen=True, eq=False)
class System:
    """One structure, its labels (absent ones are None) and its tags.

    Attributes:
        numbers: atomic numbers, ``(atoms,)`` int.
        positions: Å, ``(atoms, 3)`` float64.
        cell: lattice vectors as rows, Å, ``(3, 3)``; zero rows where not periodic.
        pbc: ``(3,)`` bool.
        energy: total energy, eV.
        forces: eV/Å, ``(atoms, 3)``.
        stress: (1/V) dE/dstrain, eV/Å^3, tension positive, ``(3, 3)`` symmetric.
        charge: total charge, e.
        spin: multiplicity 2S+1.
        level: level of theory of the labels; empty where it is not said.
        tags: where it came from (``file``, ``frame``, ``temperature_K``, ``trajectory``, ``time_fs`` …).

    Raises:
        DataError: wrong shapes, non-finite numbers, unknown elements, a periodic direction without a cell vector.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    charge: int = 0
    spin: int = 1
    level: str = ""
    tags: Mapping[str, Tag] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "numbers", np.asarray(self.numbers, dtype=np.int64))
        put(self, "positions", np.asarray(self.positions, dtype=np.float64))
        put(self, "cell", np.asarray(self.cell, dtype=np.float64).reshape(3, 3))
        pbc = np.array(self.pbc, dtype=bool)
        put(self, "pbc", pbc if pbc.shape == (3,) else np.broadcast_to(pbc, (3,)).copy())
        put(self, "energy", None if self.energy is None else float(self.energy))
        for name in ("forces", "stress"):
            value = getattr(self, name)
            put(self, name, None if value is None else np.asarray(value, dtype=np.float64))
        self._check()

    def _check(self) -> None:
        atoms = len(self.numbers)
        if atoms == 0:
            raise self.error(expected="at least one atom", received="none", todo="remove the frame")
        for name, shape in (("positions", (atoms, 3)), ("forces", (atoms, 3)), ("stress", (3, 3))):
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != shape:
                raise self.error(expected=f"{name} of shape {shape}", received=f"shape {value.shape}", key=name)
            if not np.isfinite(value).all():
                first = int(np.argwhere(~np.isfinite(value))[0][0])
                raise self.error(expected=f"finite {name}", received=f"NaN or infinity in row {first}", key=name,
                                 todo="remove the frame or compute it again")
        if np.abs(self.positions).max() > MAX_COORDINATE:
            raise self.error(expected=f"positions within {MAX_COORDINATE:g} Å", key="positions",
                             received=f"{np.abs(self.positions).max():.3g} Å", todo="remove the frame or compute it again")
        if self.energy is not None and not np.isfinite(self.energy):
            raise self.error(expected="a finite energy", received=str(self.energy), key="energy",
                             todo="remove the frame or compute it again")
        bad = self.numbers[(self.numbers < 1) | (self.numbers >= len(chemical_symbols))]
        if len(bad):
            raise self.error(expected="atomic numbers from 1 to 118", received=str(int(bad[0])), key="numbers")
        if self.pbc.any():
            vectors = self.cell[self.pbc]
            is_usable = np.isfinite(self.cell).all() and np.abs(self.cell).max() < MAX_COORDINATE
            if not is_usable or np.linalg.matrix_rank(vectors, tol=MIN_CELL_WIDTH) < len(vectors):
                raise self.error(
                    expected="an independent, finite cell vector for each periodic direction",
                    received=f"pbc={self.pbc.tolist()} with cell={self.cell.tolist()}", key="cell",
                    todo="give the cell, or set pbc to False where the structure is not periodic",
                )

    def error(self, *, expected: str, received: str, key: str = "", todo: str = "mend the input") -> DataError:
        """A `DataError` that names this structure's file and frame as far as its tags tell them."""
        where = f"{self.where}, key {key!r}" if key else self.where
        return DataError(expected=expected, received=received, where=where, todo=todo)

    @property
    def where(self) -> str:
        """File and frame as far as the tags tell them, else the formula: for messages."""
        return ", ".join(f"{name} {self.tags[name]}" for name in ("file", "frame") if name in self.tags) or self.formula

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def formula(self) -> str:
        """Chemical formula, elements in alphabetical order."""
        values, counts = np.unique(self.numbers, return_counts=True)
        parts = sorted((chemical_symbols[v], c) for v, c in zip(values, counts, strict=True)
                       if 0 < v < len(chemical_symbols))
        return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in parts)

    @property
    def volume(self) -> float | None:
        """Cell volume in Å^3; None unless periodic in three directions."""
        return float(abs(np.linalg.det(self.cell))) if self.pbc.all() else None

    def structure_hash(self) -> str:
        """Hash of elements, positions, cell, charge and spin, bit for bit: the cache key of a label."""
        return hash_bytes(
            self.numbers.astype("<i8").tobytes(), self.positions.astype("<f8").tobytes(),
            self.cell.astype("<f8").tobytes(), self.pbc.tobytes(), f"{self.charge} {self.spin}".encode(),
        )

    def with_tags(self, **tags: Tag) -> System:
        """A copy with these tags added."""
        return replace(self, tags={**self.tags, **tags})

    def at_level(self, level: str) -> System:
        """At this level of theory, if it does not name one of its own."""
        return replace(self, level=level) if level and not self.level else self

    def without_labels(self) -> System:
        """A copy without energy, forces and stress."""
        return replace(self, energy=None, forces=None, stress=None)

    def to_atoms(self) -> Atoms:
        """ASE atoms without a calculator; tags, charge, spin and level of theory go to ``info``."""
        from ase import Atoms

        info: dict[str, Any] = dict(self.tags)
        if self.charge != 0 or self.spin != 1:
            info.update(charge=self.charge, spin=self.spin)
        if self.level:
            info["level_of_theory"] = self.level
        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, info=info)

    @classmethod
    def from_atoms(cls, atoms: Atoms, **fields: Any) -> System:
        """The structure of ASE ``atoms`` (labels are not read from a calculator; see `sapis.data.formats`)."""
        return cls(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, **fields)


def each_once(systems: Iterable[System]) -> list[System]:
    """Of equal structures one, the last, in the place of the first."""
    return list({system.structure_hash(): system for system in systems}.values())


def hash_systems(systems: Sequence[System]) -> str:
    """Hash of a data set: structures and labels, in order. A store has its own."""
    if (known := getattr(systems, "content_hash", None)) is not None:
        return str(known)
    parts = []
    for system in systems:
        labels = [np.float64(np.nan if system.energy is None else system.energy).tobytes()]
        labels += [b"" if value is None else value.astype("<f8").tobytes() for value in (system.forces, system.stress)]
        labels += [system.level.encode()] if system.level else []
        parts.append(hash_bytes(system.structure_hash().encode(), *labels).encode())
    return hash_bytes(*parts)
