"""What was labelled by which method: beside a store, so that the same command goes on where it was stopped.

One LMDB file, `labels.mdb`. Its keys say structure and method; a value is empty for a label (the store has it) and JSON for a
failure. The store is written first and the journal after it; what a killed process left between the two is caught up from the
store.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lmdb

from sapis.core.files import hash_json
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.outcome import Failure

FILE = "labels.mdb"
MAP_SIZE = 2**34  # address space, not disk
_KNOWN = b"n"
_NUMBER = struct.Struct(">Q")


class Journal:
    """The journal of a store for one method. Use it in a ``with`` block.

    Args:
        store: to which labels are appended.
        method: of the labeler, see `sapis.labelers.labeler.Labeler`.
        level: of the labels, which tells apart frames of several methods in one store.
    """

    def __init__(self, store: Store, method: dict[str, Any], level: str) -> None:
        self.store, self.level = store, level
        self._method = hash_json(method).encode()
        self._file = lmdb.open(str(Path(store.path) / FILE), subdir=False, map_size=MAP_SIZE, max_readers=64)
        self._catch_up()

    def key(self, system: System) -> bytes:
        """What stands for the label of a structure by the method."""
        return hashlib.blake2b(system.structure_hash().encode() + self._method, digest_size=16).digest()

    def done(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of ``keys`` have a label or a failure."""
        with self._file.begin() as transaction:
            return [transaction.get(key) is not None for key in keys]

    def note(self, labelled: Iterable[bytes], failures: Iterable[tuple[bytes, System, Failure]]) -> None:
        """Note what the store has by now, and what has failed."""
        entries = [(key, b"") for key in labelled]
        entries += [(key, json.dumps({"where": system.where, **asdict(failure)}).encode()) for key, system, failure in failures]
        with self._file.begin(write=True) as transaction:
            transaction.cursor().putmulti(sorted(entries))
            transaction.put(_KNOWN, _NUMBER.pack(len(self.store)))

    def failures(self) -> Iterator[dict[str, Any]]:
        """Where, kind and reason of what this and other methods could not label."""
        with self._file.begin() as transaction:
            for key, value in transaction.cursor():
                if key != _KNOWN and value:
                    yield json.loads(bytes(value))

    def forget_failures(self, kinds: Sequence[str] | None = None) -> None:
        """So that they are tried again; all, or those of some kinds."""
        with self._file.begin(write=True) as transaction:
            stale = [bytes(key) for key, value in transaction.cursor()
                     if key != _KNOWN and value and (kinds is None or json.loads(bytes(value))["kind"] in kinds)]
            for key in stale:
                transaction.delete(key)

    def _catch_up(self) -> None:
        """Frames that were appended after the last note. Those of other levels were not made by this method."""
        with self._file.begin() as transaction:
            known = transaction.get(_KNOWN)
        first = _NUMBER.unpack(known)[0] if known else 0
        if first < len(self.store):
            self.note((self.key(system) for system in self.store[first:] if system.level == self.level), [])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
