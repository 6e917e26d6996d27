"""ASE's database in LMDB (`.aselmdb`), the form of OMol25, OMat24 and OC22: compressed JSON rows under decimal keys."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sapis.core.files import require_file
from sapis.data.formats.files import lmdb_transaction, missing, unreadable
from sapis.data.formats.labels import Frame, LabelKeys, labelled
from sapis.data.system import System


def is_aselmdb(path: Path) -> bool:
    """By the name of the file, or of the files in a folder."""
    return path.suffix == ".aselmdb" or (path.is_dir() and any(path.glob("*.aselmdb")))


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of one file, or of all files of a folder. Key-value pairs and the scalars of ``data`` become tags; charge and
    spin are found there too.

    Raises:
        FileError: not LMDB, or rows that are not ASE's.
    """
    for file in sorted(path.glob("*.aselmdb")) if path.is_dir() else [path]:
        yield from labelled(_frames(file), keys, file, require)


def _frames(path: Path) -> Iterator[Frame]:
    from ase.db.row import AtomsRow
    from ase.io.jsonio import decode

    require_file(path)
    with lmdb_transaction(path, "ASE-LMDB") as transaction:
        last = _decoded(transaction.get(b"nextid"), decode, path)
        if not isinstance(last, int):
            raise missing("the key 'nextid'", path, f"{transaction.stat()['entries']} entries without it")
        number = 0
        for row_id in range(1, last):
            data = transaction.get(str(row_id).encode())
            if data is None:
                continue  # a deleted row
            try:
                row = AtomsRow({**_decoded(data, decode, path), "id": row_id})
                atoms = row.toatoms()
            except Exception as error:  # ASE raises whatever it stumbles over
                raise unreadable(error, "ASE-LMDB", path, number) from None
            atoms.info.update({key: value for key, value in row.data.items() if isinstance(value, str | int | float | bool)})
            atoms.info.update(row.key_value_pairs)
            yield Frame.of_atoms(atoms, number)
            number += 1


def _decoded(data: bytes | None, decode: Any, path: Path) -> Any:
    try:
        return None if data is None else decode(zlib.decompress(data).decode())
    except (zlib.error, UnicodeDecodeError, ValueError) as error:
        raise unreadable(error, "ASE-LMDB", path) from None
