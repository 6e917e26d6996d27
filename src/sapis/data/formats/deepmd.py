"""DeePMD-kit's NumPy folders: `type.raw`, `type_map.raw` and `set.*/` with coordinates, boxes, energies, forces and virials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from sapis.core.errors import DataError
from sapis.core.files import new_folder, write_text
from sapis.data.formats.files import missing, unreadable
from sapis.data.formats.labels import LabelKeys
from sapis.data.system import System


def is_deepmd(path: Path) -> bool:
    """A folder with the types of the atoms."""
    return (path / "type.raw").is_file()


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of one folder (one composition), in eV and Å.

    Raises:
        FileError: a part is missing or has another number of frames.
    """
    numbers = _numbers(path)
    is_periodic = not (path / "nopbc").exists()
    frame = 0
    sets = sorted(path.glob("set.*"))
    if not sets:
        raise missing("folders set.*", path, ", ".join(sorted(item.name for item in path.iterdir())))
    for folder in sets:
        try:
            parts = {name: np.load(folder / f"{name}.npy", allow_pickle=False).astype(float)
                     for name in ("coord", "box", "energy", "force", "virial") if (folder / f"{name}.npy").exists()}
            types = np.load(folder / "real_atom_types.npy") if (folder / "real_atom_types.npy").exists() else None
        except (ValueError, OSError, EOFError) as error:
            raise unreadable(error, "deepmd/npy", folder) from None
        if "coord" not in parts or (is_periodic and "box" not in parts):
            raise missing("coord.npy, and box.npy unless there is a file nopbc", folder, ", ".join(parts))
        n_frames = len(parts["coord"])
        if any(len(part) != n_frames for part in parts.values()):
            raise missing(f"{n_frames} frames in each part", folder, {name: len(part) for name, part in parts.items()})
        for i in range(n_frames):
            own, is_real = numbers, np.ones(parts["coord"][i].size // 3, dtype=bool)
            if types is not None:  # frames of fewer atoms are filled up with those of a negative type
                is_real = types[i] >= 0
                own = _of_types(path, types[i][is_real], folder / "real_atom_types.npy")
            cell = parts["box"][i].reshape(3, 3) if is_periodic else np.zeros((3, 3))
            # DeePMD's virial is minus the volume times the stress.
            stress = -parts["virial"][i].reshape(3, 3) / abs(np.linalg.det(cell)) if "virial" in parts and is_periodic else None
            yield System(
                numbers=own, positions=parts["coord"][i].reshape(-1, 3)[is_real], cell=cell, pbc=np.full(3, is_periodic),
                energy=float(parts["energy"][i].reshape(-1)[0]) if "energy" in parts else None,
                forces=parts["force"][i].reshape(-1, 3)[is_real] if "force" in parts else None, stress=stress,
                tags={"file": path.name, "frame": frame},
            )
            frame += 1


def _symbols(path: Path) -> list[int]:
    names = (path / "type_map.raw").read_text().split() if (path / "type_map.raw").is_file() else []
    if not names or any(name not in atomic_numbers for name in names):
        raise missing("type_map.raw with the symbol of each type", path, names or "none")
    return [atomic_numbers[name] for name in names]


def _numbers(path: Path) -> np.ndarray:
    try:
        return _of_types(path, np.loadtxt(path / "type.raw", dtype=int, ndmin=1), path / "type.raw")
    except ValueError as error:
        raise unreadable(error, "deepmd/npy", path / "type.raw") from None


def _of_types(path: Path, types: np.ndarray, file: Path) -> np.ndarray:
    """Atomic numbers of ``types``, which stand in ``file``."""
    symbols = _symbols(path)
    if len(types) and not 0 <= types.min() <= types.max() < len(symbols):
        raise missing(f"types from 0 to {len(symbols) - 1}, as type_map.raw has them", file, f"{types.min()} to {types.max()}")
    return np.array(symbols)[types]


def write(path: Path, systems: Sequence[System]) -> None:
    """Write systems of one composition, atoms in one order, with the same labels, as one folder.

    Raises:
        DataError: systems of several kinds.
        FileError: there is something at ``path`` already.
    """
    first = systems[0]
    kind = _kind(first)
    for system in systems:
        if _kind(system) != kind:
            raise system.error(expected="frames with the same atoms in the same order, periodicity and labels as the first",
                               received=f"{system.formula} beside {first.formula}, or other labels",
                               todo="write each composition into a folder of its own, or choose another format")
        if system.charge or system.spin != 1:
            raise system.error(expected="neutral singlets: the layout holds no charge or multiplicity",
                               received=f"charge {system.charge}, multiplicity {system.spin}",
                               todo="choose another format, such as extended XYZ")
    if first.pbc.any() and not first.pbc.all():
        raise DataError(expected="structures periodic in three directions or none", received=str(first.pbc.tolist()),
                        where=first.where, todo="choose another format")
    elements = sorted(set(first.numbers.tolist()))
    parts = {"coord": [system.positions for system in systems]}
    if first.pbc.all():
        parts["box"] = [system.cell for system in systems]
    if first.energy is not None:
        parts["energy"] = [np.array([system.energy]) for system in systems]
    if first.forces is not None:
        parts["force"] = [system.forces for system in systems if system.forces is not None]
    if first.stress is not None:
        parts["virial"] = [-system.stress * system.volume for system in systems
                           if system.stress is not None and system.volume is not None]
    with new_folder(path) as folder:
        write_text(folder / "type_map.raw", "\n".join(chemical_symbols[z] for z in elements) + "\n")
        write_text(folder / "type.raw", "\n".join(str(elements.index(z)) for z in first.numbers.tolist()) + "\n")
        if "box" not in parts:
            (folder / "nopbc").touch()
        (folder / "set.000").mkdir()
        for name, values in parts.items():
            np.save(folder / "set.000" / f"{name}.npy", np.stack([value.ravel() for value in values]))


def _kind(system: System) -> tuple[object, ...]:
    return (system.numbers.tobytes(), system.pbc.tobytes(), system.energy is None, system.forces is None, system.stress is None)
