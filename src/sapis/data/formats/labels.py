"""Labels by key: the names that files use for energies, forces, stresses, charges and spins, and their way into a `System`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.core.config import Config
from sapis.core.errors import DataError
from sapis.data.system import System

if TYPE_CHECKING:
    from ase import Atoms

ENERGY_KEYS = ("REF_energy", "energy")
FORCES_KEYS = ("REF_forces", "forces")
VIRIAL_KEYS = ("REF_virials", "REF_virial", "virials", "virial")
STRESS_KEYS = ("REF_stress", *VIRIAL_KEYS[:2], "stress", *VIRIAL_KEYS[2:])
CHARGE_KEYS = ("charge", "total_charge")
SPIN_KEYS = ("spin", "total_spin")
LEVEL_KEY = "level_of_theory"
LABEL_KEYS = (*ENERGY_KEYS, *FORCES_KEYS, *STRESS_KEYS, *CHARGE_KEYS, *SPIN_KEYS, LEVEL_KEY)
Usual = Mapping[str, tuple[str, ...]]
Error = Callable[..., DataError]
SAME_ENERGY_eV = 1e-3
# Frames whose keys decide for the whole file.
N_FRAMES_FOR_KEYS = 10_000


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


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame as a file holds it.

    Attributes:
        number: its place in the file, from 0.
        values: what it carries beside its structure: calculator results, per-atom columns, key-value pairs.
    """

    number: int
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_atoms(cls, atoms: Atoms, number: int) -> Frame:
        """That of ASE ``atoms``, with what its calculator has stored; constraints are not applied."""
        results = atoms.calc.results if atoms.calc is not None else {}
        columns = {key: column for key, column in atoms.arrays.items() if key not in ("numbers", "positions")}
        values = {**results, **columns, **atoms.info}
        fixed = [constraint.index for constraint in atoms.constraints if hasattr(constraint, "index")]
        if fixed:  # as the files say it
            values["move_mask"] = ~np.isin(np.arange(len(atoms)), np.concatenate(fixed))
        return cls(number, atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc,
                   {key: value for key, value in values.items() if value is not None})


def labelled(
    frames: Iterable[Frame], keys: LabelKeys, path: Path, require: Sequence[str] = (), *,
    energy_keys: tuple[str, ...] = ENERGY_KEYS,
) -> Iterator[System]:
    """The systems of the frames of one file. One key serves the whole file, so that two levels of theory are never mixed: the
    first frames decide, and a later one with a better key is an error.

    Args:
        keys: the user's names of labels.
        require: labels that at least one of the first frames must have.
        energy_keys: where an energy is looked for, the best first.

    Raises:
        DataError: a label is named or required but absent, or has a wrong shape or value.
    """
    usual = {"energy": energy_keys, "forces": FORCES_KEYS, "stress": STRESS_KEYS}
    remaining = iter(frames)
    first = list(islice(remaining, N_FRAMES_FOR_KEYS))
    found = {key for frame in first for key in frame.values}
    chosen = _choose_keys(keys, usual, found, path)
    for label in require:
        if chosen[label] is None:
            raise absent(f"{label} in at least one frame", found, path)
    is_virial = keys.stress is None and chosen["stress"] in (keys.virial, *VIRIAL_KEYS)
    if keys.energy is None and chosen["energy"] == "energy" and energy_keys == ENERGY_KEYS:
        _require_one_energy(first, path)
    better = _better_keys(keys, usual, chosen)
    for frame in chain(first, remaining):
        if surprises := better & frame.values.keys():
            raise DataError(
                expected=f"the keys of the first {N_FRAMES_FOR_KEYS:,} frames in all frames",
                received=f"{', '.join(sorted(surprises))} for the first time", where=f"{path}, frame {frame.number}",
                todo="name the keys of the labels, or write frames of one kind into files of their own",
            )
        yield _system(frame, chosen, path, is_virial=is_virial)


def absent(expected: str, found: Iterable[str], path: Path) -> DataError:
    """The error for a label that is not in a file that holds ``found``."""
    return DataError(
        expected=expected, received=f"only the keys {', '.join(sorted(found)) or '(none)'}", where=str(path),
        todo="name the key under which the file holds it, or compute the label",
    )


def _choose_keys(keys: LabelKeys, usual: Usual, found: set[str], path: Path) -> dict[str, str | None]:
    """The key of each label in this file: the user's, else the first usual one that is there."""
    if keys.stress is not None and "virial" in keys.stress.lower():
        raise DataError(expected="the key of stresses (eV/Å^3, tension positive)", received=f"{keys.stress!r}, a name of virials",
                        where=str(path), todo="name it as the key of virials (--virial-key), or rename it if it has stresses")
    if keys.stress is not None and keys.virial is not None:
        raise DataError(expected="the key of stresses or that of virials", received="both", where=str(path), todo="leave one out")
    for key in (keys.energy, keys.forces, keys.stress, keys.virial):
        if key is not None and key not in found:
            raise absent(f"the key {key!r} in at least one frame", found, path)
    named = {"energy": keys.energy, "forces": keys.forces, "stress": keys.stress or keys.virial}
    return {label: named[label] or next((key for key in names if key in found), None) for label, names in usual.items()}


def _require_one_energy(frames: Sequence[Frame], path: Path) -> None:
    """ASE writes two where electrons are smeared, and the one whose gradient the forces are is not the one named ``energy``."""
    for frame in frames:
        energy, other = (frame.values.get(key) for key in ("energy", "free_energy"))
        if isinstance(energy, float | int) and isinstance(other, float | int) and abs(energy - other) > SAME_ENERGY_eV:
            raise DataError(expected="one energy", received=f"energy {energy:.6g} and free_energy {other:.6g} eV",
                            where=f"{path}, frame {frame.number}", todo="say which: --energy-key free_energy (forces of smeared "
                            "electrons are its gradient) or --energy-key energy")


def _better_keys(keys: LabelKeys, usual: Usual, chosen: Mapping[str, str | None]) -> set[str]:
    """Usual keys that would have been chosen before the chosen ones."""
    better: set[str] = set()
    for label, names in usual.items():
        key = chosen[label]
        is_named = getattr(keys, label) or (label == "stress" and keys.virial)
        better |= set() if is_named else set(names if key is None else names[: names.index(key)])
    return better


def _system(frame: Frame, chosen: Mapping[str, str | None], path: Path, *, is_virial: bool) -> System:
    values = frame.values
    claimed = {*LABEL_KEYS, *(key for key in chosen.values() if key)}
    tags = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()
            if key not in claimed and isinstance(value, str | int | float | bool | np.generic)}
    for name in ("file", "frame"):
        if name in tags:
            own = tags.pop(name)
            tags.setdefault(f"source_{name}", own)
    tags |= {"file": path.name, "frame": frame.number}

    structure: dict[str, Any] = {"numbers": frame.numbers, "positions": frame.positions, "cell": frame.cell, "pbc": frame.pbc}

    def error(**details: str) -> DataError:
        return System(**structure, tags=tags).error(**details)

    charge, spin = electrons(values, error)
    energy, forces, stress = (values.get(key) if key else None for key in chosen.values())
    return System(
        **structure,
        energy=None if energy is None else _number(energy, str(chosen["energy"]), error),
        forces=None if forces is None else _array(forces, str(chosen["forces"]), error),
        stress=None if stress is None else _stress(stress, str(chosen["stress"]), frame, error, is_virial=is_virial),
        charge=charge, spin=spin, level=_text(values, LEVEL_KEY, error), tags=tags,
    )


def electrons(values: Mapping[str, Any], error: Error) -> tuple[int, int]:
    """Total charge and multiplicity by the key-value pairs of a frame; 0 and 1 where they do not say.

    Raises:
        DataError: no whole numbers, or a multiplicity below 1; it is made by ``error``, see `System.error`.
    """
    return _integer(values, CHARGE_KEYS, error, default=0), _integer(values, SPIN_KEYS, error, default=1)


def _array(value: Any, key: str, error: Error) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise error(expected="numbers", received=f"{value!r:.60}", key=key) from None


def _number(value: Any, key: str, error: Error) -> float:
    array = _array(value, key, error)
    if array.size != 1 or isinstance(value, bool | np.bool_):
        raise error(expected="one number", received=f"{value!r:.60}", key=key)
    return float(array.reshape(()))


def _integer(values: Mapping[str, Any], keys: tuple[str, ...], error: Error, *, default: int) -> int:
    key = next((key for key in keys if key in values), None)
    if key is None:
        return default
    value = _number(values[key], key, error)
    if not value.is_integer():
        raise error(expected="a whole number", received=str(value), key=key)
    if keys is SPIN_KEYS and value < 1:
        raise error(
            expected="the multiplicity 2S+1, at least 1", received=str(value), key=key,
            todo="add one if this counts unpaired electrons; remove the key if the spin is unknown",
        )
    return int(value)


def _text(values: Mapping[str, Any], key: str, error: Error) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise error(expected="text", received=repr(value), key=key)
    return value


def _stress(value: Any, key: str, frame: Frame, error: Error, *, is_virial: bool) -> np.ndarray:
    """Stress as a symmetric ``(3, 3)``, eV/Å^3, from 3x3, 9 or Voigt-6 numbers."""
    array = _array(value, key, error)
    if array.shape == (6,):
        array = array[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    if array.size != 9:
        raise error(expected="3x3, 9 or 6 numbers", received=f"shape {array.shape}", key=key)
    tensor = array.reshape(3, 3)
    # Codes print tensors whose off-diagonal partners differ in the last digits.
    tensor = 0.5 * (tensor + tensor.T)
    if not is_virial:
        return tensor
    volume = abs(np.linalg.det(frame.cell))
    if not np.all(frame.pbc) or not volume:
        raise error(expected="three periodic directions, to turn a virial into a stress",
                    received=f"pbc={np.asarray(frame.pbc).tolist()}", key=key,
                    todo="remove the virial from this frame, or set its cell and pbc")
    return -tensor / volume
