"""LMDB files of stores as one process shares them, with their errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

import lmdb

from sapis.core.errors import FileError

# Address space, not disk: LMDB files grow as they are written.
MAP_SIZE = 2**36


class User(Protocol):
    """Who has files open."""

    def forget_files(self) -> None:
        """Leave them to the process that opened them."""
        ...


# LMDB forbids to open a file twice in one process, and to use it in another one after a fork.
_open_files: WeakValueDictionary[Path, lmdb.Environment] = WeakValueDictionary()
_users: WeakSet[User] = WeakSet()


def _after_fork() -> None:
    """A new process opens files of its own; the parent's stay the parent's."""
    for user in _users:
        user.forget_files()
    _open_files.clear()


os.register_at_fork(after_in_child=_after_fork)


def opened(path: Path, user: User) -> lmdb.Environment:
    """The LMDB file at ``path``, shared by all of this process, writable where it may be."""
    _users.add(user)
    key = path.resolve()
    environment = _open_files.get(key)
    if environment is None:
        can_write = os.access(path.parent, os.W_OK)
        environment = _open_files[key] = lmdb.open(
            str(path), subdir=False, map_size=MAP_SIZE, max_dbs=2, max_readers=1024, mode=0o644, readonly=not can_write,
            lock=can_write, readahead=False, meminit=False,
        )
    return environment


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """LMDB's errors as ours.

    Raises:
        FileError: no space for more frames, or a damaged file.
    """
    try:
        yield
    except (lmdb.MapFullError, lmdb.DiskError) as error:
        raise FileError(expected="space for more frames", received=str(error), where=str(path),
                        todo="free space on the disk; what was appended before is unchanged") from None
    except lmdb.Error as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: object) -> FileError:
    """The error for a file that is not what was written."""
    return FileError(expected="a whole LMDB file of a store", received=str(error), where=str(path),
                     todo="restore the store from a copy, or make it again from its source")
