"""NumPy archives of molecular sets: MD17 and sGDML (MD22), revised MD17, its splits, QM9, and zero-padded ones.

Which layout a file has is told by its names of arrays; a file of no known layout is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import DataError, FileError
from sapis.core.files import replacing, require_file
from sapis.data.formats.files import BOHR, HARTREE, KCAL_MOL, KJ_MOL, missing
from sapis.data.formats.labels import LabelKeys
from sapis.data.reference import all_electron_energy
from sapis.data.system import System

ENERGY_UNITS = {"ev": 1.0, "kcal/mol": KCAL_MOL, "kj/mol": KJ_MOL, "hartree": HARTREE, "ha": HARTREE, "mev": 1e-3}
LENGTH_UNITS = {"ang": 1.0, "angstrom": 1.0, "å": 1.0, "bohr": BOHR, "a.u.": BOHR, "nm": 10.0}
QM9_LEVEL = "B3LYP/6-31G(2df,p)"
QM9_PROPERTIES = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
Arrays = Mapping[str, np.ndarray]


def is_npz(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() == ".npz"


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of a NumPy archive, in eV and Å.

    Raises:
        FileError: no archive, or no layout that is known.
        DataError: units that are not known, or that the energies contradict.
    """
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(expected="a whole NumPy archive without objects", received=str(error)[:200], where=str(path),
                        todo="copy or download the file again; arrays of objects are not read, as they can run code") from None
    for names, read in LAYOUTS:
        if names <= arrays.keys():
            yield from read(arrays, path, keys)
            return
    raise missing("arrays named as in " + "; ".join(", ".join(sorted(names)) for names, _ in LAYOUTS), path,
                  ", ".join(sorted(arrays)))


def _rmd17(arrays: Arrays, path: Path, keys: LabelKeys) -> Iterator[System]:
    """Christensen and von Lilienfeld, MLST 1, 045018 (2020): kcal/mol, Å."""
    frames = zip(arrays["coords"], arrays["energies"], arrays["forces"], strict=True)
    old = arrays.get("old_indices", np.arange(len(arrays["coords"])))
    for frame, (positions, energy, forces) in enumerate(frames):
        yield System(
            numbers=arrays["nuclear_charges"], positions=positions, energy=KCAL_MOL * float(energy), forces=KCAL_MOL * forces,
            level="PBE/def2-SVP", tags={"file": path.name, "frame": frame, "md17_index": int(old[frame])},
        )


def _rmd17_split(arrays: Arrays, path: Path, keys: LabelKeys) -> Iterator[System]:
    """One published split of revised MD17: eV, Å; the tag ``part`` says train or test."""
    frame = 0
    for part in ("train", "test"):
        named = (arrays[f"{name}_{part}"] for name in ("R", "E", "F", "idx"))
        for positions, energy, forces, index in zip(*named, strict=True):
            yield System(
                numbers=arrays["z"], positions=positions.astype(float), energy=float(energy), forces=forces.astype(float),
                tags={"file": path.name, "frame": frame, "part": part, "md17_index": int(index)},
            )
            frame += 1


def _sgdml(arrays: Arrays, path: Path, keys: LabelKeys) -> Iterator[System]:
    """Chmiela et al., Comput. Phys. Commun. 240, 38 (2019): one molecule, units named in the file or kcal/mol and Å."""
    length = _unit(arrays, "r_unit", LENGTH_UNITS, "Ang", path)
    unit = _unit(arrays, "e_unit", ENERGY_UNITS, "kcal/mol", path)
    energies = unit * arrays["E"].reshape(-1).astype(float) if "E" in arrays else None
    forces = unit / length * arrays["F"].astype(float) if "F" in arrays else None
    positions = length * arrays["R"].astype(float)
    cell = length * arrays["lattice"].astype(float).T if "lattice" in arrays else np.zeros((3, 3))
    if energies is not None and "e_unit" not in arrays:
        _refuse_other_unit(arrays["z"], float(np.median(energies)), path)
    level = _text(arrays.get("theory"))
    for frame in range(len(positions)):
        yield System(
            numbers=arrays["z"], positions=positions[frame], energy=None if energies is None else float(energies[frame]),
            forces=None if forces is None else forces[frame], level="" if level == "unknown" else level,
            tags={"file": path.name, "frame": frame}, cell=cell, pbc=np.full(3, "lattice" in arrays),
        )


def _padded(arrays: Arrays, path: Path, keys: LabelKeys) -> Iterator[System]:
    """Unke and Meuwly, JCTC 15, 3678 (2019): molecules of several sizes padded with zeros; eV, Å, e."""
    for frame, atoms in enumerate(arrays["N"].astype(int).tolist()):
        yield System(
            numbers=arrays["Z"][frame, :atoms], positions=arrays["R"][frame, :atoms].astype(float),
            energy=float(arrays["E"][frame]) if "E" in arrays else None,
            forces=arrays["F"][frame, :atoms].astype(float) if "F" in arrays else None,
            charge=round(float(arrays["Q"][frame])) if "Q" in arrays else 0, tags={"file": path.name, "frame": frame},
        )


def _qm9(arrays: Arrays, path: Path, keys: LabelKeys) -> Iterator[System]:
    """QM9 with atoms concatenated (``n_atoms`` of each molecule), eV and Å; ``U0`` is the energy unless another is named."""
    name = keys.energy or "U0"
    if name not in arrays:
        raise missing(f"an array {name!r}", path, ", ".join(sorted(arrays)))
    ends = np.cumsum(arrays["n_atoms"].astype(int))
    others = [other for other in QM9_PROPERTIES if other in arrays]
    for frame, (end, atoms) in enumerate(zip(ends, arrays["n_atoms"].astype(int), strict=True)):
        tags = {other: float(arrays[other][frame]) for other in others}
        yield System(
            numbers=arrays["z"][end - atoms : end], positions=arrays["R"][end - atoms : end].astype(float),
            energy=float(arrays[name][frame]), level=QM9_LEVEL,
            tags={"file": path.name, "frame": frame, "qm9_index": int(arrays["index"][frame]), **tags},
        )


LAYOUTS: list[tuple[set[str], Callable[[Arrays, Path, LabelKeys], Iterator[System]]]] = [
    ({"nuclear_charges", "coords", "energies", "forces"}, _rmd17),
    ({"z", "R_train", "E_train", "F_train", "R_test", "E_test", "F_test"}, _rmd17_split),
    ({"z", "R", "n_atoms", "index"}, _qm9),
    ({"Z", "R", "N"}, _padded),
    ({"z", "R"}, _sgdml),
]


def _unit(arrays: Arrays, name: str, units: Mapping[str, float], usual: str, path: Path) -> float:
    text = _text(arrays.get(name)) or usual
    if text.lower() not in units:
        raise DataError(expected=f"one of {', '.join(units)}", received=repr(text), where=f"{path}, key {name!r}",
                        todo="convert the file, or correct its unit")
    return units[text.lower()]


def _text(array: Any) -> str:
    """Text that NumPy kept as bytes or as text, in an array without axes."""
    value = None if array is None else np.asarray(array).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)


def _refuse_other_unit(numbers: np.ndarray, energy: float, path: Path) -> None:
    """MD17 does not name its unit: kcal/mol. Energies that are all-electron totals in another one are not MD17's."""
    ratio = energy / KCAL_MOL / all_electron_energy(numbers)
    for unit, factor in (("eV", HARTREE), ("hartree", 1.0)):
        if 0.9 < ratio / factor < 1.1:
            raise DataError(
                expected="energies in kcal/mol, as in MD17, or an array `e_unit` that names another unit",
                received=f"{energy / KCAL_MOL:.6g}, which fits {unit}", where=f"{path}, key 'E'",
                todo=f"add e_unit={unit!r} (and r_unit) to the file",
            )


def write(path: Path, systems: Sequence[System]) -> None:
    """Write frames of one molecule or crystal in sGDML's layout (z, R, E, F; eV and Å, named in the file).

    Raises:
        DataError: frames of several compositions, periodicities or with different labels.
    """
    first = systems[0]

    def kind(system: System) -> tuple[object, ...]:
        return (system.numbers.tobytes(), system.cell.tobytes(), system.pbc.tobytes(), system.energy is None,
                system.forces is None, system.charge, system.spin, system.level)

    for system in systems:
        if kind(system) != kind(first) or system.charge or system.spin != 1 or system.pbc.any() != system.pbc.all():
            raise system.error(expected="neutral singlets with the atoms, cell, labels and level of theory of the first frame",
                               received=f"{system.formula}, which differs, or that the layout cannot hold",
                               todo="choose another format, such as extended XYZ")
    arrays: dict[str, Any] = {"type": np.array(b"d"), "z": first.numbers, "R": np.stack([system.positions for system in systems]),
                              "r_unit": np.array(b"Ang"), "e_unit": np.array(b"eV"),
                              "theory": np.array((first.level or "unknown").encode())}
    if first.energy is not None:
        arrays["E"] = np.array([[system.energy] for system in systems])
    if first.forces is not None:
        arrays["F"] = np.stack([system.forces for system in systems if system.forces is not None])
    if first.pbc.all():
        arrays["lattice"] = first.cell.T
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
