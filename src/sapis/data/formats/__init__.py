"""Files of structures: the public formats of the field read into `System`, in eV and Å, with labels found by key.

Each format is a module with ``iterate(path, keys, require)``; which one a path has is told by `format_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sapis.core.errors import ConfigError, DataError, FileError
from sapis.data.formats import aselmdb, cp2k, deepmd, hdf5, images, npz, oc20, qm9, xyz
from sapis.data.formats.labels import LabelKeys, absent
from sapis.data.formats.xyz import write_systems
from sapis.data.store import Store, is_store
from sapis.data.system import System

__all__ = ["FORMATS", "Counted", "Format", "LabelKeys", "format_of", "iterate_systems", "parse_index", "read_systems", "select",
           "write_systems"]


@dataclass(frozen=True)
class Format:
    """A format that can be read.

    Attributes:
        name: for the user.
        is_it: whether a path has this format, by its name or what is in it.
        iterate: its systems, one after another; labels by `LabelKeys`; the labels that must be there.
        named: the labels whose key may be named.
    """

    name: str
    is_it: Callable[[Path], bool]
    iterate: Callable[[Path, LabelKeys, Sequence[str]], Iterator[System]]
    named: tuple[str, ...] = ()


def _from_store(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    with Store(path) as store:
        yield from store


_ALL = ("energy", "forces", "stress", "virial")
# The first that fits is the one.
FORMATS = (
    Format("store of sapis", is_store, _from_store),
    Format("deepmd/npy", deepmd.is_deepmd, deepmd.iterate),
    Format("ASE-LMDB", aselmdb.is_aselmdb, aselmdb.iterate, _ALL),
    Format("OC20", oc20.is_oc20, oc20.iterate, ("energy",)),
    Format("QM9", qm9.is_qm9, qm9.iterate, ("energy",)),
    Format("npz", npz.is_npz, npz.iterate, ("energy",)),
    Format("HDF5", hdf5.is_hdf5, hdf5.iterate, ("energy", "forces")),
    Format("extended XYZ", xyz.is_xyz, xyz.iterate, _ALL),
    Format("CP2K", cp2k.is_cp2k, cp2k.iterate),
    Format("ASE", lambda path: not path.is_dir(), images.iterate, _ALL),
)


def format_of(path: str | Path) -> Format:
    """The format of a file or folder.

    Raises:
        FileError: there is nothing, or a folder of no known kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(expected="an existing file or folder", received="no such file", where=str(path), todo="check the path")
    found = next((item for item in FORMATS if item.is_it(path)), None)
    if found is None:
        raise FileError(expected=f"a file, or a folder of the kind {', '.join(item.name for item in FORMATS[:4])}",
                        received="a folder of another kind", where=str(path), todo="give a file in it")
    return found


def iterate_systems(path: str | Path, *, keys: LabelKeys | None = None, require: Sequence[str] = ()) -> Iterator[System]:
    """The structures and labels of one file or folder, one after another: memory does not grow with the file.

    In extended XYZ, ASE-LMDB and what else ASE reads, labels come from the frame's key-value pairs, its per-atom columns or its
    stored calculator results; forces are read as stored, without constraints applied. One key serves the whole file, so that
    two levels of theory are never mixed. Charge comes from ``charge`` or ``total_charge``, the multiplicity 2S+1 from ``spin``
    or ``total_spin``, the level of theory from ``level_of_theory``. All other scalars become tags, and ``file`` and ``frame``
    say where the structure was read; a ``file`` or ``frame`` that the frame itself carries is kept as ``source_file`` or
    ``source_frame``. The other formats have labels, units and a level of theory of their own; see their modules.

    Args:
        path: the file or folder.
        keys: names of the labels where they are not the usual ones.
        require: labels (``energy``, ``forces``, ``stress``) that at least one frame must have.

    Raises:
        FileError: the file is missing, empty, truncated or not readable in its format.
        DataError: a label is named or required but absent, or has a wrong shape or value.
        ConfigError: a key is named that this format does not let choose.
    """
    path, keys = Path(path), keys or LabelKeys()
    kind = format_of(path)
    for label in _ALL:
        if getattr(keys, label) is not None and label not in kind.named:
            raise ConfigError(expected=f"no key for {label}: the format {kind.name} has one of its own",
                              received=repr(getattr(keys, label)), where=str(path), todo="leave it out")
    lacking = set(require)
    labels: set[str] = set()
    for system in kind.iterate(path, keys, require):
        yield system
        if lacking:
            labels |= {label for label in ("energy", "forces", "stress") if getattr(system, label) is not None}
            lacking -= labels
    if lacking:
        raise absent(f"{', '.join(sorted(lacking))} in at least one frame", labels, path)


def read_systems(
    path: str | Path, *, keys: LabelKeys | None = None, index: slice | str = ":", require: Sequence[str] = (),
) -> list[System]:
    """The structures and labels of one file or folder, all in memory; see `iterate_systems`.

    Args:
        path: the file or folder, files of text also gzipped (``.gz``).
        keys: names of the labels where they are not the usual ones.
        index: which frames, as a slice or as text (``":100"``, ``"::2"``, ``"-1"``).
        require: labels (``energy``, ``forces``, ``stress``) that at least one frame must have.

    Raises:
        FileError: the file is missing, empty, truncated or not readable in its format.
        DataError: a label is named or required but absent, or has a wrong shape or value.
    """
    path = Path(path)
    selection = parse_index(index, path)
    systems = Counted(iterate_systems(path, keys=keys, require=require))
    chosen = list(select(systems, selection))
    if not chosen:
        raise FileError(expected="at least one frame", received=f"none of {systems.n} with index {index}",
                        where=str(path), todo="check the file and the index")
    return chosen


class Counted:
    """Systems that are given on one after another, and how many were.

    Attributes:
        n: so many so far.
    """

    def __init__(self, systems: Iterator[System]) -> None:
        self._systems, self.n = systems, 0

    def __iter__(self) -> Iterator[System]:
        for system in self._systems:
            self.n += 1
            yield system


def select(systems: Iterable[System], index: slice) -> Iterator[System]:
    """Those of ``systems`` that ``index`` means; all are in memory only where it counts from the end."""
    if any(bound is not None and bound < 0 for bound in (index.start, index.stop, index.step)):
        return iter(list(systems)[index])
    return islice(systems, index.start, index.stop, index.step)


def parse_index(index: slice | str, path: Path) -> slice:
    """The slice that text such as ``":100"``, ``"::2"`` or ``"-1"`` means; ``path`` is for the message.

    Raises:
        DataError: no such text.
    """
    if isinstance(index, slice):
        return index
    try:
        numbers = [int(part) if part.strip() else None for part in index.split(":")]
        chosen = slice(*numbers) if len(numbers) > 1 else slice(numbers[0], int(index) + 1 or None)
        chosen.indices(0)  # refuses a step of zero
    except (ValueError, TypeError):
        raise DataError(expected="an index such as ':', ':100', '::2' or '-1'", received=repr(index),
                        where=str(path), todo="mend the index") from None
    return chosen
