"""Public data sets by name: downloaded once, checked always, kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sapis.core.errors import FileError, MissingDependencyError
from sapis.core.files import cannot_write, hash_file, read_json, write_json
from sapis.data.sets.archive import members, unpack, unpacked_folder
from sapis.data.sets.catalogue import PublicSet, RemoteFile, find

CACHE_VARIABLE = "SAPIS_DATA_DIR"


def cache_folder() -> Path:
    """Where public data are kept: ``SAPIS_DATA_DIR``, else ``~/.cache/sapis`` (``XDG_CACHE_HOME`` is heeded)."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().absolute() / "sapis"


def get(name: str | PublicSet, folder: Path | None = None) -> list[Path]:
    """The files of a public data set, downloaded if they are not there yet.

    Each file is compared with its published checksum every time. Where none is published, SHA-256 is recorded beside the
    file the first time and compared ever after. An interrupted download goes on where it stopped. A file put where it
    belongs by hand is checked and used. Archives are unpacked beside themselves; once that is done they may be deleted.

    Args:
        name: as ``rmd17/ethanol``; see `sapis.data.sets.listing`.
        folder: to keep the files in, below a folder of the family's name; default: `cache_folder`.

    Returns:
        Files, or of a set that is a whole archive the folder of its members.

    Raises:
        ConfigError: an unknown name.
        FileError: no connection, an address that is gone, a server that fails, a wrong checksum, an archive that cannot be
            unpacked, or a folder that cannot be written.
        MissingDependencyError: something is to be downloaded and pooch is not installed.
    """
    chosen = find(name) if isinstance(name, str) else name
    home = (folder.absolute() if folder else cache_folder()) / chosen.family.family
    found = []
    for file in chosen.files:
        path = home / file.name
        with _alone(path):
            if file.is_archive and unpacked_folder(path).is_dir():
                found += members(unpacked_folder(path), chosen.part.members)
                continue
            if path.exists():
                check(path, file, record=_record(path))
            else:
                _download(file, path)
            found += members(unpack(path), chosen.part.members) if file.is_archive else [path]
    return found


def _record(path: Path) -> Path:
    """Where the checksum of a file is written down of which none is published."""
    return path.with_name(path.name + ".json")


def check(path: Path, file: RemoteFile, *, record: Path) -> None:
    """Compare a file with what is known of it, or write down in ``record`` what it is where nothing is known.

    Raises:
        FileError: another file, or a damaged one.
    """
    algorithm, expected, origin = file.checksum.algorithm or "sha256", file.checksum.value, "published"
    if not file.checksum.is_verified and record.exists():
        expected, origin = read_json(record)["sha256"], "recorded when it was first here"
    n_bytes = path.stat().st_size
    if file.size_bytes not in (None, n_bytes):
        raise _wrong(path, f"{file.size_bytes:,} bytes, as published", f"{n_bytes:,} bytes")
    received = digest(path, algorithm)
    if expected and received != expected:
        raise _wrong(path, f"{algorithm} {expected}, as {origin}", received)
    if not expected:
        write_json(record, {"sha256": received, "size_bytes": n_bytes, "is_verified": False,
                            "addresses": [address.url for address in file.addresses]})


def digest(path: Path, algorithm: str) -> str:
    """Hash of a file: ``md5``, ``sha256`` or ``git`` (git's name of a blob)."""
    if algorithm == "sha256":
        return hash_file(path)
    state = hashlib.md5(usedforsecurity=False)
    if algorithm == "git":
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _wrong(path: Path, expected: str, received: str) -> FileError:
    return FileError(
        expected=f"{path.name} with {expected}", received=received, where=str(path),
        todo="delete the file and run the same command again; if it is still wrong, its publisher has changed it",
    )


def _download(file: RemoteFile, path: Path) -> None:
    """Fetch ``file`` from the first of its addresses that gives it; what is not whole stays in a folder of its own."""
    try:
        import pooch
    except ImportError:
        raise MissingDependencyError.of("pooch", extra="sets", purpose="downloading public data sets") from None
    from sapis.data.sets.download import Download, TransferError

    pooch.get_logger().setLevel(logging.WARNING)
    waiting, failures = path.with_name(path.name + ".download"), {}
    for address in file.addresses:
        downloader = Download(waiting / (path.name + ".part"), file.size_bytes, is_verified=file.checksum.is_verified)
        try:
            arrived = Path(pooch.retrieve(address.url, known_hash=_pooch_hash(file), fname=path.name, path=waiting,
                                          downloader=downloader))
            _keep(arrived, path, file)
            return
        except TransferError as error:
            failures[address.url] = str(error)
        except ValueError as error:  # a wrong checksum, in pooch's words
            shutil.rmtree(waiting, ignore_errors=True)
            failures[address.url] = " ".join(str(error).split())
        except OSError as error:
            raise cannot_write(waiting, error) from error
    raise _unavailable(file, path, failures)


def _pooch_hash(file: RemoteFile) -> str | None:
    """The checksum as pooch compares it; git's is beyond it, and is compared by `check` before the file gets its name."""
    known = file.checksum
    return f"{known.algorithm}:{known.value}" if known.algorithm in ("md5", "sha256") else None


def _keep(arrived: Path, path: Path, file: RemoteFile) -> None:
    if _pooch_hash(file) is None:
        try:
            check(arrived, file, record=_record(path))
        except FileError as error:
            raise ValueError(f"{error.received} instead of {error.expected}") from None
    arrived.replace(path)
    shutil.rmtree(arrived.parent)


def _unavailable(file: RemoteFile, path: Path, failures: dict[str, str]) -> FileError:
    return FileError(
        expected=f"{file.name} from {' or '.join(failures)}",
        received="; ".join(f"{reason} ({url})" for url, reason in failures.items()), where=str(path),
        todo="run the same command again, with a connection to the internet: it goes on where it stopped; or get the file "
             f"by other means and put it at {path}, where it is checked and used",
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from fetching or unpacking the same file; the lock ends with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.name}.lock").open("w")
    except OSError as error:
        raise cannot_write(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
