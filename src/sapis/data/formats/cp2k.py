"""The output of a CP2K run, by dpdata: ASE reads CP2K's restarts and trajectories but not its outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import DataError, MissingDependencyError
from sapis.data.formats.files import unreadable
from sapis.data.formats.labels import LabelKeys
from sapis.data.system import System

_HEAD = 20_000  # bytes in which a run says who it is
# A line of the table of atoms, for the atomic number: dpdata has the names of kinds, which may be any.
_ATOM = re.compile(r"^ +\d+ +\d+ +[A-Z][a-z]? +(\d+)(?: +-?\d+\.\d+){5}$", re.MULTILINE)
_SETTING = r"^ {}\s+(\S+)$"


def is_cp2k(path: Path) -> bool:
    """By what every run prints first."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"CP2K| version string:" in file.read(_HEAD)


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The structure of a run with its energy, forces and stress, as dpdata finds them (eV, Å), turned so that the first vector of
    the cell lies along x. Charge, multiplicity and directions of periodicity are read beside it.

    Raises:
        MissingDependencyError: dpdata is not installed.
        FileError: cut off, or without forces.
        DataError: a run that did not converge.
    """
    try:
        import dpdata
    except ImportError:
        raise MissingDependencyError.of("dpdata", extra="cp2k", purpose="outputs of CP2K") from None
    text = path.read_text(encoding="utf-8", errors="replace")
    if "SCF run NOT converged" in text:
        raise DataError(expected="a run whose SCF loop converged", received="one that says it did not", where=str(path),
                        todo="run it again with more steps or another mixing, or leave it out")
    try:
        found: Any = dpdata.LabeledSystem(str(path), fmt="cp2k/output").data
        numbers = np.array([int(number) for number in _ATOM.findall(text)[-len(found["atom_types"]):]])
        frames = list(zip(found["coords"], found["cells"], found["energies"], found["forces"], strict=True))
    except Exception as error:  # dpdata raises whatever it stumbles over
        raise unreadable(error, "CP2K output", path) from error
    virials = found.get("virials")
    periodic = _setting(text, r"POISSON\| Periodicity", "XYZ")
    for number, (positions, cell, energy, forces) in enumerate(frames):
        pbc = np.array([axis in periodic for axis in "XYZ"])
        is_solid = virials is not None and pbc.all()
        yield System(
            numbers, positions, cell if pbc.any() else np.zeros((3, 3)), pbc, energy=float(energy), forces=forces,
            stress=-0.5 * (virials[number] + virials[number].T) / abs(np.linalg.det(cell)) if is_solid else None,
            charge=int(_setting(text, r"DFT\| Charge", "0")), spin=int(_setting(text, r"DFT\| Multiplicity", "1")),
            tags={"file": path.name, "frame": number},
        )


def _setting(text: str, name: str, default: str) -> str:
    found = re.search(_SETTING.format(name), text, re.MULTILINE)
    return found[1] if found else default
