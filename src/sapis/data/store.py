"""`Store`: any number of labelled structures in a folder, appended in whole batches and read at random.

The folder holds `store.json` (what it is), LMDB files `shard-00000.mdb` … (the frames, see `sapis.data.packing`) and
`index.mdb` (content hash of each frame to its number, from which duplicates are known). A batch is there when `Store.append`
returns, and no part of it before: LMDB commits in one step. The index follows in larger pieces, for its entries lie anywhere, and
is caught up by the next writer, so that one may be killed between the two.
"""

from __future__ import annotations

import fcntl
import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, overload

import lmdb
import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from sapis.core.errors import FileError
from sapis.core.files import PART_SUFFIX, cannot_write, hash_bytes, read_json, write_json
from sapis.core.version import __version__
from sapis.data.environments import damaged, opened, translated
from sapis.data.packing import content, pack_all, unpack
from sapis.data.system import System

MANIFEST, INDEX = "store.json", "index.mdb"
SCHEMA_VERSION = 1
FRAMES_PER_SHARD = 2**20
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3, tension positive", "charge": "e"}
_NUMBER = struct.Struct(">Q")
_HASH_BYTES = 16
_INDEXED_TOGETHER = 524_288  # frames in one transaction
_INDEXED = b"n"


class Store(Sequence[System]):
    """The frames of a store, in the order in which they were appended. Many processes may read while one appends.

    Args:
        path: an existing store; see `create`.

    Raises:
        FileError: no store, a damaged one, or one of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self._environments: dict[str, lmdb.Environment] = {}
        self._transactions: dict[int, tuple[lmdb.Transaction, Any]] = {}
        self._lock: IO[bytes] | None = None
        self._unindexed: dict[bytes, int] = {}  # of the writer
        self.refresh()

    @classmethod
    def create(cls, path: str | Path, *, level: str = "", is_single: bool = False,
               isolated: Mapping[str, Mapping[int, float]] | None = None, frames_per_shard: int = FRAMES_PER_SHARD) -> Store:
        """A new, empty store.

        Args:
            level: level of theory of frames that do not name their own.
            is_single: keep positions and forces as float32, in half the space.
            isolated: energies of isolated atoms, eV, by level of theory and atomic number.
            frames_per_shard: frames of one LMDB file.

        Raises:
            FileError: there is something at ``path`` already, or it cannot be written.
        """
        path = Path(path)
        # What a kill left of a store that was being made is nothing yet.
        if path.exists() and (not path.is_dir() or any(item.suffix != PART_SUFFIX for item in path.iterdir())):
            raise FileError(expected="a new or empty folder", received="something that is there already", where=str(path),
                            todo="give another folder; to add frames to a store, open it and append")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        atoms = {name: {chemical_symbols[z]: energy for z, energy in energies.items()}
                 for name, energies in (isolated or {}).items()}
        write_json(path / MANIFEST, {
            "format": "sapis-store", "schema_version": SCHEMA_VERSION, "sapis": __version__, "units": UNITS, "level": level,
            "is_single": is_single, "frames_per_shard": frames_per_shard, "isolated": atoms, "sources": [],
        })
        return cls(path)

    @classmethod
    def at(cls, path: str | Path, *, level: str = "", is_single: bool = False) -> Store:
        """The store at ``path``, or a new one, see `create`.

        Raises:
            FileError: something else is there.
        """
        return cls(path) if is_store(path) else cls.create(path, level=level, is_single=is_single)

    # Reading

    def refresh(self) -> None:
        """See what was appended since the store was opened."""
        self._forget_transactions()
        self._starts, self._sizes, digest = [0], [], b""
        for number, path in enumerate(sorted(self.path.glob("shard-*.mdb"))):
            if not path.stat().st_size:
                break  # a writer was killed before its first batch
            with translated(path), self._environment(path.name).begin() as transaction:
                database = self._database(number, "sizes", transaction)
                if database is None:
                    break
                records = [bytes(value) for _, value in transaction.cursor(database)]
            sizes = [np.frombuffer(record[:-_HASH_BYTES], "<u4") for record in records]
            self._sizes += sizes
            self._starts.append(self._starts[-1] + sum(map(len, sizes)))
            digest = records[-1][-_HASH_BYTES:] if records else digest
        self._digest = digest

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each frame, ``(frames,)`` uint32, without reading the frames."""
        self._sizes = [np.concatenate([np.zeros(0, "<u4"), *self._sizes])]
        return self._sizes[0]

    @property
    def content_hash(self) -> str:
        """Hash of all frames (tags left out) in their order."""
        return hash_bytes(b"store", self._digest)

    @property
    def level(self) -> str:
        """Level of theory of frames that do not name their own."""
        return str(self.manifest["level"])

    @property
    def isolated(self) -> dict[str, dict[int, float]]:
        """Energies of isolated atoms, eV, by level of theory and atomic number."""
        return {level: {atomic_numbers[symbol]: energy for symbol, energy in energies.items()}
                for level, energies in self.manifest["isolated"].items()}

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> System: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> System | Selection:
        if isinstance(index, slice):
            return Selection(self, np.arange(len(self))[index])
        return unpack(self.packed(index))

    def packed(self, index: int) -> bytes:
        """The bytes of one frame.

        Raises:
            FileError: the store is damaged.
        """
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.path}")
        shard = bisect_right(self._starts, index) - 1
        opened = self._transactions.get(shard) or self._open(shard)
        try:
            data = opened[0].get(_NUMBER.pack(index - self._starts[shard]), db=opened[1])
        except lmdb.Error as error:
            raise damaged(self.path / _shard_name(shard), error) from None
        if data is None:
            raise damaged(self.path / _shard_name(shard), f"frame {index} is not there")
        return bytes(data)

    def verify(self) -> Iterator[int]:
        """Numbers of frames whose content is not what was written. The last ones are left out while another process appends:
        what they should be is not known yet.
        """
        if not (self.path / INDEX).exists():
            yield from range(len(self))
            return
        self._index()
        with translated(self.path / INDEX), self._environment(INDEX).begin() as transaction:
            known = transaction.get(_INDEXED)
            for number in range(min(len(self), _NUMBER.unpack(known)[0] if known else 0)):
                known = transaction.get(_hash(self.packed(number)))
                if known is None or _NUMBER.unpack(known)[0] != number:
                    yield number

    def _open(self, shard: int) -> tuple[lmdb.Transaction, Any]:
        name = _shard_name(shard)
        with translated(self.path / name):
            transaction = self._environment(name).begin()
            self._transactions[shard] = transaction, self._database(shard, "frames", transaction)
        return self._transactions[shard]

    def _database(self, shard: int, name: str, transaction: lmdb.Transaction) -> Any:
        """A database of a shard; None if the shard's first batch was never committed."""
        try:
            return self._environment(_shard_name(shard)).open_db(name.encode(), txn=transaction, create=False)
        except lmdb.NotFoundError:
            return None

    def _environment(self, name: str) -> lmdb.Environment:
        if name not in self._environments:
            self._environments[name] = opened(self.path / name, self)
        return self._environments[name]

    def forget_files(self) -> None:
        """Leave open files to the process that opened them, see `sapis.data.environments`."""
        self._environments, self._transactions, self._lock, self._unindexed = {}, {}, None, {}

    def _forget_transactions(self) -> None:
        for transaction, _ in self._transactions.values():
            transaction.abort()
        self._transactions = {}

    def close(self) -> None:
        """Give back files and the right to append."""
        self._index()
        self._forget_transactions()
        self._environments = {}
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    # Appending

    def append(self, systems: Sequence[System]) -> np.ndarray:
        """Add the frames that are not there yet; they are on the disk when this returns.

        Frames with the same structure, labels and level of theory, bit for bit, are the same, whatever their tags.

        Returns:
            The number of each frame in the store, ``(systems,)`` int64; of a duplicate that of its first occurrence.

        Raises:
            FileError: another process is appending, or the disk is full; what was there before is unchanged.
            DataError: a frame that cannot be packed.
        """
        self._begin_to_write()
        level, is_single = self.level, self.manifest["is_single"]
        packed = pack_all(systems, level=level, is_single=is_single)
        hashes = [_hash(data) for data in packed]
        numbers = np.empty(len(packed), dtype=np.int64)
        new: dict[bytes, int] = {}  # hash to position
        with translated(self.path / INDEX), self._environment(INDEX).begin() as transaction:
            for position, key in enumerate(hashes):
                if (number := self._unindexed.get(key)) is not None:
                    numbers[position] = number
                elif (known := transaction.get(key)) is not None:
                    numbers[position] = _NUMBER.unpack(known)[0]
                elif key in new:
                    numbers[position] = numbers[new[key]]
                else:
                    numbers[position] = len(self) + len(new)
                    new[key] = position
        pending = list(new.items())
        while pending:
            shard = self._last_shard()
            room = self.manifest["frames_per_shard"] - (len(self) - self._starts[shard])
            self._commit(shard, [(key, packed[position], len(systems[position])) for key, position in pending[:room]])
            pending = pending[room:]
        return numbers

    def add_source(self, source: Mapping[str, Any]) -> None:
        """Note where frames came from: name, hash, licence and whatever else there is to say, as JSON values."""
        self._describe(sources=[*_read_manifest(self.path)["sources"], dict(source)])

    def set_isolated(self, level: str, energies: Mapping[int, float]) -> None:
        """Note energies of isolated atoms at a level of theory, eV, by atomic number."""
        named = {chemical_symbols[z]: energy for z, energy in sorted(energies.items())}
        self._describe(isolated={**_read_manifest(self.path)["isolated"], level: named})

    def _describe(self, **entries: Any) -> None:
        self._begin_to_write()
        manifest = _read_manifest(self.path) | entries
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest

    def _last_shard(self) -> int:
        """The shard to append to: a new one where the last one is full."""
        last = len(self._starts) - 2
        if last < 0 or len(self) - self._starts[last] >= self.manifest["frames_per_shard"]:
            self._starts.append(len(self))
            last += 1
        return last

    def _commit(self, shard: int, frames: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Append ``(hash, bytes, atoms)`` to a shard, then to the index."""
        name, first = _shard_name(shard), len(self)
        local = first - self._starts[shard]
        digest = self._digest
        for key, _, _ in frames:  # one by one, so that it does not matter which were appended together
            digest = hashlib.blake2b(digest + key, digest_size=_HASH_BYTES).digest()
        sizes = np.array([n_atoms for _, _, n_atoms in frames], dtype="<u4")
        environment = self._environment(name)
        with translated(self.path / name):
            frames_db, sizes_db = environment.open_db(b"frames"), environment.open_db(b"sizes")
            with environment.begin(write=True) as transaction:
                transaction.cursor(frames_db).putmulti(
                    [(_NUMBER.pack(local + i), data) for i, (_, data, _) in enumerate(frames)], append=True)
                transaction.put(_NUMBER.pack(local), sizes.tobytes() + digest, db=sizes_db, append=True)
        self._forget_transactions()  # they see the shard as it was
        self._digest = digest
        self._sizes.append(sizes)
        self._starts[-1] = first + len(frames)
        self._unindexed |= {key: first + i for i, (key, _, _) in enumerate(frames)}
        if len(self._unindexed) >= _INDEXED_TOGETHER:
            self._index()

    def _index(self) -> None:
        """Write what waits for it. All frames before the last one that waits are in the index then."""
        if not self._unindexed:
            return
        n_frames = max(self._unindexed.values()) + 1
        with translated(self.path / INDEX), self._environment(INDEX).begin(write=True) as transaction:
            # Sorted, neighbours in the tree are written together.
            entries = sorted((key, _NUMBER.pack(number)) for key, number in self._unindexed.items())
            transaction.cursor().putmulti(entries, overwrite=False)
            transaction.put(_INDEXED, _NUMBER.pack(n_frames))
        self._unindexed = {}

    def _begin_to_write(self) -> None:
        """Take the right to append; see all that was appended, and index what a killed writer did not."""
        if self._lock is not None:
            return
        lock = (self.path / "writer.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FileError(expected="a store to which no other process appends", received="another process does",
                            where=str(self.path), todo="wait for it, or append to a store of your own") from None
        self._lock = lock
        self.refresh()
        with translated(self.path / INDEX), self._environment(INDEX).begin() as transaction:
            known = transaction.get(_INDEXED)
        indexed = _NUMBER.unpack(known)[0] if known else 0
        for start in range(indexed, len(self), _INDEXED_TOGETHER):
            for number in range(start, min(start + _INDEXED_TOGETHER, len(self))):
                self._unindexed.setdefault(_hash(self.packed(number)), number)
            self._index()


class Selection(Sequence[System]):
    """Some frames of a store, in an order of their own.

    Args:
        store: where they are.
        indices: their numbers, ``(frames,)``.
    """

    def __init__(self, store: Store, indices: np.ndarray) -> None:
        self.store, self.indices = store, np.asarray(indices, dtype=np.int64)

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each frame, ``(frames,)``, without reading the frames."""
        return self.store.n_atoms[self.indices]

    @property
    def content_hash(self) -> str:
        """Hash of the frames (tags left out) in their order."""
        return hash_bytes(self.store.content_hash.encode(), self.indices.astype("<i8").tobytes())

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> System: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> System | Selection:
        if isinstance(index, slice):
            return Selection(self.store, self.indices[index])
        return self.store[int(self.indices[index])]


def is_store(path: str | Path) -> bool:
    """Whether there is a store at ``path``."""
    return (Path(path) / MANIFEST).is_file()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not is_store(path):
        raise FileError(expected=f"a store: a folder with {MANIFEST}", received="none", where=str(path),
                        todo="check the path; `sapis data convert IN OUT` makes a store")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != "sapis-store":
        raise FileError(expected="the description of a store", received="something else", where=str(path / MANIFEST),
                        todo="check the path")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise FileError(expected=f"a store of version {SCHEMA_VERSION} at most", received=str(manifest["schema_version"]),
                        where=str(path / MANIFEST), todo="update sapis-md")
    return manifest


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(content(data), digest_size=_HASH_BYTES).digest()


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.mdb"
