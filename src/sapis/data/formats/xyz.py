"""Extended XYZ: read frame by frame, written exactly."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from sapis.core.errors import FileError
from sapis.core.files import replacing
from sapis.data.formats.files import inner_name, text_lines, unreadable
from sapis.data.formats.labels import LABEL_KEYS, LEVEL_KEY, Frame, LabelKeys, labelled
from sapis.data.system import System, Tag

SUFFIXES = (".xyz", ".extxyz")


def is_xyz(path: Path) -> bool:
    """By its name: a comment line can resemble another format's signature."""
    return inner_name(path).suffix.lower() in SUFFIXES


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of an (extended) XYZ file, one block of text in memory at a time."""
    return labelled(frames_of_text(text_lines(path), path), keys, path, require)


def frames_of_text(lines: Iterator[str], path: Path) -> Iterator[Frame]:
    """The frames in ``lines`` (with their ends); ``path`` is for messages."""
    for number, block in enumerate(_blocks(lines, path)):
        yield _fast_frame(block, number) or _ase_frame(block, path, number)


def _blocks(lines: Iterator[str], path: Path) -> Iterator[list[str]]:
    """The lines of each frame; ASE would silently stop at the first blank line."""
    line_number, n_blocks = 0, 0
    pending = next(lines, None)
    while pending is not None:
        line_number += 1
        header, pending = pending.strip(), None
        if not header:
            pending = next(lines, None)
            continue
        where = f"{path}, frame {n_blocks}, line {line_number}"
        if not header.isdecimal():
            raise FileError(
                expected="the number of atoms, the first line of an extxyz frame", received=repr(header)[:80],
                where=where, todo="mend the file; the frame before may have more or fewer atoms than it says",
            )
        block = [header + "\n"]
        for line in lines:
            if len(block) >= 2 + int(header) and not line.lstrip().startswith("VEC"):
                pending = line
                break
            block.append(line)
        if len(block) < 2 + int(header) or (int(header) and not any(line.strip() for line in block[1:])):
            raise FileError(
                expected=f"{header} lines of atoms", where=where,
                received=f"{max(len(block) - 2, 0)}, then the end of the file",
                todo="the file is truncated: write or copy it again, or remove its last frame",
            )
        if not block[-1].endswith("\n"):
            _refuse_clipped_line(block, f"{path}, frame {n_blocks}")
            block[-1] += "\n"
        line_number += len(block) - 1
        n_blocks += 1
        yield block


def _refuse_clipped_line(block: Sequence[str], where: str) -> None:
    """Refuse a file cut inside its last number: it would parse, into a wrong label."""
    comment, rows = block[1], [row.rstrip("\n") for row in block[2:]]
    if "Properties=" in comment and len(rows) > 1 and len(rows[-1]) < min(len(row) for row in rows[:-1]):
        raise FileError(
            expected="a line end after the last line, or a last line as long as the others",
            received=repr(rows[-1])[-60:], where=where,
            todo="the file looks truncated: write or copy it again; if it is whole, add the line end",
        )


# Reading one frame: ASE's parser goes through the comment letter by letter, which takes most of the time for a small molecule.
# Blocks of the plain kind take a shorter way to the same values; whatever is unusual goes to ASE.

_PAIR = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)=(?:"([^"\\{}\[\]\',]*)"|([^\s"\\{}\[\]\',=]+))(?=\s|$)')
_COLUMN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):([SRIL]):(\d+):?")
_BOOLEANS = {"T": True, "F": False, "true": True, "false": False, "True": True, "False": False, "TRUE": True, "FALSE": False}
# Columns that ASE renames.
_LEFT_TO_ASE = {"charge", "charges", "numbers", "symbols", "positions", "Z"}


def _fast_frame(block: Sequence[str], number: int) -> Frame | None:
    """The frame of a block, or None if it is not of the plain kind."""
    info = _pairs(block[1].strip())
    columns = info and _columns(info.pop("Properties", None))
    atoms = int(block[0])
    if not info or not columns or len(block) != atoms + 2 or not atoms:
        return None
    rows = [line.split() for line in block[2:]]
    width = columns[-1][1].stop
    if any(len(row) != width for row in rows):
        return None
    try:
        arrays = {name: np.array([[convert(text) for text in row[place]] for row in rows])
                  for name, place, convert in columns if name != "species"}
        numbers = np.array([atomic_numbers[rows[i][columns[0][1].start].capitalize()] for i in range(atoms)])
    except (ValueError, KeyError):
        return None
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    if lattice is not None and (not isinstance(lattice, np.ndarray) or lattice.size != 9):
        return None
    if pbc is not None and not (isinstance(pbc, list) and len(pbc) == 3):
        return None
    values = {name: array[:, 0] if array.shape[1] == 1 else array for name, array in arrays.items() if name != "pos"}
    return Frame(
        number, numbers, arrays["pos"], np.zeros((3, 3)) if lattice is None else lattice.reshape(3, 3).astype(float),
        np.array([lattice is not None] * 3 if pbc is None else pbc), {**values, **info},
    )


def _columns(properties: Any) -> list[tuple[str, slice, Any]] | None:
    """Name, place and converter of each column; None unless the species come first and positions are there."""
    if not isinstance(properties, str):
        return None
    columns, at, start = [], 0, 0
    for match in _COLUMN.finditer(properties):
        name, kind, count = match[1], match[2], int(match[3])
        if match.start() != at or name in _LEFT_TO_ASE or (kind == "S") != (name == "species"):
            return None
        columns.append((name, slice(start, start + count), {"R": float, "I": int, "S": str, "L": _BOOLEANS.__getitem__}[kind]))
        at, start = match.end(), start + count
    names = [name for name, _, _ in columns]
    is_plain = at == len(properties) and names[:1] == ["species"] and "pos" in names and len(names) == len(set(names))
    return columns if is_plain and columns[0][1].stop == 1 else None


def _pairs(line: str) -> dict[str, Any] | None:
    """Key-value pairs as ASE reads them; None where a pair is not of the plain kind."""
    values: dict[str, Any] = {}
    at = 0
    while at < len(line):
        match = _PAIR.match(line, at)
        if match is None or match[1] == "uid":
            return None
        text = match[2] if match[3] is None else match[3]
        if text.startswith("_JSON") or not text.strip():
            return None
        values[match[1]] = text if match[1] == "Properties" else _value(text)
        at = match.end()
    return values


def _value(text: str) -> Any:
    words = text.split()
    for convert in (int, float, _BOOLEANS.__getitem__):
        try:
            found = [convert(word) for word in words]
        except (ValueError, KeyError, OverflowError):
            continue
        if len(found) == 1:
            return found[0]
        return found if convert not in (int, float) else np.array(found)
    return text


def _ase_frame(block: Sequence[str], path: Path, number: int) -> Frame:
    from ase.io.extxyz import read_xyz

    try:
        atoms = next(iter(read_xyz(StringIO("".join(block)), index=0, properties_parser=_parse_comment)))
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        raise unreadable(error, "extxyz", path, number) from error
    return Frame.of_atoms(atoms, number)


def _parse_comment(line: str) -> dict[str, Any]:
    """The comment line as ASE reads it, but also with six numbers for ``stress`` or ``virial``."""
    from ase.io.extxyz import key_val_str_to_dict

    try:
        return dict(key_val_str_to_dict(line))
    except ValueError:
        renamed = re.sub(r"(?<!\S)(stress|virial)(?=\s*=)", r"_\1", line)
        info = key_val_str_to_dict(renamed)
        return {key[1:] if key in ("_stress", "_virial") else key: value for key, value in info.items()}


# Writing

_FORMAT_FIELDS = ("Lattice", "Properties", "pbc")
_PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/:@-]*")
_LITERALS = {"t", "f", "true", "false", "nan", "inf", "infinity"}


def write_systems(path: str | Path, systems: Iterable[System]) -> None:
    """Write extended XYZ (gzipped if the name ends in ``.gz``), atomically.

    Labels are written as ``REF_energy``, ``REF_forces`` and ``REF_stress`` (9 numbers), charge and spin where
    not those of a neutral singlet, the level of theory where there is one, and tags as key-value pairs. Every
    number survives the round trip bit for bit.

    Raises:
        FileError: the name does not end in ``.xyz`` or ``.extxyz`` (with or without ``.gz``).
        DataError: a tag has the name of a label or of a field of the format.
    """
    path = Path(path)
    if inner_name(path).suffix not in SUFFIXES:
        raise FileError(expected="a name ending in .xyz, .extxyz, .xyz.gz or .extxyz.gz", received=path.name,
                        where=str(path), todo="give another file name")
    with replacing(path) as part, part.open("wb") as plain:
        # No time in the header: the same frames are the same bytes.
        file = gzip.GzipFile("", "wb", fileobj=plain, mtime=0) if path.suffix == ".gz" else plain
        for system in systems:
            file.write(_format_frame(system).encode("ascii"))
        if file is not plain:
            file.close()


def _format_frame(system: System) -> str:
    columns, names = [system.positions], "species:S:1:pos:R:3"
    pairs: list[str] = []
    if system.cell.any():
        pairs.append(f'Lattice="{_join(system.cell)}"')
    if system.forces is not None:
        columns.append(system.forces)
        names += ":REF_forces:R:3"
    pairs.append(f"Properties={names}")
    if system.energy is not None:
        pairs.append(f"REF_energy={system.energy!r}")
    if system.stress is not None:
        pairs.append(f'REF_stress="{_join(system.stress)}"')
    if system.charge != 0 or system.spin != 1:
        pairs.append(f"charge={system.charge} spin={system.spin}")
    if system.level:
        pairs.append(f"{LEVEL_KEY}={_format_value(system.level)}")
    pairs += [_format_tag(key, value, system) for key, value in system.tags.items()]
    pairs.append('pbc="{} {} {}"'.format(*("T" if flag else "F" for flag in system.pbc)))
    rows = [f"{chemical_symbols[z]} {_join(row)}"
            for z, row in zip(system.numbers, np.hstack(columns), strict=True)]
    return "\n".join([str(len(system)), " ".join(pairs), *rows, ""])


def _join(values: np.ndarray) -> str:
    # repr of a Python float is the shortest text that reads back as the same bits; ASE prints eight decimals.
    return " ".join(map(repr, values.ravel().tolist()))


def _format_tag(key: str, value: Tag, system: System) -> str:
    if key in (*LABEL_KEYS, *_FORMAT_FIELDS) or not key.isprintable():
        raise system.error(expected="a tag whose name is not that of a label", received=repr(key), key=key,
                           todo="rename the tag")
    return f"{key if _PLAIN_WORD.fullmatch(key) else _quote(key)}={_format_value(value)}"


def _format_value(value: Tag) -> str:
    """Text from which ASE recovers both the value and its type; JSON where plain text would change either."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and value.lower() not in _LITERALS:
        return value
    return _quote(f"_JSON {json.dumps(value)}")


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
