"""Files of structures: everything ASE reads, with labels found by key; extended XYZ written exactly."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from sapis.core.config import Config
from sapis.core.errors import DataError, FileError
from sapis.core.files import replacing, require_file
from sapis.data.system import System, Tag

if TYPE_CHECKING:
    from ase import Atoms

ENERGY_KEYS = ("REF_energy", "energy")
FORCES_KEYS = ("REF_forces", "forces")
STRESS_KEYS = ("REF_stress", "REF_virials", "REF_virial", "stress", "virials", "virial")
VIRIAL_KEYS = ("REF_virials", "REF_virial", "virials", "virial")
CHARGE_KEYS = ("charge", "total_charge")
SPIN_KEYS = ("spin", "total_spin")
LEVEL_KEY = "level_of_theory"
LABEL_KEYS = (*ENERGY_KEYS, *FORCES_KEYS, *STRESS_KEYS, *CHARGE_KEYS, *SPIN_KEYS, LEVEL_KEY)


class LabelKeys(Config):
    """Under which keys a file holds its labels; None means: the first of the usual ones that the file has.

    Attributes:
        energy: total energy, eV. Usual: ``REF_energy``, ``energy``.
        forces: eV/Å. Usual: ``REF_forces``, ``forces``.
        stress: eV/Å^3, tension positive, as 3x3, 9 or Voigt 6 (xx yy zz yz xz xy) numbers.
            Usual: ``REF_stress``, ``stress``.
        virial: eV, -stress x volume. Usual: ``REF_virials``, ``virials``, ``virial``.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


def read_systems(
    path: str | Path, *, keys: LabelKeys | None = None, index: slice | str = ":", require: Sequence[str] = (),
) -> list[System]:
    """Read the structures and labels of one file in any format that ASE reads, also gzipped (``.gz``).

    Labels come from the frame's key-value pairs, its per-atom columns or its stored calculator results;
    forces are read as stored, without constraints applied. One key serves the whole file, so that two levels
    of theory are never mixed. Charge comes from ``charge`` or ``total_charge``, the multiplicity 2S+1 from
    ``spin`` or ``total_spin``, the level of theory from ``level_of_theory``. All other scalars become tags,
    and ``file`` and ``frame`` say where the structure was read; a ``file`` or ``frame`` that the frame itself
    carries is kept as ``source_file`` or ``source_frame``.

    Args:
        path: the file.
        keys: names of the labels where they are not the usual ones.
        index: which frames, as a slice or as text (``":100"``, ``"::2"``, ``"-1"``).
        require: labels (``energy``, ``forces``, ``stress``) that at least one frame must have.

    Raises:
        FileError: the file is missing, empty, truncated or not readable in its format.
        DataError: a label is named or required but absent, or has a wrong shape or value.
    """
    path, keys = Path(path), keys or LabelKeys()
    frames = [(number, atoms, _values(atoms)) for number, atoms in _read_frames(path, index)]
    found = {key for _, _, values in frames for key in values}
    chosen = _choose_keys(keys, found, path)
    for label in require:
        if chosen[label] is None:
            raise _absent(f"{label} in at least one frame", found, path)
    is_virial = keys.stress is None and chosen["stress"] in (keys.virial, *VIRIAL_KEYS)
    return [_build_system(atoms, values, chosen, path, number, is_virial=is_virial)
            for number, atoms, values in frames]


def write_systems(path: str | Path, systems: Sequence[System]) -> None:
    """Write extended XYZ (gzipped if the name ends in ``.gz``), atomically.

    Labels are written as ``REF_energy``, ``REF_forces`` and ``REF_stress`` (9 numbers), charge and spin where
    not those of a neutral singlet, the level of theory where there is one, and tags as key-value pairs. Every
    number survives the round trip bit for bit.

    Raises:
        FileError: the name does not end in ``.xyz`` or ``.extxyz`` (with or without ``.gz``).
        DataError: a tag has the name of a label or of a field of the format.
    """
    path = Path(path)
    if _inner_name(path).suffix not in (".xyz", ".extxyz"):
        raise FileError(expected="a name ending in .xyz, .extxyz, .xyz.gz or .extxyz.gz", received=path.name,
                        where=str(path), todo="give another file name")
    data = "".join(_format_frame(system) for system in systems).encode("ascii")
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    with replacing(path) as part:
        part.write_bytes(data)


# Reading: files to ASE frames


def _read_frames(path: Path, index: slice | str) -> list[tuple[int, Atoms]]:
    """Frames selected by ``index``, each with its number in the file."""
    require_file(path)
    selection = _as_slice(index, path)
    kind = _file_format(path)
    if kind in ("extxyz", "xyz"):
        blocks = _split_blocks(_unpack_text(path), path)
        numbers = range(len(blocks))[selection]
        frames = [(number, _parse_block(blocks[number], path, number)) for number in numbers]
        n_frames = len(blocks)
    else:
        images = _read_images(path, kind)
        n_frames = len(images)
        frames = [(number, images[number]) for number in range(n_frames)[selection]]
    if not frames:
        raise FileError(expected="at least one frame", received=f"none of {n_frames} with index {index}",
                        where=str(path), todo="check the file and the index")
    return frames


def _as_slice(index: slice | str, path: Path) -> slice:
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


def _file_format(path: Path) -> str:
    from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat

    # ASE looks at the content first, and a comment line can resemble another format's signature.
    if _inner_name(path).suffix.lower() in (".xyz", ".extxyz"):
        return "extxyz"
    try:
        return str(get_ioformat(filetype(str(path))).name)
    except (UnknownFileTypeError, OSError, EOFError, zlib.error) as error:
        raise FileError(
            expected="a file in a format that ASE knows by name or content",
            received=f"{type(error).__name__}: {error}", where=str(path),
            todo="rename the file so that its ending tells the format (.xyz, .cif, .traj …), or convert it",
        ) from None


def _inner_name(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def _unpack(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(expected="a whole gzip file", received=str(error), where=str(path),
                        todo="copy or download the file again") from None


def _unpack_text(path: Path) -> str:
    try:
        return _unpack(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise FileError(expected="text in UTF-8", received="bytes that are not text", where=str(path),
                        todo="check that this is the file you meant") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """``path``, or an unpacked copy that lives as long as the context."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / _inner_name(path).name
        plain.write_bytes(_unpack(path))
        yield plain


def _read_images(path: Path, kind: str) -> list[Atoms]:
    from ase.io import iread

    images: list[Atoms] = []
    try:
        with _unpacked(path) as plain:
            images.extend(iread(str(plain), ":", format=kind, do_not_split_by_at_sign=True))
    except FileError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        raise _unreadable(error, kind, path, len(images)) from error
    return images


def _split_blocks(text: str, path: Path) -> list[str]:
    """The text of each frame of an (extended) XYZ file; ASE would silently stop at the first blank line."""
    lines = text.rstrip().split("\n") if text.strip() else []
    blocks: list[str] = []
    start = 0
    while start < len(lines):
        header = lines[start].strip()
        if not header:
            start += 1
            continue
        where = f"{path}, frame {len(blocks)}, line {start + 1}"
        if not header.isdecimal():
            raise FileError(
                expected="the number of atoms, the first line of an extxyz frame", received=repr(header)[:80],
                where=where, todo="mend the file; the frame before may have more or fewer atoms than it says",
            )
        end = start + 2 + int(header)
        if end > len(lines):
            raise FileError(
                expected=f"{header} lines of atoms", where=where,
                received=f"{max(len(lines) - start - 2, 0)}, then the end of the file",
                todo="the file is truncated: write or copy it again, or remove its last frame",
            )
        while end < len(lines) and lines[end].lstrip().startswith("VEC"):
            end += 1
        blocks.append("\n".join(lines[start:end]) + "\n")
        start = end
    if blocks and not text.endswith("\n"):
        _refuse_clipped_line(blocks[-1], f"{path}, frame {len(blocks) - 1}")
    return blocks


def _refuse_clipped_line(block: str, where: str) -> None:
    """Refuse a file cut inside its last number: it would parse, into a wrong label."""
    _, comment, *rows = block.rstrip("\n").split("\n")
    if "Properties=" in comment and len(rows) > 1 and len(rows[-1]) < min(len(row) for row in rows[:-1]):
        raise FileError(
            expected="a line end after the last line, or a last line as long as the others",
            received=repr(rows[-1])[-60:], where=where,
            todo="the file looks truncated: write or copy it again; if it is whole, add the line end",
        )


def _parse_block(block: str, path: Path, number: int) -> Atoms:
    from ase.io.extxyz import read_xyz

    try:
        return next(iter(read_xyz(StringIO(block), index=0, properties_parser=_parse_comment)))
    except Exception as error:  # see _read_images
        raise _unreadable(error, "extxyz", path, number) from error


def _parse_comment(line: str) -> dict[str, Any]:
    """The comment line as ASE reads it, but also with six numbers for ``stress`` or ``virial``."""
    from ase.io.extxyz import key_val_str_to_dict

    try:
        return dict(key_val_str_to_dict(line))
    except ValueError:
        renamed = re.sub(r"(?<!\S)(stress|virial)(?=\s*=)", r"_\1", line)
        info = key_val_str_to_dict(renamed)
        return {key[1:] if key in ("_stress", "_virial") else key: value for key, value in info.items()}


def _unreadable(error: Exception, kind: str, path: Path, number: int) -> FileError:
    message = str(error).replace("\n", " ")[:300]
    return FileError(
        expected=f"a file in ASE's format {kind!r}", received=f"{type(error).__name__}: {message}",
        where=f"{path}, frame {number}", todo="mend this frame, or write the file again from its source",
    )


# Reading: ASE frames to systems


def _values(atoms: Atoms) -> dict[str, Any]:
    """What a frame carries beside its structure: calculator results, columns, key-value pairs."""
    results = atoms.calc.results if atoms.calc is not None else {}
    columns = {key: column for key, column in atoms.arrays.items() if key not in ("numbers", "positions")}
    values = {**results, **columns, **atoms.info}
    return {key: value for key, value in values.items() if value is not None}


def _choose_keys(keys: LabelKeys, found: set[str], path: Path) -> dict[str, str | None]:
    """The key of each label in this file: the user's, else the first usual one that is there."""
    for key in (keys.energy, keys.forces, keys.stress, keys.virial):
        if key is not None and key not in found:
            raise _absent(f"the key {key!r} in at least one frame", found, path)

    def first(usual: tuple[str, ...]) -> str | None:
        return next((key for key in usual if key in found), None)

    return {
        "energy": keys.energy or first(ENERGY_KEYS),
        "forces": keys.forces or first(FORCES_KEYS),
        "stress": keys.stress or keys.virial or first(STRESS_KEYS),
    }


def _absent(expected: str, found: set[str], path: Path) -> DataError:
    return DataError(
        expected=expected, received=f"only the keys {', '.join(sorted(found)) or '(none)'}", where=str(path),
        todo="name the key under which the file holds it, or compute the label",
    )


def _build_system(
    atoms: Atoms, values: dict[str, Any], chosen: dict[str, str | None], path: Path, number: int, *,
    is_virial: bool,
) -> System:
    claimed = {*LABEL_KEYS, *(key for key in chosen.values() if key)}
    tags = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()
            if key not in claimed and isinstance(value, str | int | float | bool | np.generic)}
    for name in ("file", "frame"):
        if name in tags:
            own = tags.pop(name)
            tags.setdefault(f"source_{name}", own)
    # The structure comes first, so that errors about labels can name its file and frame.
    bare = System.from_atoms(atoms, tags={**tags, "file": path.name, "frame": number})
    charge, spin = electrons(values, bare)
    energy, forces, stress = (values.get(key) if key else None for key in chosen.values())
    return replace(
        bare,
        energy=None if energy is None else _number(energy, str(chosen["energy"]), bare),
        forces=None if forces is None else _array(forces, str(chosen["forces"]), bare),
        stress=None if stress is None else _stress(stress, str(chosen["stress"]), bare, is_virial=is_virial),
        charge=charge, spin=spin, level=_text(values, LEVEL_KEY, bare),
    )


def electrons(values: Mapping[str, Any], system: System) -> tuple[int, int]:
    """Total charge and multiplicity by the key-value pairs of a frame; 0 and 1 where they do not say.

    Raises:
        DataError: no whole numbers, or a multiplicity below 1; it names ``system``.
    """
    return _integer(values, CHARGE_KEYS, system, default=0), _integer(values, SPIN_KEYS, system, default=1)


def _array(value: Any, key: str, system: System) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise system.error(expected="numbers", received=f"{value!r:.60}", key=key) from None


def _number(value: Any, key: str, system: System) -> float:
    array = _array(value, key, system)
    if array.size != 1 or isinstance(value, bool | np.bool_):
        raise system.error(expected="one number", received=f"{value!r:.60}", key=key)
    return float(array.reshape(()))


def _integer(values: Mapping[str, Any], keys: tuple[str, ...], system: System, *, default: int) -> int:
    key = next((key for key in keys if key in values), None)
    if key is None:
        return default
    value = _number(values[key], key, system)
    if not value.is_integer():
        raise system.error(expected="a whole number", received=str(value), key=key)
    if keys is SPIN_KEYS and value < 1:
        raise system.error(
            expected="the multiplicity 2S+1, at least 1", received=str(value), key=key,
            todo="add one if this counts unpaired electrons; remove the key if the spin is unknown",
        )
    return int(value)


def _text(values: dict[str, Any], key: str, system: System) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise system.error(expected="text", received=repr(value), key=key)
    return value


def _stress(value: Any, key: str, system: System, *, is_virial: bool) -> np.ndarray:
    """Stress as a symmetric ``(3, 3)``, eV/Å^3, from 3x3, 9 or Voigt-6 numbers."""
    array = _array(value, key, system)
    if array.shape == (6,):
        array = array[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    if array.size != 9:
        raise system.error(expected="3x3, 9 or 6 numbers", received=f"shape {array.shape}", key=key)
    tensor = array.reshape(3, 3)
    # Codes print tensors whose off-diagonal partners differ in the last digits.
    tensor = 0.5 * (tensor + tensor.T)
    if not is_virial:
        return tensor
    if system.volume is None:
        raise system.error(expected="three periodic directions, to turn a virial into a stress",
                           received=f"pbc={system.pbc.tolist()}", key=key,
                           todo="remove the virial from this frame, or set its cell and pbc")
    return -tensor / system.volume


# Writing

_FORMAT_FIELDS = ("Lattice", "Properties", "pbc")
_PLAIN_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/:@-]*")
_LITERALS = {"t", "f", "true", "false", "nan", "inf", "infinity"}


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
