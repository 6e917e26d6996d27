"""Energies, forces and stresses against each other, along the paths between structures.

For two structures of the same atoms, close to each other, the trapezoidal rule gives the change of the energy from the forces at
both ends, ``dE = -(F_1 + F_2)/2 . dr``, and where the cell changes, too, ``+ V (s_1 + s_2)/2 : strain``; it is exact to second
order in dr. Molecules are turned onto each other first. Labels of which this is not true on the whole do not belong together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sapis.data.lint.finding import Finding, found
from sapis.data.system import System

LONGEST_STEP = 0.5  # Å, of the atom that moves most
LARGEST_STRAIN = 0.05
MIN_PAIRS = 8
MAX_PAIRS = 5_000
NEAREST_OF = 60  # frames of one composition among which the nearest is looked for
NEAREST_ATOMS = 60  # larger structures have no near ones by chance
HEAVIEST = 5.0  # weight of a step, in median ones
# Energy change over that expected from forces: 1 for labels that belong together, with some spread where steps are long.
SLOPE_LOW, SLOPE_HIGH = 0.5, 2.0
# A change of the energy beyond what forces say, in eV/atom, and in typical deviations.
JUMP, JUMP_Z = 0.02, 30.0


@dataclass(frozen=True)
class Step:
    """From one structure to another.

    Attributes:
        first, second: numbers of the frames.
        energy: change of the energy, eV.
        from_forces, from_stress: what forces and stress say of it, eV.
        is_next: one follows the other in its file.
    """

    first: int
    second: int
    energy: float
    from_forces: float
    from_stress: float
    is_next: bool


def lint_paths(systems: Sequence[System]) -> list[Finding]:
    """Forces and stresses that are not the derivatives of the energies, and energies that jump."""
    steps = list(_steps(systems))
    fixed = [step for step in steps if not step.from_stress]
    strained = [step for step in steps if abs(step.from_stress) > abs(step.from_forces)]
    findings = _slope(systems, fixed, [step.from_forces for step in fixed], "force-gradient", "forces")
    findings += _slope(systems, strained, [step.from_stress for step in strained], "stress-gradient", "stress")
    return findings if findings else _jumps(systems, steps)


def _slope(systems: Sequence[System], steps: Sequence[Step], expected: Sequence[float], rule: str, key: str) -> list[Finding]:
    """Whether energies change as expected: by the median of their ratios, each with the weight of what is expected (up to a
    limit, for the trapezoidal rule fails first where most is expected)."""
    changes = np.array([step.energy for step in steps])
    weights = np.abs(np.array(expected))
    weights = np.minimum(weights, HEAVIEST * np.median(weights, axis=0)) if len(weights) else weights
    is_telling = weights > 0
    if is_telling.sum() < MIN_PAIRS:
        return []
    ratios = changes[is_telling] / np.array(expected)[is_telling]
    order = np.argsort(ratios)
    share = np.cumsum(weights[is_telling][order])
    slope = float(ratios[order][np.searchsorted(share, share[-1] / 2)])
    if SLOPE_LOW <= slope <= SLOPE_HIGH:
        return []
    if slope < 0 and -SLOPE_HIGH <= slope <= -SLOPE_LOW:
        why = "is the sign wrong?"
    elif abs(slope) < SLOPE_LOW:
        why = "are they in a larger number of smaller units, or of other frames?"
    else:
        why = "are they in other units?"
    worst = [step.second for step in steps]
    return found(rule, "error", systems, sorted(set(worst)),
                 f"between near structures energies change by {slope:.3g} of what {key} say; {why}", key)


def _jumps(systems: Sequence[System], steps: Sequence[Step]) -> list[Finding]:
    """Energies that change between frames that follow each other, as nothing explains."""
    after = [step for step in steps if step.is_next]
    if len(after) < MIN_PAIRS:
        return []
    expected = np.array([step.from_forces + step.from_stress for step in after])
    rest = np.abs(np.array([step.energy for step in after]) - expected)
    sizes = np.array([len(systems[step.second]) for step in after])
    limit = np.maximum(JUMP * sizes, JUMP_Z * np.median(rest)) + np.abs(expected)
    order = [int(k) for k in np.argsort(-rest / limit) if rest[k] > limit[k]]
    worst = f"the energy changes by up to {rest[order[0]]:.3g} eV more than forces say" if order else ""
    return found("energy-jump", "warning", systems, [after[k].second for k in order], worst, "energy")


def _steps(systems: Sequence[System]) -> Iterator[Step]:
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, system in enumerate(systems):
        if system.energy is not None and system.forces is not None and len(system) > 1:
            groups[system.numbers.tobytes(), system.pbc.tobytes(), system.charge, system.spin, system.level].append(i)
    n_steps = 0
    for group in groups.values():
        after = set(pairwise(group))
        for first, second in sorted(after | _nearest(systems, group)):
            step = _step(systems, first, second, is_next=(first, second) in after)
            if step is not None:
                n_steps += 1
                yield step
            if n_steps == MAX_PAIRS:
                return


def _nearest(systems: Sequence[System], group: Sequence[int]) -> set[tuple[int, int]]:
    """Each of some molecules of one composition and the one that is most like it."""
    chosen = list(group[:: max(1, len(group) // NEAREST_OF)])[:NEAREST_OF]
    if len(chosen) < 3 or systems[group[0]].pbc.any() or len(systems[group[0]]) > NEAREST_ATOMS:
        return set()
    i, j = np.triu_indices(len(systems[group[0]]), k=1)
    shapes = np.array([np.linalg.norm(systems[k].positions[i] - systems[k].positions[j], axis=1) for k in chosen])
    apart = np.linalg.norm(shapes[:, None] - shapes[None], axis=2) + np.diag(np.full(len(chosen), np.inf))
    return {(min(chosen[k], chosen[n]), max(chosen[k], chosen[n])) for k, n in enumerate(apart.argmin(axis=1))}


def _step(systems: Sequence[System], first: int, second: int, *, is_next: bool) -> Step | None:
    """The step between two frames; None if it is too long, or if the cell changes and no stress says what that does."""
    one, two = systems[first], systems[second]
    assert one.forces is not None and two.forces is not None and one.energy is not None and two.energy is not None
    from_stress = 0.0
    if one.pbc.any():
        strain = np.linalg.pinv(one.cell) @ two.cell - np.eye(3) if one.pbc.all() else np.zeros((3, 3))
        if not np.array_equal(one.cell, two.cell):
            if one.stress is None or two.stress is None or not one.pbc.all() or np.abs(strain).max() > LARGEST_STRAIN:
                return None
            from_stress = float(np.sum((one.stress + two.stress) / 2 * (strain + strain.T) / 2)) * (
                (one.volume or 0.0) + (two.volume or 0.0)) / 2
        scaled = two.positions @ np.linalg.pinv(two.cell) - one.positions @ np.linalg.pinv(one.cell)
        moved = (scaled - np.round(scaled) * one.pbc) @ ((one.cell + two.cell) / 2)
        moved -= moved.mean(axis=0)
        mean = (one.forces + two.forces) / 2
    else:
        turn = _rotation(two.positions, one.positions)
        moved = (two.positions - two.positions.mean(axis=0)) @ turn - (one.positions - one.positions.mean(axis=0))
        mean = (one.forces + two.forces @ turn) / 2
    if np.linalg.norm(moved, axis=1).max() > LONGEST_STEP:
        return None
    return Step(first, second, two.energy - one.energy, -float(np.sum(mean * moved)), from_stress, is_next)


def _rotation(positions: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """The proper rotation, applied from the right, that brings centred ``positions`` nearest to ``onto``.

    Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    left, _, right = np.linalg.svd((positions - positions.mean(axis=0)).T @ (onto - onto.mean(axis=0)))
    sign = np.sign(np.linalg.det(left @ right))
    turn: np.ndarray = left @ np.diag([1.0, 1.0, sign]) @ right
    return turn
