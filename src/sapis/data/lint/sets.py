"""Faults between structures: twice the same, in two parts, of elements that training lacks."""

from __future__ import annotations

from collections.abc import Sequence

from ase.data import chemical_symbols

from sapis.data.lint.finding import Finding, found
from sapis.data.splits import next_in_time
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


def _beside_training(train: Sequence[System], held: Sequence[System], name: str) -> list[Finding]:
    """Frames of trajectories held out at random; of blocks in time only the borders are beside training frames."""
    shared = {system.tags.get("trajectory") for system in held} & {system.tags.get("trajectory") for system in train} - {None}
    if not shared:
        return []
    n_train = len(train)
    beside = [k - n_train for k in next_in_time([*train, *held], range(n_train)) if k >= n_train]
    of_shared = sum(system.tags.get("trajectory") in shared for system in held)
    hits = sorted(beside) if len(beside) > of_shared / 2 else []
    return found("time-neighbors", "warning", held, hits, f"{name} structures next in time to training ones: their errors "
                 "flatter, and what is calibrated on them (hold out blocks, or whole trajectories by --group-by trajectory)",
                 "trajectory")


def lint_splits(train: Sequence[System], validation: Sequence[System], test: Sequence[System] = ()) -> list[Finding]:
    """Faults between the parts of a data set: structures in two parts, neighbours in time, elements that training lacks.

    The same structure at another level of theory counts, too: its forces are nearly the same.
    """
    parts = {"training": train, "validation": validation, "test": test}
    hashes = {name: [system.structure_hash() for system in part] for name, part in parts.items()}
    findings = []
    for first, second in (("training", "validation"), ("training", "test"), ("validation", "test")):
        known = set(hashes[first])
        hits = [i for i, value in enumerate(hashes[second]) if value in known]
        findings += found("leakage", "error", parts[second], hits, f"{second} structures also in {first}", "positions")
    for name in ("validation", "test"):
        findings += _beside_training(train, parts[name], name)
    elements = {int(z) for system in train for z in system.numbers}
    for name in ("validation", "test"):
        unseen = [i for i, system in enumerate(parts[name]) if not elements.issuperset(system.numbers.tolist())]
        new = sorted({int(z) for i in unseen for z in parts[name][i].numbers} - elements)
        symbols = ", ".join(chemical_symbols[z] for z in new)
        findings += found("unseen-element", "warning", parts[name], unseen,
                          f"{name} structures hold elements that training lacks: {symbols}", "numbers")
    return findings
