"""Faults between structures: twice the same, in two parts, of elements that training lacks."""

from __future__ import annotations

from collections.abc import Sequence

from ase.data import chemical_symbols

from sapis.data.lint.finding import Finding, found
from sapis.data.system import System

SAME_ENERGY = 1e-3  # eV per atom


def duplicates(systems: Sequence[System]) -> list[Finding]:
    """The same structure twice, with the same labels or others."""
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
        *found("conflicting-labels", "error", systems, conflicting,
               "the structure of an earlier frame with another energy (charge, spin or level of theory missing?)", "energy"),
        *found("duplicate", "warning", systems, repeated, "the structure of an earlier frame", "positions"),
    ]


def lint_splits(train: Sequence[System], validation: Sequence[System], test: Sequence[System] = ()) -> list[Finding]:
    """Faults between the parts of a data set: structures in two parts, elements that training lacks.

    The same structure at another level of theory counts, too: its forces are nearly the same.
    """
    parts = {"training": train, "validation": validation, "test": test}
    hashes = {name: [system.structure_hash() for system in part] for name, part in parts.items()}
    findings = []
    for first, second in (("training", "validation"), ("training", "test"), ("validation", "test")):
        known = set(hashes[first])
        hits = [i for i, value in enumerate(hashes[second]) if value in known]
        findings += found("leakage", "error", parts[second], hits, f"{second} structures also in {first}", "positions")
    elements = {int(z) for system in train for z in system.numbers}
    for name in ("validation", "test"):
        unseen = [i for i, system in enumerate(parts[name]) if not elements.issuperset(system.numbers.tolist())]
        new = sorted({int(z) for i in unseen for z in parts[name][i].numbers} - elements)
        symbols = ", ".join(chemical_symbols[z] for z in new)
        findings += found("unseen-element", "warning", parts[name], unseen,
                          f"{name} structures hold elements that training lacks: {symbols}", "numbers")
    return findings
