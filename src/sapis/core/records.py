"""Records: what was run, on what, by which code, at what cost, with what result.

Everything expensive ends as a record; reports and skipping only read records. A record carries the hash of
its own content, so that a half-written or altered one is refused.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sapis.core.errors import FileError
from sapis.core.files import hash_json, read_json, write_json
from sapis.core.version import __version__

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One finished piece of work.

    Attributes:
        name: which step or benchmark.
        input_hash: hash of everything that determines the result.
        result: figures and names of files, JSON values only.
        cost: ``cpu_seconds``, ``wall_seconds`` and, where counted, ``flops``.
        provenance: code version, package versions, machine.
    """

    name: str
    input_hash: str
    result: dict[str, Any]
    cost: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically, with the hash of its content."""
    body = asdict(record)
    write_json(path, {**body, "content_hash": hash_json(body)})


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        FileError: missing, truncated, altered, or of a newer schema.
    """
    body = read_json(path)
    stored = body.pop("content_hash", None) if isinstance(body, dict) else None
    if stored is None or stored != hash_json(body):
        raise FileError(
            expected="a record whose content matches its hash", received="altered or foreign content",
            where=str(path), todo="delete it and run the same command again",
        )
    if body["schema_version"] > SCHEMA_VERSION:
        raise FileError(
            expected=f"schema_version <= {SCHEMA_VERSION}", received=str(body["schema_version"]),
            where=str(path), todo="update sapis-md",
        )
    return Record(**body)


def valid_record(path: Path, input_hash: str) -> Record | None:
    """The record at ``path`` if it is whole and was made from the same input, else None."""
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except FileError:
        return None
    return record if record.input_hash == input_hash else None


class Stopwatch:
    """CPU and wall seconds since it was made, for this process and the children it has waited for."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def cost(self) -> dict[str, float]:
        """``{"cpu_seconds": …, "wall_seconds": …}`` so far."""
        return {
            "cpu_seconds": round(cpu_seconds() - self._cpu, 3),
            "wall_seconds": round(time.perf_counter() - self._wall, 3),
        }

    def cost_with(self, trainings: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The same, but CPU seconds and FLOPs are those of ``trainings``, over all calls that made them."""
        each = list(trainings)
        return {**self.cost(), **{key: sum(training[key] for training in each) for key in ("cpu_seconds", "flops")}}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


PACKAGES = ("ase", "numpy", "rdkit", "tblite", "torch", "vesin")


@cache
def provenance() -> dict[str, Any]:
    """Code version, package versions and machine, for records and model cards."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "sapis": __version__,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": versions,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
    }


def _commit() -> str | None:
    """The git commit of the source tree this runs from, with ``+`` if it holds uncommitted changes."""
    folder = Path(__file__).parent
    try:
        # A package that was installed into somebody's repository is no part of it.
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=folder, capture_output=True,
                                 timeout=5)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(["git", "status", "--porcelain", "--", "."], cwd=folder.parent, capture_output=True,
                               text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if tracked.returncode != 0 or head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
