"""From any format to any other, frame by frame; and what is in a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import ConfigError, FileError
from sapis.core.files import hash_file, refuse_inputs, replacing
from sapis.core.progress import progress_bar
from sapis.data.formats import Counted, LabelKeys, deepmd, format_of, iterate_systems, npz, select, write_systems, xyz
from sapis.data.formats.labels import LEVEL_KEY
from sapis.data.store import Store, is_store
from sapis.data.system import System

CHUNK = 2_000  # frames that are written, and acknowledged, together
STORE_SUFFIXES = ("", ".store")
IN_MEMORY = 1_000_000  # frames at most for formats that are written as a whole
OUTPUTS = "a store (.store, or no ending), .extxyz, .xyz (also with .gz), .npz, .deepmd (a folder), or .traj, .db, .json of ASE"


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        n_read: frames that were read.
        n_new: frames that the output did not have before.
        n_total: frames that it has now.
    """

    n_read: int
    n_new: int
    n_total: int


def convert(
    inputs: Sequence[Path], output: Path, *, keys: LabelKeys | None = None, level: str = "", is_single: bool = False,
    licence: str = "", index: slice | None = None,
) -> Conversion:
    """Read ``inputs`` in their order and write or append their frames to ``output``.

    A store is appended to, and frames that it has are left out: the same command goes on where it was stopped. Any other output
    is written as a whole, or not at all.

    Args:
        inputs: files, folders or stores.
        output: its ending tells the format; a store has ``.store`` or none.
        keys: names of the labels in the inputs.
        level: level of theory of frames that do not name theirs; a new store keeps it for what is appended later.
        is_single: of a new store: positions and forces as float32.
        licence: of the data, noted in the store.
        index: which frames of each input.

    Raises:
        SapisError: bad input; an output that is an input.
        ConfigError: an output of a format that is not written.
    """
    refuse_inputs({"output": output}, inputs)
    if output.suffix not in STORE_SUFFIXES and not is_store(output):
        n_frames = _write(output, (system for path in inputs for system in _read(path, keys, level, index)))
        return Conversion(n_frames, n_frames, n_frames)
    with Store.at(output, level=level, is_single=is_single) as store:
        before, n_read = len(store), 0
        for path in inputs:
            first, n_here = len(store), 0
            with progress_bar() as bar:
                task = bar.add_task(path.name, total=None, note="")
                for chunk in _chunks(_read(path, keys, level, index)):
                    store.append(chunk)
                    n_here += len(chunk)
                    bar.update(task, completed=n_here, note=f"{len(store) - first} new")
            n_read += n_here
            if len(store) > first:
                store.add_source({
                    "name": path.name, "format": format_of(path).name, "n_read": n_here, "first": first,
                    "n_new": len(store) - first, "level": level, "licence": licence,
                    "hash": hash_file(path) if path.is_file() else None,
                })
        return Conversion(n_read, len(store) - before, len(store))


def _read(path: Path, keys: LabelKeys | None, level: str, index: slice | None) -> Iterator[System]:
    systems = iterate_systems(path, keys=keys)
    return (system.at_level(level) for system in (systems if index is None else select(systems, index)))


def _chunks(systems: Iterator[System]) -> Iterator[list[System]]:
    while chunk := list(islice(systems, CHUNK)):
        yield chunk


def _write(path: Path, systems: Iterator[System]) -> int:
    """Write one file or folder as a whole; how many frames."""
    if xyz.is_xyz(path):
        counted = Counted(systems)
        write_systems(path, counted)
        return counted.n
    everything = list(islice(systems, IN_MEMORY + 1))
    if not everything or len(everything) > IN_MEMORY:
        raise FileError(expected=f"one to {IN_MEMORY:,} frames for this format", received=f"{len(everything):,} or more",
                        where=str(path), todo="write extended XYZ or a store, or choose fewer frames with --index")
    if npz.is_npz(path):
        npz.write(path, everything)
    elif path.suffix == ".deepmd":
        deepmd.write(path, everything)
    elif path.suffix in (".traj", ".db", ".json"):
        _write_ase(path, everything)
    else:
        raise ConfigError(expected=f"an output among {OUTPUTS}", received=path.name, where="convert", todo="choose another name")
    return len(everything)


def _write_ase(path: Path, systems: Sequence[System]) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect
    from ase.io import write
    from ase.stress import full_3x3_to_voigt_6_stress

    images = []
    for system in systems:
        atoms = system.to_atoms()
        stress = None if system.stress is None else full_3x3_to_voigt_6_stress(system.stress)
        atoms.calc = SinglePointCalculator(atoms, energy=system.energy, forces=system.forces, stress=stress)
        images.append(atoms)
    with replacing(path) as part:
        part.unlink()
        # ASE chooses the format by the ending, and its databases do not know how to write over a file.
        named = part.with_name(part.name + path.suffix)
        try:
            if path.suffix == ".traj":
                write(named, images)
            else:  # a database leaves out what is not a property or a pair of its own
                with connect(str(named)) as rows:
                    for system, atoms in zip(systems, images, strict=True):
                        pairs = {"total_charge": system.charge, "total_spin": system.spin} | (
                            {LEVEL_KEY: system.level} if system.level else {})
                        rows.write(atoms, key_value_pairs=pairs)
            named.replace(part)
        finally:
            named.unlink(missing_ok=True)


@dataclass
class Summary:
    """What is in a data set, gathered in one pass.

    Attributes:
        n_frames: structures.
        n_atoms: atoms of all structures.
        smallest: atoms of the smallest structure.
        largest: atoms of the largest structure.
        elements: atoms of each element, by symbol.
        n_labelled: frames with an energy, forces or a stress.
        n_periodic: frames that are periodic in some direction.
        charges: frames of each total charge.
        spins: frames of each multiplicity.
        levels: frames of each level of theory.
        formulas: number of compositions; those of the first million frames.
        force_rms: eV/Å.
        energy_range: lowest and highest energy per atom, eV.
    """

    n_frames: int = 0
    n_atoms: int = 0
    smallest: int = 0
    largest: int = 0
    elements: Counter[str] = field(default_factory=Counter)
    n_labelled: Counter[str] = field(default_factory=Counter)
    n_periodic: int = 0
    charges: Counter[int] = field(default_factory=Counter)
    spins: Counter[int] = field(default_factory=Counter)
    levels: Counter[str] = field(default_factory=Counter)
    formulas: int = 0
    force_rms: float = math.nan
    energy_range: tuple[float, float] = (math.inf, -math.inf)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


def summarise(systems: Iterable[System]) -> Summary:
    """The `Summary` of ``systems``, which are read once."""
    found = Summary()
    counts = np.zeros(len(chemical_symbols), dtype=np.int64)
    formulas: set[str] = set()
    squares, components = 0.0, 0
    for system in systems:
        atoms = len(system)
        found.n_frames += 1
        found.n_atoms += atoms
        found.smallest = min(found.smallest or atoms, atoms)
        found.largest = max(found.largest, atoms)
        counts += np.bincount(system.numbers, minlength=len(counts))
        found.n_labelled.update(name for name in ("energy", "forces", "stress") if getattr(system, name) is not None)
        found.n_periodic += bool(system.pbc.any())
        found.charges[system.charge] += 1
        found.spins[system.spin] += 1
        found.levels[system.level] += 1
        if found.n_frames <= IN_MEMORY:
            formulas.add(system.formula)
        if system.forces is not None:
            squares += float(np.square(system.forces).sum())
            components += system.forces.size
        if system.energy is not None:
            low, high = found.energy_range
            found.energy_range = min(low, system.energy / atoms), max(high, system.energy / atoms)
    found.elements.update({chemical_symbols[z]: int(count) for z, count in enumerate(counts) if count})
    found.formulas = len(formulas)
    found.force_rms = math.sqrt(squares / components) if components else math.nan
    return found
