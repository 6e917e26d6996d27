"""Labels on disk: one small file per label, whole or absent, safe with several processes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import FileError
from sapis.core.files import hash_bytes, hash_json, read_json, write_json
from sapis.data.system import System
from sapis.executors.outcome import Failure
from sapis.labelers.labeler import Label, Outcome


class LabelCache:
    """Labels and failures by structure and method, under ``folder``.

    A file holds the hash of its own content; a damaged one counts as absent, so that its label is computed
    again. JSON keeps float64 bit for bit: Python writes the shortest decimal that reads back the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def key(self, system: System, method: dict[str, Any]) -> str:
        """The name under which the label of ``system`` by ``method`` is kept."""
        return hash_bytes(system.structure_hash().encode(), hash_json(method).encode())

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Outcome | None:
        """The label or failure kept under ``key``; None if there is none or it is damaged."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            body = read_json(path)
        except (FileError, OSError):
            return None
        is_whole = isinstance(body, dict) and body.pop("content_hash", None) == hash_json(body)
        if not is_whole or body["key"] != key:
            return None
        return _label(body["label"]) if "label" in body else Failure(**body["failure"])

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep ``outcome`` under ``key``, atomically; a second writer of the same key replaces the file.

        Raises:
            FileError: the folder cannot be written.
        """
        body = {"key": key, "failure" if isinstance(outcome, Failure) else "label": asdict(outcome)}
        write_json(self.path(key), {**body, "content_hash": hash_json(body)})


def _label(body: dict[str, Any]) -> Label:
    stress = body["stress"]
    return Label(
        energy=body["energy"], forces=np.array(body["forces"], dtype=np.float64),
        stress=None if stress is None else np.array(stress, dtype=np.float64),
        cpu_seconds=body["cpu_seconds"],
    )
