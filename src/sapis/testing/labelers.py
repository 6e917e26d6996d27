"""What every labeler must obey, checked by what `label` returns and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.executors.outcome import Failure
from sapis.labelers.labeler import Label, Labeler
from sapis.testing import tolerances
from sapis.testing.laws import Check

N_COMPONENTS = 4  # force components tried per system: each costs two labels


def check_labeler(labeler: Labeler, systems: Sequence[System], *, seed: int = 0, has_history: bool = False,
                  has_order: bool = False) -> list[Check]:
    """Put the laws of labels to a labeler.

    Args:
        systems: molecules away from equilibrium that it can label; two at least.
        seed: of rotations, permutations and components.
        has_history: labels may differ within the convergence by what was labelled before.
        has_order: the order of the atoms is settled from outside (a topology).

    Returns:
        One check a law.
    """
    labels = [_label(labeler, system) for system in systems]
    checks = [_described(labeler), _forces(labeler, systems, labels, generator(seed, "forces")),
              _rotation(labeler, systems, labels, generator(seed, "rotation"))]
    if not has_history:
        checks.append(_no_history(labeler, systems, labels))
    if not has_order:
        checks.append(_permutation(labeler, systems, labels, generator(seed, "permutation")))
    return [*checks, _failure_is_a_value(labeler, systems[0])]


def _label(labeler: Labeler, system: System) -> Label:
    outcome = labeler.label(system)
    if isinstance(outcome, Failure):
        raise system.error(expected=f"a label by {labeler.level}", received=outcome.reason)
    return outcome


def _check(name: str, value: float, tolerance: tolerances.Tolerance, what: str) -> Check:
    limit = tolerance.float64
    return Check(name, value, limit, tolerance.unit, value <= limit, what)


def _yes_or_no(name: str, *, is_so: bool, what: str) -> Check:
    return Check(name, 0.0 if is_so else 1.0, 0.0, "violations", is_so, what)


def _described(labeler: Labeler) -> Check:
    is_so = bool(labeler.level) and json.loads(json.dumps(labeler.method)) == labeler.method
    return _yes_or_no("description", is_so=is_so, what="it says its level of theory, and its method in JSON values")


def _forces(labeler: Labeler, systems: Sequence[System], labels: Sequence[Label], rng: np.random.Generator) -> Check:
    step, worst = tolerances.LABEL_STEP.float64, 0.0
    for system, label in zip(systems, labels, strict=True):
        for component in rng.choice(3 * len(system), min(N_COMPONENTS, 3 * len(system)), replace=False):
            energies = []
            for sign in (1, -1):
                positions = system.positions.copy()
                positions.flat[component] += sign * step
                energies.append(_label(labeler, replace(system, positions=positions)).energy)
            slope = (energies[0] - energies[1]) / (2 * step)
            worst = max(worst, abs(float(label.forces.flat[component]) + slope))
    return _check("forces", worst, tolerances.LABEL_FORCES, "forces are minus the gradient of the energy")


def _rotation(labeler: Labeler, systems: Sequence[System], labels: Sequence[Label], rng: np.random.Generator) -> Check:
    worst = 0.0
    for system, label in zip(systems, labels, strict=True):
        if system.pbc.any():  # codes for crystals want their cells in one orientation
            continue
        turn = Rotation.random(random_state=rng).as_matrix()
        turned = _label(labeler, replace(system, positions=system.positions @ turn.T))
        worst = max(worst, float(np.abs(turned.forces - label.forces @ turn.T).max()), abs(turned.energy - label.energy))
    return _check("rotation", worst, tolerances.LABEL_SYMMETRY, "the energy stays and forces turn along")


def _permutation(labeler: Labeler, systems: Sequence[System], labels: Sequence[Label], rng: np.random.Generator) -> Check:
    worst = 0.0
    for system, label in zip(systems, labels, strict=True):
        order = rng.permutation(len(system))
        shuffled = _label(labeler, replace(system, numbers=system.numbers[order], positions=system.positions[order]))
        worst = max(worst, float(np.abs(shuffled.forces - label.forces[order]).max()), abs(shuffled.energy - label.energy))
    return _check("permutation", worst, tolerances.LABEL_SYMMETRY, "the order in which atoms are listed does not matter")


def _no_history(labeler: Labeler, systems: Sequence[System], labels: Sequence[Label]) -> Check:
    again = [_label(labeler, system.with_tags(file="another")) for system in reversed(systems)][::-1]
    is_so = all(one.energy == two.energy and one.forces.tobytes() == two.forces.tobytes()
                for one, two in zip(labels, again, strict=True))
    return _yes_or_no("no history", is_so=is_so, what="a label has the same bits whatever was labelled before")


def _failure_is_a_value(labeler: Labeler, system: System) -> Check:
    """A structure that no method can be meant for: two atoms in one place."""
    positions = system.positions.copy()
    positions[1:] = positions[:1]
    what = "what cannot be labelled is a failure with a reason, not an exception"
    try:
        outcome = labeler.label(replace(system, positions=positions))
    except Exception as error:
        return _yes_or_no("failure", is_so=False, what=f"{what}, as {type(error).__name__}: {error}")
    return _yes_or_no("failure", is_so=isinstance(outcome, Failure) or bool(np.isfinite(outcome.forces).all()), what=what)
