"""One `System` as bytes and back, bit for bit: what a store keeps of each frame.

Layout, little-endian: a header of 24 bytes; where the flags say so energy, cell and stress (float64); positions and, where
the flags say so, forces (float64 or float32); atomic numbers (uint8); level of theory (UTF-8); tags (JSON).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sapis.core.errors import DataError
from sapis.data.system import System, Tag

# Version of the layout, flags, atoms, charge, spin, bytes of the level of theory, bytes of the tags.
_HEADER = struct.Struct("<BxHIiHHI4x")
_TAGS_LENGTH_AT = 16
VERSION = 1
_PBC = (1, 2, 4)
_CELL, _ENERGY, _FORCES, _STRESS, _SINGLE = 8, 16, 32, 64, 128
_encode = json.JSONEncoder(separators=(",", ":")).encode
_NO_TAGS: Mapping[str, Tag] = {}
_NO_CELL = np.zeros((3, 3))
_NO_CELL.flags.writeable = False
_NO_CELL_BYTES = _NO_CELL.tobytes()
_ENERGY_BYTES = struct.Struct("<d")


def pack(system: System, *, level: str = "", is_single: bool = False) -> bytes:
    """The bytes of ``system``, see `pack_all`."""
    return pack_all([system], level=level, is_single=is_single)[0]


def pack_all(systems: Sequence[System], *, level: str = "", is_single: bool = False) -> list[bytes]:
    """The bytes of each of ``systems``. Arrays of all of them are converted at once: NumPy takes longer to begin than to convert
    those of one molecule.

    Args:
        level: level of theory of systems that do not name their own.
        is_single: round positions and forces to float32.

    Raises:
        DataError: a charge, multiplicity or level of theory beyond what the layout holds, or a tag that is not JSON.
    """
    kind, width = ("<f4", 12) if is_single else ("<f8", 24)
    positions = _joined([system.positions for system in systems], kind)
    forces = _joined([system.forces for system in systems if system.forces is not None], kind)
    numbers = _joined([system.numbers for system in systems], "u1")
    found, first, first_force = [], 0, 0  # atoms before this system, and those of them with forces
    for system in systems:
        name = (system.level or level).encode()
        atoms = len(system.numbers)
        try:
            tags = _encode(dict(system.tags)).encode() if system.tags else b""
            flags = _FLAGS[system.pbc.tobytes()] | (_SINGLE if is_single else 0)
            parts = [b""]
            if system.energy is not None:
                flags |= _ENERGY
                parts.append(_ENERGY_BYTES.pack(system.energy))
            if (cell := system.cell.tobytes()) != _NO_CELL_BYTES:
                flags |= _CELL
                parts.append(cell)
            if system.stress is not None:
                flags |= _STRESS
                parts.append(system.stress.tobytes())
            parts.append(positions[width * first : width * (first + atoms)])
            if system.forces is not None:
                flags |= _FORCES
                parts.append(forces[width * first_force : width * (first_force + atoms)])
                first_force += atoms
            parts[0] = _HEADER.pack(VERSION, flags, atoms, system.charge, system.spin, len(name), len(tags))
        except (struct.error, TypeError, ValueError) as error:
            raise system.error(expected="a charge, multiplicity, level of theory and tags that a store can hold",
                               received=str(error), todo="mend the frame") from None
        found.append(b"".join([*parts, numbers[first : first + atoms], name, tags]))
        first += atoms
    return found


def _joined(arrays: Sequence[np.ndarray], kind: str) -> bytes:
    return np.concatenate(arrays).astype(kind).tobytes() if arrays else b""


def unpack(data: bytes) -> System:
    """The system of `pack`. Its arrays are views of ``data`` where they can be, and are not checked again.

    Raises:
        DataError: not the bytes of one system, or of a newer layout.
    """
    try:
        version, flags, atoms, charge, spin, level_length, tags_length = _HEADER.unpack_from(data)
        if version != VERSION:
            raise _foreign(f"layout {version}")
        kind, width = ("<f4", 12) if flags & _SINGLE else ("<f8", 24)
        at = _HEADER.size
        energy, cell, stress, forces = None, _NO_CELL, None, None
        if flags & _ENERGY:
            energy = _ENERGY_BYTES.unpack_from(data, at)[0]
            at += 8
        if flags & _CELL:
            cell = np.frombuffer(data, "<f8", 9, at).reshape(3, 3)
            at += 72
        if flags & _STRESS:
            stress = np.frombuffer(data, "<f8", 9, at).reshape(3, 3)
            at += 72
        positions = np.frombuffer(data, kind, 3 * atoms, at).reshape(atoms, 3)
        at += width * atoms
        if flags & _FORCES:
            forces = np.frombuffer(data, kind, 3 * atoms, at).reshape(atoms, 3)
            at += width * atoms
        numbers = np.frombuffer(data, "u1", atoms, at).astype(np.int64)
        at += atoms
    except (struct.error, ValueError) as error:
        raise _foreign(str(error)) from None
    if len(data) != at + level_length + tags_length:
        raise _foreign(f"{len(data)} bytes instead of {at + level_length + tags_length}")
    if flags & _SINGLE:
        positions = positions.astype(np.float64)
        forces = None if forces is None else forces.astype(np.float64)
    return _trusted(
        numbers=numbers, positions=positions, cell=cell, pbc=_PERIODICITIES[flags & 7], energy=energy, forces=forces,
        stress=stress, charge=charge, spin=spin, level=data[at : at + level_length].decode() if level_length else "",
        tags=_Tags(data[at + level_length :]) if tags_length else _NO_TAGS,
    )


def content(data: bytes) -> bytes:
    """What of ``data`` makes a frame the same as another one: all of it but the tags and their length."""
    tags_length = _HEADER.unpack_from(data)[-1]
    return data[:_TAGS_LENGTH_AT] + data[_HEADER.size : len(data) - tags_length]


class _Tags(Mapping[str, Tag]):
    """Tags that are decoded when somebody asks: training never does, and decoding takes as long as all the rest."""

    __slots__ = ("_data", "_values")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values: dict[str, Tag] | None = None

    def _decoded(self) -> dict[str, Tag]:
        if self._values is None:
            self._values = json.loads(self._data)
        return self._values

    def __getitem__(self, name: str) -> Tag:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._decoded(),)


def _trusted(**values: Any) -> System:
    """A system without the checks of its constructor: it passed them before it was packed."""
    system = object.__new__(System)
    system.__dict__.update(values)
    return system


def _periodicity(flags: int) -> np.ndarray:
    array = np.array([bool(flags & bit) for bit in _PBC])
    array.flags.writeable = False
    return array


_PERIODICITIES = [_periodicity(flags) for flags in range(8)]
_FLAGS = {pbc.tobytes(): flags for flags, pbc in enumerate(_PERIODICITIES)}


def _foreign(received: str) -> DataError:
    return DataError(expected="the bytes of one packed structure", received=received, where="store",
                     todo="make the store again from its source, or update sapis-md")
