"""HDF5 sets: SPICE (a group a molecule, atomic units) and ANI-1x (a group a formula, hartree and Å)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import FileError, MissingDependencyError
from sapis.core.files import require_file
from sapis.data.formats.files import BOHR, HARTREE, missing
from sapis.data.formats.labels import LabelKeys
from sapis.data.system import System

SUFFIXES = (".h5", ".hdf5")
ANI_LEVEL = {"wb97x_dz": "wB97X/6-31G(d)", "wb97x_tz": "wB97X/def2-TZVPP", "ccsd(t)_cbs": "CCSD(T)/CBS"}
SPICE_LEVEL = "wB97M-D3(BJ)/def2-TZVPPD"


def is_hdf5(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of SPICE or ANI-1x, one group in memory at a time.

    Energies are SPICE's ``dft_total_energy`` (forces from ``dft_total_gradient``) and ANI-1x's ``wb97x_dz.energy`` and
    ``wb97x_dz.forces``, unless ``keys`` names others. Frames without the energy (NaN in ANI-1x) are left out.

    Raises:
        FileError: not HDF5, or neither layout.
        MissingDependencyError: h5py is not installed.
    """
    require_file(path)
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError.of("h5py", extra="hdf5", purpose="HDF5 files") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FileError(expected="a whole HDF5 file", received=str(error)[:200], where=str(path),
                        todo="copy or download the file again") from None
    with file:
        frame = 0
        for name, group in file.items():
            names = set(group) if isinstance(group, h5py.Group) else set()
            if {"atomic_numbers", "conformations"} <= names:
                systems = _spice(group, keys, path)
            elif {"atomic_numbers", "coordinates"} <= names:
                systems = _ani(group, keys, path)
            else:
                raise missing("groups with atomic_numbers and conformations (SPICE) or coordinates (ANI-1x)", path / name,
                              ", ".join(sorted(names)))
            for system in systems:
                yield system.with_tags(file=path.name, frame=frame, group=name)
                frame += 1


def _spice(group: Any, keys: LabelKeys, path: Path) -> Iterator[System]:
    """Eastman et al., Sci. Data 10, 11 (2023): bohr, hartree, gradients."""
    energies = _dataset(group, keys.energy or "dft_total_energy", path)
    gradients = _dataset(group, keys.forces or "dft_total_gradient", path, is_optional=keys.forces is None)
    positions, numbers = group["conformations"][()], group["atomic_numbers"][()]
    tags = {name: group[name].asstr()[0] for name in ("smiles", "subset") if name in group}
    charge = _formal_charge(tags.get("smiles", ""))
    for i, energy in enumerate(energies):
        yield System(
            numbers=numbers, positions=BOHR * positions[i].astype(float), energy=HARTREE * float(energy),
            forces=None if gradients is None else -HARTREE / BOHR * gradients[i].astype(float), charge=charge,
            level=SPICE_LEVEL, tags=tags,
        )


def _ani(group: Any, keys: LabelKeys, path: Path) -> Iterator[System]:
    """Smith et al., Sci. Data 7, 134 (2020): Å, hartree, hartree/Å; NaN where a method was not computed."""
    energy_key = keys.energy or "wb97x_dz.energy"
    method = energy_key.rpartition(".")[0]
    forces_key = keys.forces or f"{method}.forces"
    energies = _dataset(group, energy_key, path)
    forces = _dataset(group, forces_key, path, is_optional=keys.forces is None)
    positions, numbers = group["coordinates"][()], group["atomic_numbers"][()]
    for i in np.flatnonzero(np.isfinite(energies)):
        has_forces = forces is not None and np.isfinite(forces[i]).all()
        yield System(
            numbers=numbers, positions=positions[i].astype(float), energy=HARTREE * float(energies[i]),
            forces=HARTREE * forces[i].astype(float) if has_forces else None, level=ANI_LEVEL.get(method, method),
        )


def _dataset(group: Any, name: str, path: Path, *, is_optional: bool = False) -> Any:
    if name in group:
        return group[name][()]
    if is_optional:
        return None
    raise missing(f"a dataset {name!r}", path / group.name.strip("/"), ", ".join(sorted(group)))


def _formal_charge(smiles: str) -> int:
    """The sum of the charges that a SMILES writes in its brackets (``[NH3+]``, ``[O-]``, ``[Ca+2]``, ``[Ca++]``)."""
    total = 0
    for signs, number in re.findall(r"\[[^\[\]+-]*?([+-]+)(\d*)(?::\d+)?\]", smiles):
        total += (1 if signs[0] == "+" else -1) * (int(number) if number else len(signs))
    return total
