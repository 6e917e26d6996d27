"""What all formats share: names, compression, errors, physical units."""

from __future__ import annotations

import gzip
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import lmdb
from ase.units import Bohr, Hartree, kcal, kJ, mol

from sapis.core.errors import FileError
from sapis.core.files import require_file

# In the units of `System`: eV and Å.
HARTREE, BOHR, KCAL_MOL, KJ_MOL = Hartree, Bohr, kcal / mol, kJ / mol

# What unpacking raises at a damaged file.
DAMAGED = (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error)


def inner_name(path: Path) -> Path:
    """The name without ``.gz``."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, also packed (``.gz``, ``.xz``), with their ends, Windows' ones translated.

    Raises:
        FileError: missing, empty, a damaged archive or no text.
    """
    require_file(path)
    try:
        with _open_text(path) as file:
            yield from file
    except UnicodeDecodeError:
        raise FileError(expected="text in UTF-8", received="bytes that are not text", where=str(path),
                        todo="check that this is the file you meant") from None
    except DAMAGED as error:
        raise not_whole(path, error) from None


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def not_whole(path: Path, error: Exception) -> FileError:
    """The error for a packed file that cannot be unpacked to its end."""
    kind = {".gz": "gzip", ".xz": "xz"}[path.suffix]
    return FileError(expected=f"a whole {kind} file", received=str(error), where=str(path),
                     todo="copy or download the file again")


@contextmanager
def lmdb_transaction(path: Path, kind: str) -> Iterator[Any]:
    """To read an LMDB file of others, which nobody writes meanwhile.

    Raises:
        FileError: no such file.
    """
    try:
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise unreadable(error, kind, path) from None
    with environment, environment.begin() as transaction:
        yield transaction


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """``path``, or an unpacked copy that lives as long as the context."""
    if path.suffix != ".gz":
        yield path
        return
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, *DAMAGED) as error:
        raise not_whole(path, error) from None
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
