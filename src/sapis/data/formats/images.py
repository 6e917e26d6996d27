"""Every other format that ASE reads: VASP, ORCA, CP2K, trajectories, databases, crystallographic files …"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sapis.core.errors import FileError
from sapis.core.files import require_file
from sapis.data.formats.files import unpacked, unreadable
from sapis.data.formats.labels import Frame, LabelKeys, labelled
from sapis.data.system import System


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of a file in a format that ASE knows by name or content."""
    return labelled(_frames(path), keys, path, require)


def _frames(path: Path) -> Iterator[Frame]:
    from ase.io import iread

    require_file(path)
    number = 0
    with unpacked(path) as plain:
        kind = _kind(plain, path)
        try:
            for atoms in iread(str(plain), ":", format=kind, do_not_split_by_at_sign=True):
                yield Frame.of_atoms(atoms, number)
                number += 1
        except FileError:
            raise
        except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
            raise unreadable(error, kind, path, number) from error


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
