"""Files that are either whole or absent, and hashes of what they hold."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sapis.core.errors import ConfigError, FileError

PART_SUFFIX = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place in one step.

    A reader sees the old file or the new one, never a part: the data reach the disk before the rename.

    Raises:
        FileError: the file cannot be written; what was at ``path`` is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART_SUFFIX, dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it becomes ``path``, in one step. What a killed process left goes.

    Raises:
        FileError: there is something at ``path`` already, or it cannot be written; what the block raises beside ``OSError`` with
            a number passes through.
    """
    part = path.with_name(f".{path.name}{PART_SUFFIX}")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileError(expected="a new or empty folder", received="something that is there already", where=str(path),
                            todo="give another folder, or move this one away")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cannot_write(path: Path, error: OSError) -> FileError:
    """The error for a file or folder that the system refuses to write."""
    return FileError(
        expected="a path that can be written", received=error.strerror or str(error), where=str(path),
        todo="free space on the disk, or give another path; what was there before is unchanged",
    )


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON atomically; see `json_text`."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """JSON for people and programs; NaN and infinities become null: JSON has none."""
    return json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: the file is missing, empty or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(
            expected="a whole JSON file", received=f"text that is not JSON ({error})", where=str(path),
            todo="restore the file from its source, or delete it and make it again",
        ) from None


def read_text(path: Path) -> str:
    """Read a text file that must exist and must not be empty.

    Raises:
        FileError: the file is missing, a folder, empty or not UTF-8.
    """
    require_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileError(
            expected="a text file in UTF-8", received="bytes that are not text", where=str(path),
            todo="check that this is the file you meant",
        ) from None


def short_path(path: Path) -> Path:
    """A path as people would write it: without detours, and from the current folder if it is below that."""
    whole, here = path.resolve(), Path.cwd().resolve()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def require_file(path: Path) -> None:
    """Raise `FileError` unless ``path`` is a file with something in it."""
    problem = None
    if path.is_dir():
        problem = "a folder"
    elif not path.exists():
        problem = "no such file"
    elif path.stat().st_size == 0:
        problem = "an empty file"
    if problem:
        raise FileError(
            expected="an existing, non-empty file", received=problem, where=str(path),
            todo="check the path, and that whatever writes the file has finished",
        )


def refuse_inputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Nobody means to write over what is being read.

    Args:
        outputs: by the name that the user knows them by.

    Raises:
        ConfigError: an output is one of the inputs.
    """
    read = [path.resolve() for path in inputs]
    for option, output in outputs.items():
        if output is not None and output.resolve() in read:
            raise ConfigError(expected="an output that is none of the inputs", received=str(output), where=option,
                              todo="choose another name")


def hash_bytes(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length, so that moving a boundary changes the hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hash_bytes(json.dumps(_finite(value), sort_keys=True, separators=(",", ":")).encode())


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, str):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
