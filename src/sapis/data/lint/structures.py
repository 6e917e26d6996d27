"""Faults of structures alone, whatever their labels say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from sapis.data.lint.finding import Finding, found
from sapis.data.system import System

OVERLAP_FRACTION, OVERLAP_DISTANCE = 0.4, 0.3  # of the sum of covalent radii; Å
# Typical distance of nearest neighbours over the sum of their covalent radii: 0.85 to 1.25 in molecules and solids, 1.9 times
# that in bohr, a tenth in nm.
BOND_LOW, BOND_HIGH = 0.5, 1.6
NOBLE = (2, 10, 18, 36, 54, 86)  # have no bonds to measure
SAMPLE = 200  # frames that settle a unit
SEARCH = 2.5  # of nearest neighbours: times the sum of the largest covalent radii


def overlapping_atoms(systems: Sequence[System]) -> list[Finding]:
    """Two atoms nearer than nuclei come."""
    ratios = {i: ratio for i, system in enumerate(systems)
              if (ratio := _closest(system, OVERLAP_FRACTION, OVERLAP_DISTANCE)) < 1.0}
    hits = sorted(ratios, key=lambda i: ratios[i])
    worst = f"atoms overlap (nearest pair at {ratios[hits[0]]:.2g} of the least distance)" if hits else ""
    return found("overlapping-atoms", "error", systems, hits, worst, "positions")


def closest_contact(system: System) -> float:
    """Distance of the pair that is nearest, in sums of covalent radii; infinite if there is none below 1."""
    return _closest(system, 1.0, 0.0)


def _closest(system: System, fraction: float, least: float) -> float:
    """Distance over the allowed one (``fraction`` of the sum of covalent radii, and at least ``least`` Å), for the worst pair,
    images included; infinite if none is near."""
    from vesin import ase_neighbor_list

    radii = fraction * covalent_radii[system.numbers]
    i, j, distances = ase_neighbor_list("ijd", system.to_atoms(), max(2.0 * float(radii.max()), least))
    return float((distances / np.maximum(radii[i] + radii[j], least)).min(initial=np.inf))


def length_unit(systems: Sequence[System]) -> list[Finding]:
    """Bonds that are too long or too short throughout."""
    sample = range(0, len(systems), max(1, len(systems) // SAMPLE))
    ratios = {i: ratio for i in sample if np.isfinite(ratio := _typical_bond(systems[i]))}
    typical = float(np.median(list(ratios.values()))) if ratios else 1.0
    if BOND_LOW <= typical <= BOND_HIGH:
        return []
    unit = "bohr" if typical > BOND_HIGH else "nm"
    return found("length-unit", "error", systems, list(range(len(systems))),
                 f"nearest neighbours are {typical:.2g} covalent bond lengths apart; are positions in {unit}?", "positions")


def _typical_bond(system: System) -> float:
    """Median over atoms of the distance to the nearest neighbour, in sums of covalent radii; NaN without bonds."""
    from vesin import ase_neighbor_list

    if np.isin(system.numbers, NOBLE).any():
        return np.nan
    radii = covalent_radii[system.numbers]
    i, j, distances = ase_neighbor_list("ijd", system.to_atoms(), 2 * SEARCH * float(radii.max()))
    nearest = np.full(len(system), np.inf)
    np.minimum.at(nearest, i, distances / (radii[i] + radii[j]))
    nearest = nearest[np.isfinite(nearest)]
    return float(np.median(nearest)) if len(nearest) else np.nan


def electrons(systems: Sequence[System]) -> list[Finding]:
    """Molecules with a multiplicity that their electrons cannot have. Crystals and lone atoms are seldom given one."""
    hits = [i for i, system in enumerate(systems) if len(system) > 1 and not system.pbc.any()
            and (int(system.numbers.sum()) - system.charge - system.spin) % 2 == 0]
    return found("electrons", "warning", systems, hits, "an even number of electrons with an even multiplicity, or both odd "
                 "(charge or spin missing?)", "spin")
