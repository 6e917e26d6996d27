"""What a round of `sapis active` explores, and what it chooses to label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import DataError, ModelError
from sapis.core.seeds import derive_seed, generator
from sapis.data.splits import nested_order, next_in_time
from sapis.data.system import System, each_once
from sapis.generate.displacements import displaced
from sapis.labelers.labeler import LabelerConfig
from sapis.model.potential import TransformerPotential
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.recipe import SystemConfig
from sapis.potential.prediction import Potential
from sapis.simulate.candidates import make_candidates
from sapis.simulate.sampling import has_close_contact
from sapis.simulate.structures import load_structure
from sapis.uncertainty.select import in_common_units, points_of, select
from sapis.uncertainty.uncertain import Uncertain

ASKED, RANDOM, CONTROL = "asked", "random", "control"  # arms: values of the tag `arm`
TOO_CLOSE = "atoms too close"  # why a candidate is left out, whatever the model says of it
MIN_HELD = 10  # frames that validate from the start on: fewer calibrate nothing, and the labels of some may fail


class NothingToAsk(DataError):
    """A round has nothing left to ask for: what was learned so far is the result."""


def n_held_of(recipe: ActiveRecipe, n: int) -> int:
    """How many of the first ``n`` labels are at random, and validate."""
    return max(MIN_HELD, round(recipe.random_fraction * n))


def explored(recipe: ActiveRecipe, number: int, driver: LabelerConfig, level: str, folder: Path,
             ) -> tuple[list[System], dict[str, str], int]:
    """The candidates of round ``number``: the pool, or dynamics by ``driver`` and displacements; why trajectories ended early,
    by their names; and how many frames were lost by that.

    Args:
        level: of theory, of their labels to be.
        folder: where trajectories are kept.

    Raises:
        NothingToAsk: fewer than two.
    """
    system, dynamics = recipe.system or SystemConfig(file=recipe.pool), recipe.candidates
    found = load_structure(system.smiles, system.file, system.charge, system.spin, n_conformers=dynamics.n_conformers,
                           seed=recipe.seed)
    endings, n_lost = dict[str, str](), 0
    if recipe.system is not None:
        starts, n = found, recipe.n_candidates if number else max(2 * recipe.n_start, recipe.n_start + 10)
        n_displaced, seed = round(recipe.displaced_fraction * n), derive_seed(recipe.seed, "candidates", number)
        if number == 0:  # what drives it then knows no doubt, or not of this system
            dynamics = dynamics.without_doubt()
        found, endings = make_candidates(starts, driver, recipe.temperatures_K, n - n_displaced, dynamics, seed, folder,
                                         recipe.workers)
        n_lost = n - n_displaced - len(found)
        found = [each.with_tags(trajectory=f"round-{number:02d}-{each.tags['trajectory']}") if "trajectory" in each.tags else each
                 for each in found]
        if n_displaced and system.smiles:
            found += displaced(system.smiles, starts, n_displaced, recipe.temperatures_K, generator(seed, "displaced"))
    if len(found) < 2:
        raise NothingToAsk(expected="candidates", received=f"{len(found)}" + "".join(f"; {name}: {ending}" for name, ending in
                                                                                     list(endings.items())[:1]),
                           where=f"round {number}", todo="lower temperatures_K, or begin with more labels")
    return [replace(each, level=level) for each in found], endings, n_lost


def choose(recipe: ActiveRecipe, number: int, fresh: Sequence[System], left_out: Mapping[str, int], learned: Sequence[System],
           held: Sequence[System], control: Sequence[System], potential: Uncertain | None,
           ) -> tuple[list[System], dict[str, Any]]:
    """What is to be labelled in round ``number``, with the tags ``arm`` and ``uncertainty_eV_A``, and figures of the choice.

    Args:
        fresh, left_out: see `worth_a_label`.
        learned: labelled frames that the model has learned from.
        held: those that validate.
        control: what a model learned from that is trained for comparison.
        potential: the present model; None in the first round.

    Raises:
        NothingToAsk: too few candidates that are new.
    """
    rng, n = generator(recipe.seed, "choice", number), recipe.n_per_round if number else recipe.n_start
    # There may be fewer candidates than that: those of a pool come to an end, and trajectories that break off leave a frame each.
    n_random = max(1, round(recipe.random_fraction * min(n, len(fresh)))) if number else n_held_of(recipe, n)
    # Of a pool frames of earlier rounds may be next to those of this one; dynamics is new in each.
    old_learned, old_held = ([*learned, *control], held) if recipe.pool else ((), ())
    everything = [*fresh, *old_learned, *old_held]
    of_learned, of_held = np.split(np.arange(len(fresh), len(everything)), [len(old_learned)])
    if potential is not None:
        at_random = rng.permutation(_apart(everything, np.arange(len(fresh)), of_learned, n_random))[:n_random]
    else:  # the first labels hold every element and charge, for the models of all rounds to know them
        order = nested_order(fresh, derive_seed(recipe.seed, "start"))
        asked = order[: n - n_random]
        at_random = rng.permutation(_apart(fresh, order[n - n_random :], asked, n_random))[:n_random]
    rest = np.setdiff1d(np.arange(len(fresh)), at_random)
    if len(rest) == 0 or len(at_random) < n_random:
        why = "".join(f"; left out for {name}: {n_out}" for name, n_out in left_out.items() if n_out)
        raise NothingToAsk(expected=f"more than {n_random if number else n} candidates that are not labelled yet",
                           received=f"{len(fresh)}{why}", where=f"round {number}",
                           todo="give a larger pool or more n_candidates, or fewer rounds; where trajectories end early, lower "
                           "temperatures_K or a higher max_uncertainty_eV_A")
    stds, compared = np.zeros(len(fresh)), np.zeros(0, dtype=int)
    if potential is not None:
        stds = np.array([one.force_std.max() for one in potential.posterior(fresh)])
        rest = _apart(everything, rest, np.concatenate([at_random, of_held]), n - n_random)
        points, before = in_common_units(points_of(potential.first, fresh), points_of(potential.first, learned))
        asked = rest[select(n - n_random, recipe.strategy, stds=stds[rest], points=points[rest], known=before, rng=rng)]
        if recipe.control:  # from the same ones, the chosen among them
            compared = rng.choice(rest, len(asked), replace=False)
    chosen = [fresh[k].with_tags(arm=arm, uncertainty_eV_A=float(stds[k]))
              for arm, numbers in ((ASKED, asked), (RANDOM, at_random), (CONTROL, compared)) for k in numbers]
    return chosen, {"n_asked": len(asked), "n_random": len(at_random), "n_candidates": len(fresh),
                    "uncertainty_asked_eV_A": float(stds[asked].mean()), "uncertainty_all_eV_A": float(stds.mean())}


def _apart(systems: Sequence[System], numbers: np.ndarray, others: np.ndarray, n: int) -> np.ndarray:
    """Those of ``numbers`` that are not next in time to one of ``others`` of the same trajectory, and if they are fewer than
    ``n`` some that are. What validates a model is not to be nearly what it has learned from.
    """
    near = next_in_time(systems, set(others.tolist()))
    is_apart = np.array([k not in near for k in numbers.tolist()], dtype=bool)
    return np.concatenate([numbers[is_apart], numbers[~is_apart][: max(0, n - int(is_apart.sum()))]])


def worth_a_label(recipe: ActiveRecipe, candidates: Sequence[System], chosen: Sequence[System], labelled: Sequence[System],
                  potential: Uncertain | None) -> tuple[list[System], dict[str, int]]:
    """Candidates that were not chosen yet, each once, and how many were left out for what they are.

    Args:
        chosen: in all rounds so far, whatever came of their labels.
        labelled: those of them whose label did not fail.
        potential: the present model; None in the first round.
    """
    seen = {system.structure_hash() for system in chosen}
    fresh = [system for system in each_once(candidates) if system.structure_hash() not in seen]
    found, left_out = [system for system in fresh if not has_close_contact(system)], dict[str, int]()
    left_out[TOO_CLOSE] = len(fresh) - len(found)
    if potential is not None:
        known = [system for system in found if is_known(potential, system)]
        inside = _within_limits(recipe, known, labelled, potential)
        left_out["elements or charges that the model does not know"] = len(found) - len(known)
        left_out["energy or forces too high"] = len(known) - len(inside)
        found = inside
    return found, left_out


def is_known(potential: Uncertain | TransformerPotential, system: System) -> bool:
    """Whether the model can say anything of it: the labels of all that are like it may have failed."""
    try:
        potential.conditions.indices(system)
    except ModelError:
        return False
    return set(system.numbers.tolist()) <= set(potential.elements)


def _within_limits(recipe: ActiveRecipe, systems: Sequence[System], labelled: Sequence[System], potential: Potential,
                   ) -> list[System]:
    """Those whose energy is within the window above the lowest label of the kind, and whose forces are within the limit of the
    labeler, as ``potential`` says.
    """
    window, limit = recipe.energy_window_eV_atom, recipe.labeler.max_force_eV_A
    if window is None and limit is None:
        return list(systems)
    lowest: dict[tuple[Any, ...], float] = {}
    for system in labelled:
        if system.energy is not None:
            lowest[_kind(system)] = min(system.energy, lowest.get(_kind(system), np.inf))
    return [system for system, found in zip(systems, potential.predict(systems), strict=True)
            if (found.energy - lowest.get(_kind(system), found.energy)) / len(system) <= (window or np.inf)
            and np.linalg.norm(found.forces, axis=1).max() <= (limit or np.inf)]


def _kind(system: System) -> tuple[Any, ...]:
    return system.formula, system.charge, system.spin
