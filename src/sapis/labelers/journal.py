"""What was labelled by which method: beside a store, so that the same command goes on where it was stopped.

One LMDB file, `labels.mdb`. Its keys say structure and method; a value is the number of the frame that has the label, or the
failure as JSON. The store is written first and the journal after it; what a killed process left between the two is caught up from
the store by the next one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_KNOWN, _WRITER = b"n", b"w"  # frames that are noted; method and level of who appends
_COST, _LIMITS = b"c", b"l"  # by method, whose hash follows: CPU seconds, and what labels are limited to
_NUMBER, _SECONDS = struct.Struct(">Q"), struct.Struct(">d")


class Journal:
    """The journal of a store for one method. Use it in a ``with`` block.

    Args:
        store: to which labels are appended.
        method: of the labeler, see `sapis.labelers.labeler.Labeler`.
        level: of the labels, which tells apart frames of several methods in one store.
    """

    def __init__(self, store: Store, method: dict[str, Any], level: str) -> None:
        self.store, self.level = store, level
        self._method = hash_json(method)
        self._cost_key = _COST + self._method.encode()
        self._file = lmdb.open(str(Path(store.path) / FILE), subdir=False, map_size=MAP_SIZE, max_readers=64)
        self._catch_up()

    def key(self, system: System) -> bytes:
        """What stands for the label of a structure by the method."""
        return _key(system, self._method)

    def get(self, keys: Sequence[bytes]) -> list[int | Failure | None]:
        """What became of each of ``keys``: the number of its frame in the store, a failure, or None if it was not done yet."""
        with self._file.begin() as transaction:
            return [_outcome(transaction.get(key)) for key in keys]

    def note(self, labelled: Iterable[tuple[bytes, int]], failures: Iterable[tuple[bytes, System, Failure]] = (), *,
             cpu_seconds: float = 0.0) -> None:
        """Note which frames of the store have the labels of which keys, what has failed, and what all of them cost."""
        entries = [(key, _NUMBER.pack(number)) for key, number in labelled]
        entries += [(key, json.dumps({"where": system.where, **asdict(failure)}).encode()) for key, system, failure in failures]
        with self._file.begin(write=True) as transaction:
            transaction.cursor().putmulti(sorted(entries))
            transaction.put(_KNOWN, _NUMBER.pack(len(self.store)))
            transaction.put(self._cost_key, _SECONDS.pack(self._cost(transaction) + cpu_seconds))

    @property
    def cpu_seconds(self) -> float:
        """Of all labels and failures by the method that were noted so far."""
        with self._file.begin() as transaction:
            return self._cost(transaction)

    def _cost(self, transaction: lmdb.Transaction) -> float:
        value = transaction.get(self._cost_key)
        return float(_SECONDS.unpack(value)[0]) if value else 0.0

    def failures(self) -> Iterator[dict[str, Any]]:
        """Where, kind and reason of what this and other methods could not label."""
        with self._file.begin() as transaction:
            for _, value in transaction.cursor():
                if _is_failure(value):
                    yield _read(value)

    def forget_failures(self, kinds: Sequence[str] | None = None) -> None:
        """So that they are tried again; all, or those of some kinds."""
        with self._file.begin(write=True) as transaction:
            stale = [bytes(key) for key, value in transaction.cursor()
                     if _is_failure(value) and (kinds is None or _read(value)["kind"] in kinds)]
            for key in stale:
                transaction.delete(key)

    def limited(self, limits: Mapping[str, Any]) -> None:
        """Note what labels are limited to, by the kind of failure that comes of it. Those of a kind whose limit is another one
        than before are forgotten.
        """
        self.forget_failures(self.stale_kinds(limits))
        with self._file.begin(write=True) as transaction:
            transaction.put(_LIMITS + self._method.encode(), json.dumps([dict(limits)]).encode())

    def stale_kinds(self, limits: Mapping[str, Any]) -> list[str]:
        """Kinds of failures whose limit is another one in ``limits`` than when they were noted."""
        with self._file.begin() as transaction:
            before = json.loads(transaction.get(_LIMITS + self._method.encode()) or b"null")
        return [] if before is None else [kind for kind, limit in limits.items() if before[0].get(kind) != limit]

    def _catch_up(self) -> None:
        """Note frames that were appended after the last note, by whoever was labelling then. Those of other levels were not."""
        with self._file.begin() as transaction:
            known, writer = transaction.get(_KNOWN), transaction.get(_WRITER)
        method, level = json.loads(writer) if writer else (self._method, self.level)
        first = _NUMBER.unpack(known)[0] if known else 0
        if first < len(self.store):
            self.note((_key(system, method), first + i) for i, system in enumerate(self.store[first:]) if system.level == level)
        with self._file.begin(write=True) as transaction:
            transaction.put(_WRITER, json.dumps([self._method, self.level]).encode())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _key(system: System, method: str) -> bytes:
    return hashlib.blake2b((system.structure_hash() + method).encode(), digest_size=16).digest()


def _is_failure(value: bytes | memoryview) -> bool:
    return bytes(value[:1]) == b"{"


def _read(value: bytes | memoryview) -> dict[str, Any]:
    return dict(json.loads(bytes(value)))


def _outcome(value: bytes | None) -> int | Failure | None:
    if not value:
        return None
    if not _is_failure(value):
        return int(_NUMBER.unpack(value)[0])
    failure = _read(value)
    return Failure(failure["kind"], failure["reason"], failure["cpu_seconds"])
