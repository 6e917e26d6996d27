"""Reference energies: what each element contributes to a total energy before any interaction is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import DataError
from sapis.data.system import System

# By atomic number; where there are several levels of theory by level, then by atomic number.
Energies = Mapping[int, float] | Mapping[str, Mapping[int, float]]
ISOLATED_ATOM = "isolated atom"
LEAST_SQUARES = "least squares"


@dataclass(frozen=True)
class ReferenceEnergies:
    """Reference energies and where each came from.

    Attributes:
        values: atomic number to energy, eV.
        source: atomic number to ``isolated atom`` or ``least squares``.
    """

    values: dict[int, float]
    source: dict[int, str]


def fit_reference_energies(systems: Sequence[System], *, ridge: float = 1e-8) -> dict[int, float]:
    """Least squares of total energies on composition, with a ridge towards the mean energy per atom.

    Minimises sum_s (E_s - sum_Z n_sZ e_Z)^2 + ridge * S * sum_Z (e_Z - e_mean)^2 over S systems. Where the
    compositions determine the values, the ridge is too weak to matter; where they do not (a single
    composition), it spreads the energy evenly over atoms, so that the mean energy is still reproduced.

    Args:
        systems: those without an energy are left out.
        ridge: strength, relative to one squared atom count per system.

    Returns:
        Atomic number to energy, eV, for every element in systems with an energy.

    Raises:
        DataError: no system has an energy.
    """
    labelled = [system for system in systems if system.energy is not None]
    if not labelled:
        raise DataError(expected="systems with energies", received=f"{len(systems)} without one",
                        where="reference energies", todo="give labelled data or isolated-atom energies")
    elements = np.unique(np.concatenate([system.numbers for system in labelled]))
    counts = np.array([(system.numbers[:, None] == elements).sum(axis=0) for system in labelled], dtype=float)
    energies = np.array([system.energy for system in labelled])
    mean = energies.sum() / counts.sum()
    penalty = np.sqrt(ridge * len(labelled)) * np.eye(len(elements))
    left = np.vstack([counts, penalty])
    right = np.concatenate([energies - mean * counts.sum(axis=1), np.zeros(len(elements))])
    shifts = np.linalg.lstsq(left, right, rcond=None)[0]
    return {int(z): float(mean + shift) for z, shift in zip(elements, shifts, strict=True)}


def reference_energies_from_isolated(systems: Sequence[System]) -> dict[int, float]:
    """Energies of isolated neutral atoms, eV, by atomic number; of several the lowest (the ground state).

    Raises:
        DataError: a system has more than one atom, a charge, or no energy.
    """
    values: dict[int, float] = {}
    for system in systems:
        if len(system) != 1 or system.charge != 0 or system.energy is None:
            label = "no energy" if system.energy is None else f"energy {system.energy:.6g} eV"
            raise system.error(expected="one neutral atom with an energy",
                               received=f"{system.formula}, charge {system.charge}, {label}",
                               todo="keep only isolated atoms in this file")
        element = int(system.numbers[0])
        values[element] = min(system.energy, values.get(element, np.inf))
    return values


def isolated_by_level(systems: Sequence[System]) -> dict[str, dict[int, float]]:
    """As `reference_energies_from_isolated`, by level of theory; "" where the frames do not name it."""
    levels = sorted({system.level for system in systems})
    return {level: reference_energies_from_isolated([system for system in systems if system.level == level]) for level in levels}


def choose_reference_energies(systems: Sequence[System], isolated: Mapping[int, float]) -> ReferenceEnergies:
    """Isolated-atom energies if they are known for every element of ``systems``, else least squares for all.

    Raises:
        DataError: least squares is needed and no system has an energy.
    """
    present = sorted({int(z) for system in systems for z in np.unique(system.numbers)})
    # Never a mixture: isolated-atom values leave the binding energy to the model, least squares takes its
    # mean away, so a fit for one element would have to absorb the binding of all the others.
    if present and all(z in isolated for z in present):
        chosen = {z: float(isolated[z]) for z in present}
        return ReferenceEnergies(chosen, dict.fromkeys(present, ISOLATED_ATOM))
    values = fit_reference_energies(systems)
    return ReferenceEnergies(values, dict.fromkeys(values, LEAST_SQUARES))


def by_level(energies: Energies, levels: Sequence[str]) -> dict[str, dict[int, float]]:
    """``energies`` for each of ``levels`` (none: one without a name), empty where there are none for it. Energies without a
    level are those of the only one.

    Raises:
        DataError: a level that is not among ``levels``; energies without a level where there are several.
    """
    levels = levels or ("",)
    found: dict[str, dict[int, float]] = {}
    for key, value in energies.items():
        if isinstance(value, Mapping):
            found[str(key)] = dict(value)
        else:
            found.setdefault("", {})[int(key)] = value
    if "" in found and len(levels) == 1 == len(found):
        return {levels[0]: found[""]}
    if unknown := sorted(level or "no level" for level in found if level not in levels):
        raise DataError(expected=f"reference energies by level of theory: {', '.join(levels)}", received=unknown[0],
                        where="reference energies", todo="say of which level they are")
    return {level: found.get(level, {}) for level in levels}


def total_reference(system: System, values: Mapping[int, float]) -> float:
    """Sum of the reference energies of a system's atoms, eV.

    Raises:
        DataError: an element has no value.
    """
    elements, counts = np.unique(system.numbers, return_counts=True)
    missing = [chemical_symbols[z] for z in elements if int(z) not in values]
    if missing:
        known = ", ".join(chemical_symbols[z] for z in sorted(values)) or "none"
        raise system.error(
            expected=f"elements with a reference energy ({known})", received=", ".join(missing),
            todo="train on data that holds these elements, or give their isolated-atom energies",
        )
    return float(sum(count * values[int(z)] for z, count in zip(elements, counts, strict=True)))


def all_electron_energy(numbers: np.ndarray) -> float:
    """Sum of the free atoms' total energies, hartree, within a few per cent.

    E(Z) = -0.768745 Z^(7/3) + Z^2 / 2 - 0.269900 Z^(5/3): Schwinger, Phys. Rev. A 24, 2353 (1981).

    Args:
        numbers: atomic numbers, ``(atoms,)``.
    """
    z = np.asarray(numbers, dtype=np.float64)
    return float(np.sum(-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)))
