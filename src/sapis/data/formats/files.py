"""What all formats share: names, compression, errors, physical units."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ase.units import Bohr, Hartree, kcal, kJ, mol

from sapis.core.errors import FileError

# In the units of `System`: eV and Å.
HARTREE, BOHR, KCAL_MOL, KJ_MOL = Hartree, Bohr, kcal / mol, kJ / mol


def inner_name(path: Path) -> Path:
    """The name without ``.gz``."""
    return path.with_suffix("") if path.suffix == ".gz" else path


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """``path``, or an unpacked copy that lives as long as the context."""
    if path.suffix != ".gz":
        yield path
        return
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(expected="a whole gzip file", received=str(error), where=str(path),
                        todo="copy or download the file again") from None
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / inner_name(path).name
        plain.write_bytes(data)
        yield plain


def unreadable(error: Exception, kind: str, path: Path, number: int | None = None) -> FileError:
    """The error for a file, or a frame of it, at which a reader stumbled."""
    message = str(error).replace("\n", " ")[:300]
    return FileError(
        expected=f"a file in the format {kind!r}", received=f"{type(error).__name__}: {message}",
        where=str(path) if number is None else f"{path}, frame {number}",
        todo="mend this frame, or write the file again from its source",
    )


def missing(what: str, path: Path, found: object) -> FileError:
    """The error for a file of a known kind that lacks a part of it."""
    return FileError(expected=what, received=f"{found}"[:300], where=str(path),
                     todo="check that this is the file you meant, and that its copy or download is whole")
