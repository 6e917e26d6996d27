"""QM9 as published: one .xyz file a molecule, or the archive of all (Ramakrishnan et al., Sci. Data 1, 140022, 2014)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from sapis.core.errors import FileError
from sapis.core.files import require_file
from sapis.data.formats.files import HARTREE, missing, unreadable
from sapis.data.formats.labels import LabelKeys
from sapis.data.formats.npz import QM9_LEVEL
from sapis.data.system import System

SUFFIXES = (".tar.bz2", ".tar.gz", ".tar", ".tgz")
# Columns of the second line after "gdb" and the number, and their units in those of `System`.
_COLUMNS = {"A": 1.0, "B": 1.0, "C": 1.0, "mu": 1.0, "alpha": 1.0, "homo": HARTREE, "lumo": HARTREE, "gap": HARTREE, "r2": 1.0,
            "zpve": HARTREE, "U0": HARTREE, "U": HARTREE, "H": HARTREE, "G": HARTREE, "Cv": 1.0}


def is_qm9(path: Path) -> bool:
    """A tar archive, or an .xyz file whose second line begins with ``gdb``."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix.lower() != ".xyz" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().strip().isdigit() and file.readline().startswith(b"gdb ")


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The molecules of one file or of the archive, in its order; ``U0`` is the energy unless ``keys`` names another.

    Raises:
        FileError: not QM9's layout, or a damaged archive.
    """
    require_file(path)
    name = keys.energy or "U0"
    if name not in _COLUMNS:
        raise missing(f"an energy among {', '.join(_COLUMNS)}", path, name)
    for frame, (member, text) in enumerate(_texts(path)):
        try:
            yield _molecule(text, name, {"file": path.name, "frame": frame})
        except (ValueError, IndexError, KeyError) as error:
            raise unreadable(error, "QM9 xyz", path / member, frame) from None


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() == ".xyz":
        yield path.name, path.read_text()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xyz") and (file := archive.extractfile(member)):
                    yield member.name, file.read().decode()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(expected="a whole tar archive of QM9's .xyz files", received=str(error), where=str(path),
                        todo="copy or download the file again") from None


def _molecule(text: str, name: str, tags: dict[str, str | int]) -> System:
    lines = text.splitlines()
    atoms = int(lines[0])
    words = lines[1].split()
    rows = [line.split() for line in lines[2 : 2 + atoms]]
    if words[0] != "gdb" or len(words) != 2 + len(_COLUMNS) or len(rows) != atoms:
        raise ValueError(f"not 'gdb', a number and {len(_COLUMNS)} properties, then {atoms} atoms")
    properties = {key: unit * _number(word) for (key, unit), word in zip(_COLUMNS.items(), words[2:], strict=True)}
    smiles = lines[3 + atoms].split()[0] if len(lines) > 3 + atoms and lines[3 + atoms].split() else ""
    return System(
        numbers=np.array([atomic_numbers[row[0]] for row in rows]),
        positions=np.array([[_number(word) for word in row[1:4]] for row in rows]), energy=properties[name], level=QM9_LEVEL,
        tags={**tags, "qm9_index": int(words[1]), **({"smiles": smiles} if smiles else {}),
              **{key: value for key, value in properties.items() if key not in ("A", "B", "C")}},
    )


def _number(word: str) -> float:
    # Mathematica's way to write an exponent.
    return float(word.replace("*^", "e"))
