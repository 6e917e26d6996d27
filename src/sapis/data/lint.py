"""Lint for data sets: faults that training would swallow without a word and turn into a wrong model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from sapis.core.errors import ConfigError, DataError
from sapis.data.reference import all_electron_energy
from sapis.data.system import System

Severity = Literal["error", "warning", "note"]

RULES = {
    "missing-labels": "a label that training needs is absent in all frames (error) or some (warning)",
    "overlapping-atoms": "two atoms nearer than 0.4 of the sum of their covalent radii, or than 0.3 Å",
    "zero-forces": "all forces of a frame exactly zero (error for molecules: there symmetry is no excuse)",
    "net-force": "forces that do not sum to zero: constraints applied, a column misread, an outer field",
    "force-outlier": "a force too large for any structure worth learning from",
    "force-unit": "forces whose typical size fits another unit than eV/Å",
    "energy-unit": "energies that fit all-electron totals in hartree, kcal/mol or kJ/mol",
    "energy-outlier": "an energy far from the others of the same composition",
    "stress-unit": "stresses whose typical size fits kbar or GPa, not eV/Å^3",
    "conflicting-labels": "the same structure twice with different energies",
    "duplicate": "the same structure twice",
    "leakage": "the same structure in two of training, validation and test",
    "unseen-element": "an element in validation or test that training lacks",
}

OVERLAP_FRACTION, OVERLAP_DISTANCE = 0.4, 0.3
NET_FORCE_WARNING, NET_FORCE_ERROR = 0.01, 0.1  # eV/Å per atom
FORCE_WARNING, FORCE_ERROR = 30.0, 100.0  # eV/Å
FORCE_RMS_LOW, FORCE_RMS_HIGH = 0.03, 15.0  # eV/Å; 0.02 is 1 eV/Å in hartree/bohr, 23 is 1 eV/Å in kcal/mol/Å
STRESS_RMS_WARNING, STRESS_RMS_ERROR = 0.5, 2.0  # eV/Å^3; 1 eV/Å^3 is 160 GPa
OUTLIER_Z, OUTLIER_WARNING, OUTLIER_ERROR = 10.0, 0.05, 5.0  # robust z; eV per atom from the median
MIN_SAME_COMPOSITION = 5
SAME_ENERGY = 1e-3  # eV per atom
HARTREE, UNITS_IN_HARTREE = 27.211386, {"hartree": 1.0, "kcal/mol": 627.5095, "kJ/mol": 2625.4996}


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        rule: a key of `RULES`.
        severity: ``error``, ``warning`` or ``note``.
        where: the frame where it is worst.
        message: how many frames and how far off.
    """

    rule: str
    severity: Severity
    where: str
    message: str


def lint(systems: Sequence[System], *, needs: Sequence[str] = ("energy", "forces")) -> list[Finding]:
    """Faults of one data set, errors first; at most one finding per rule and severity.

    Args:
        systems: one data set, one level of theory.
        needs: labels that training will use (``energy``, ``forces``, ``stress``).
    """
    checks: list[Callable[[Sequence[System]], list[Finding]]] = [
        _overlapping_atoms, _zero_forces, _net_force, _force_outlier, _force_unit, _energy_unit,
        _energy_outlier, _stress_unit, _duplicates,
    ]
    findings = [finding for name in needs for finding in _missing_labels(systems, name)]
    findings += [finding for check in checks for finding in check(systems)]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def lint_splits(
    train: Sequence[System], validation: Sequence[System], test: Sequence[System] = (),
) -> list[Finding]:
    """Faults between the parts of a data set: structures in two parts, elements that training lacks."""
    parts = {"training": train, "validation": validation, "test": test}
    hashes = {name: [system.structure_hash() for system in part] for name, part in parts.items()}
    findings = []
    for first, second in (("training", "validation"), ("training", "test"), ("validation", "test")):
        known = set(hashes[first])
        hits = [i for i, value in enumerate(hashes[second]) if value in known]
        findings += _found("leakage", "error", parts[second], hits, f"{second} structures also in {first}")
    elements = {int(z) for system in train for z in system.numbers}
    for name in ("validation", "test"):
        unseen = [i for i, system in enumerate(parts[name])
                  if not elements.issuperset(system.numbers.tolist())]
        new = sorted({int(z) for i in unseen for z in parts[name][i].numbers} - elements)
        symbols = ", ".join(chemical_symbols[z] for z in new)
        findings += _found("unseen-element", "warning", parts[name], unseen,
                           f"{name} structures hold elements that training lacks: {symbols}")
    return findings


def raise_on_errors(findings: Sequence[Finding], *, waived: Collection[str] = ()) -> None:
    """Stop if any finding is an error whose rule is not ``waived``.

    Raises:
        DataError: names every such rule, its worst frame and how to waive it.
        ConfigError: ``waived`` holds a name that is not a rule.
    """
    unknown = sorted(set(waived) - set(RULES))
    if unknown:
        raise ConfigError(expected=f"rules to waive from {', '.join(RULES)}", received=", ".join(unknown),
                          where="waived lint rules", todo="mend the name")
    errors = [finding for finding in findings if finding.severity == "error" and finding.rule not in waived]
    if errors:
        raise DataError(
            expected="data without faults that spoil training",
            received="; ".join(f"[{finding.rule}] {finding.message}" for finding in errors),
            where="; ".join(dict.fromkeys(finding.where for finding in errors)),
            todo="mend or remove these frames; if they are meant to be so, waive the rule: "
                 + ", ".join(dict.fromkeys(finding.rule for finding in errors)),
        )


def _found(
    rule: str, severity: Severity, systems: Sequence[System], hits: Sequence[int], message: str,
) -> list[Finding]:
    """One finding for all ``hits`` (indices of frames, worst first), none if there are none."""
    if not hits:
        return []
    tags = systems[hits[0]].tags
    place = ", ".join(f"{name} {tags[name]}" for name in ("file", "frame") if name in tags)
    count = f"{len(hits)} of {len(systems)} frames"
    return [Finding(rule, severity, place or f"system {hits[0]}", f"{count}: {message}")]


def _graded(
    rule: str, systems: Sequence[System], sizes: dict[int, float], warning: float, error: float, what: str,
) -> list[Finding]:
    """Findings for the frames whose ``sizes`` exceed a limit; ``what`` has a place for the worst size."""
    order = sorted(sizes, key=lambda i: -sizes[i])
    bad = [i for i in order if sizes[i] > error]
    doubtful = [i for i in order if warning < sizes[i] <= error]
    return [finding for severity, hits in (("error", bad), ("warning", doubtful)) if hits
            for finding in _found(rule, severity, systems, hits, what.format(sizes[hits[0]]))]  # type: ignore[arg-type]


def _missing_labels(systems: Sequence[System], name: str) -> list[Finding]:
    # A lone atom has no forces to speak of, and stress has a meaning only in a crystal.
    exempt = {"forces": lambda system: len(system) == 1, "stress": lambda system: system.volume is None}
    concerned = [i for i, system in enumerate(systems) if not exempt.get(name, lambda system: False)(system)]
    hits = [i for i in concerned if getattr(systems[i], name) is None]
    severity: Severity = "error" if len(hits) == len(concerned) else "warning"
    return _found("missing-labels", severity, systems, hits, f"no {name}")


def _overlapping_atoms(systems: Sequence[System]) -> list[Finding]:
    ratios = {i: ratio for i, system in enumerate(systems) if (ratio := _closest_approach(system)) < 1.0}
    hits = sorted(ratios, key=lambda i: ratios[i])
    worst = f"atoms overlap (nearest pair at {ratios[hits[0]]:.2g} of the least distance)" if hits else ""
    return _found("overlapping-atoms", "error", systems, hits, worst)


def _closest_approach(system: System) -> float:
    """Distance over the least allowed one, for the worst pair (images included); infinite if none is near."""
    from vesin import ase_neighbor_list

    radii = OVERLAP_FRACTION * covalent_radii[system.numbers]
    i, j, distances = ase_neighbor_list("ijd", system.to_atoms(), max(2.0 * radii.max(), OVERLAP_DISTANCE))
    allowed = np.maximum(radii[i] + radii[j], OVERLAP_DISTANCE)
    return float((distances / allowed).min(initial=np.inf))


def _with_forces(systems: Sequence[System]) -> dict[int, np.ndarray]:
    return {i: system.forces for i, system in enumerate(systems)
            if system.forces is not None and len(system) > 1}


def _zero_forces(systems: Sequence[System]) -> list[Finding]:
    zero = [i for i, forces in _with_forces(systems).items() if not forces.any()]
    molecules = [i for i in zero if not systems[i].pbc.any()]
    crystals = [i for i in zero if systems[i].pbc.any()]
    return [
        *_found("zero-forces", "error", systems, molecules, "all forces are exactly zero"),
        *_found("zero-forces", "warning", systems, crystals, "all forces are exactly zero (by symmetry?)"),
    ]


def _net_force(systems: Sequence[System]) -> list[Finding]:
    sizes = {i: float(np.linalg.norm(forces.mean(axis=0))) for i, forces in _with_forces(systems).items()}
    return _graded("net-force", systems, sizes, NET_FORCE_WARNING, NET_FORCE_ERROR,
                   "forces do not sum to zero (mean force up to {:.3g} eV/Å per atom)")


def _force_outlier(systems: Sequence[System]) -> list[Finding]:
    sizes = {i: float(np.linalg.norm(forces, axis=1).max()) for i, forces in _with_forces(systems).items()}
    return _graded("force-outlier", systems, sizes, FORCE_WARNING, FORCE_ERROR, "forces up to {:.4g} eV/Å")


def _force_unit(systems: Sequence[System]) -> list[Finding]:
    labelled = _with_forces(systems)
    if not labelled:
        return []
    # The median over frames, so that a few wild frames (another rule's matter) do not decide.
    rms = float(np.median([np.sqrt(np.mean(forces**2)) for forces in labelled.values()]))
    if rms > FORCE_RMS_HIGH:
        return _found("force-unit", "error", systems, list(labelled),
                      f"typical force {rms:.3g} eV/Å; are these kcal/mol/Å or kJ/mol/Å?")
    if 0 < rms < FORCE_RMS_LOW:
        return _found("force-unit", "warning", systems, list(labelled),
                      f"typical force {rms:.3g} eV/Å; relaxed structures, or hartree/bohr?")
    return []


def _energy_unit(systems: Sequence[System]) -> list[Finding]:
    labelled = {i: system.energy for i, system in enumerate(systems) if system.energy is not None}
    if not labelled:
        return []
    ratio = float(np.median([energy / all_electron_energy(systems[i].numbers) for i, energy in labelled.items()]))
    for unit, factor in UNITS_IN_HARTREE.items():
        if 0.93 < ratio / factor < 1.1:
            return _found("energy-unit", "error", systems, list(labelled),
                          f"energies equal all-electron totals in {unit}, not in eV")
    if ratio > 1.3 * HARTREE:
        return _found("energy-unit", "error", systems, list(labelled),
                      f"energies are {ratio / HARTREE:.3g} times as deep as all-electron totals in eV can be")
    return []


def _energy_outlier(systems: Sequence[System]) -> list[Finding]:
    groups: dict[tuple[str, int, int, str], list[int]] = defaultdict(list)
    for i, system in enumerate(systems):
        if system.energy is not None:
            groups[system.formula, system.charge, system.spin, system.level].append(i)
    sizes: dict[int, float] = {}
    for group in groups.values():
        if len(group) < MIN_SAME_COMPOSITION:
            continue
        energies = np.array([systems[i].energy for i in group]) / len(systems[group[0]])
        deviations = np.abs(energies - np.median(energies))
        limit = OUTLIER_Z * 1.4826 * np.median(deviations)
        sizes |= {i: float(size) for i, size in zip(group, deviations, strict=True) if size > limit}
    return _graded("energy-outlier", systems, sizes, OUTLIER_WARNING, OUTLIER_ERROR,
                   "energy up to {:.3g} eV/atom from the median of its composition")


def _stress_unit(systems: Sequence[System]) -> list[Finding]:
    labelled = {i: system.stress for i, system in enumerate(systems) if system.stress is not None}
    if not labelled:
        return []
    rms = float(np.median([np.sqrt(np.mean(stress**2)) for stress in labelled.values()]))
    sizes = dict.fromkeys(labelled, rms)
    return _graded("stress-unit", systems, sizes, STRESS_RMS_WARNING, STRESS_RMS_ERROR,
                   "typical stress {:.3g} eV/Å^3; is this kbar or GPa?")


def _duplicates(systems: Sequence[System]) -> list[Finding]:
    first: dict[tuple[str, str], int] = {}
    repeated, conflicting = [], []
    for i, system in enumerate(systems):
        earlier = first.setdefault((system.structure_hash(), system.level), i)
        if earlier == i:
            continue
        repeated.append(i)
        original = systems[earlier]
        if system.energy is not None and original.energy is not None:
            conflicting += [i] if abs(system.energy - original.energy) > SAME_ENERGY * len(system) else []
    return [
        *_found("conflicting-labels", "error", systems, conflicting,
                "the structure of an earlier frame with another energy (charge, spin or level of theory missing?)"),
        *_found("duplicate", "warning", systems, repeated, "the structure of an earlier frame"),
    ]
