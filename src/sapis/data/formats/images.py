"""Every other format that ASE reads: VASP, ORCA, trajectories, databases, crystallographic files …

Where a calculation tells a free energy from one extrapolated to cold electrons, the energy is the free energy: it is the one
whose gradient the forces are.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sapis.core.errors import FileError
from sapis.core.files import require_file
from sapis.data.formats import vasp
from sapis.data.formats.files import unpacked, unreadable
from sapis.data.formats.labels import Frame, LabelKeys, labelled
from sapis.data.system import System

if TYPE_CHECKING:
    from ase import Atoms

DATABASES = ("db", "json")


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of a file in a format that ASE knows by name or content."""
    return labelled(_frames(path), keys, path, require, energy_keys=("REF_energy", "free_energy", "energy"))


def _frames(path: Path) -> Iterator[Frame]:
    from ase.io import iread

    require_file(path)
    number = 0
    with unpacked(path) as plain:
        kind = _kind(plain, path)
        electrons = _electrons(plain, kind)
        converged = vasp.convergence(plain, kind) if kind in (vasp.OUTCAR, vasp.VASPRUN) else iter(())
        try:
            for atoms in (_rows(plain, kind) if kind in DATABASES
                          else iread(str(plain), ":", format=kind, do_not_split_by_at_sign=True)):
                if (is_converged := next(converged, None)) is not None:
                    atoms.info["converged"] = is_converged
                atoms.info.update(electrons)
                yield Frame.of_atoms(atoms, number)
                number += 1
        except FileError:
            raise
        except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
            raise unreadable(error, kind, path, number) from error


def _rows(plain: Path, kind: str) -> Iterator[Atoms]:
    """Of one of ASE's databases, with the key-value pairs of each row, which may name charge and multiplicity."""
    from ase.db import connect

    for row in connect(str(plain), type=kind).select():
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        yield atoms


def _electrons(plain: Path, kind: str) -> dict[str, int]:
    """Charge and multiplicity, where ASE reads a program's output but leaves them out."""
    if kind not in _ELECTRONS:
        return {}
    text = plain.read_text(encoding="utf-8", errors="replace")
    found = {key: re.search(pattern, text) for key, pattern in _ELECTRONS[kind].items()}
    return {key: int(match[1]) for key, match in found.items() if match}


_ELECTRONS = {
    "orca-output": {"charge": r"Total Charge +Charge +\.+ +(-?\d+)", "spin": r"Multiplicity +Mult +\.+ +(\d+)"},
    "gaussian-out": {"charge": r"Charge = +(-?\d+) Multiplicity", "spin": r"Charge = +-?\d+ Multiplicity = +(\d+)"},
}


def _kind(plain: Path, path: Path) -> str:
    from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

    try:
        return str(get_ioformat(filetype(str(plain))).name)
    except (UnknownFileTypeError, OSError, EOFError, zlib.error) as error:
        raise FileError(
            expected="a file in a format that ASE knows by name or content",
            received=f"{type(error).__name__}: {error}", where=str(path),
            todo="rename the file so that its ending tells the format (.xyz, .cif, .traj …), or convert it",
        ) from None
