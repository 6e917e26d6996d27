"""Archives, unpacked without leaving their folder and never by halves."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from sapis.core.errors import FileError
from sapis.core.files import new_folder
from sapis.data.sets.catalogue import ARCHIVES


def unpacked_folder(archive: Path) -> Path:
    """Where `unpack` puts the content of ``archive``: beside it, under its name without the ending."""
    ending = max((each for each in ARCHIVES if archive.name.endswith(each)), key=len)
    return archive.with_name(archive.name.removesuffix(ending))


def unpack(archive: Path) -> Path:
    """Unpack a zip or tar (also .gz, .bz2, .xz) archive beside itself; the folder appears when it is complete.

    Members that would be written outside the folder, links out of it and devices are refused (PEP 706 for tar).

    Returns:
        The folder.

    Raises:
        FileError: not a whole archive, a member that leaves the folder, or no room on the disk.
    """
    folder = unpacked_folder(archive)
    try:
        with new_folder(folder) as part:
            _extract(archive, part)
    except (tarfile.FilterError, _LeavesFolderError) as error:
        raise FileError(
            expected="an archive whose members stay in its folder", received=str(error), where=str(archive),
            todo="do not use this archive; nothing of it was kept",
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise _not_whole(archive, error) from None
    except OSError as error:  # without a number: bz2 and gzip report damage so
        raise _not_whole(archive, error) from None
    return folder


class _LeavesFolderError(Exception):
    """A member of a zip file that points out of the folder."""


def _not_whole(archive: Path, error: Exception) -> FileError:
    return FileError(
        expected="a whole archive", received=f"{type(error).__name__}: {error}", where=str(archive),
        todo="delete it and get it again",
    )


def _extract(archive: Path, folder: Path) -> None:
    if not archive.name.endswith(".zip"):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            # zipfile itself would strip '..' and root without a word: a file that tries is not what was published.
            target = Path(os.path.normpath(folder / member.filename))
            if not target.is_relative_to(folder) or stat.S_ISLNK(member.external_attr >> 16):
                raise _LeavesFolderError(f"{member.filename!r} would be outside the folder, or is a link")
        bundle.extractall(folder)


def members(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files in an unpacked archive: those that each of ``patterns`` names, in its order, or without any the folder itself.

    Raises:
        FileError: a pattern that no file fits.
    """
    if not patterns:
        return [folder]
    found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
    for pattern, paths in found.items():
        if not paths:
            raise FileError(
                expected=f"{pattern} in the unpacked archive", received="no such file", where=str(folder),
                todo="delete this folder; the same command then unpacks the archive again",
            )
    return [path for paths in found.values() for path in paths]
