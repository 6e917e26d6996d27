"""`sapis active`: a model that asks for the labels it needs, from cheap labels on if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sapis.core.errors import ConfigError, DataError
from sapis.core.records import Record, read_record
from sapis.data.formats import read_systems
from sapis.data.lint import lint, lint_splits, raise_on_errors
from sapis.data.splits import is_of_new_kind, nested_order, split_in_time
from sapis.data.system import System, each_once
from sapis.labelers.build import build_labeler
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.choice import ASKED, CONTROL, MIN_HELD, RANDOM, n_held_of
from sapis.pipeline.delta import CheapLabels
from sapis.pipeline.label import executor_of
from sapis.pipeline.recipe import Recipe
from sapis.pipeline.rounds import ONE_NAME, ActiveOutcome, rounds, workspace_of
from sapis.pipeline.run import run
from sapis.pipeline.workspace import RECORDS

HELD_BLOCK = 5  # frames of a block in time that validates, at least: longer ones would be few, of one trajectory perhaps
BREADTH = "breadth"  # folder of the run on cheap labels


def active(recipe: ActiveRecipe) -> ActiveOutcome:
    """Do, or finish, what ``recipe`` asks for. Killed anywhere, the same call goes on.

    Raises:
        SapisError: bad input; all labels and models so far are kept.
    """
    known = _known(recipe)
    # What stands in the way says so now, and not when cheap labels are made and learned from.
    labeler = build_labeler(recipe.labeler)
    executor_of(recipe.cluster, recipe.workers)
    level = recipe.to_level or labeler.level
    _require_one_level(known or {}, {"", level, labeler.level}, level)
    with workspace_of(recipe).locked():
        pass
    begun, breadth, cheap = _broadened(recipe, level)
    return rounds(begun, known=known, breadth=breadth, cheap=cheap)


def _broadened(recipe: ActiveRecipe, level: str) -> tuple[ActiveRecipe, dict[str, Record], CheapLabels | None]:
    """The recipe with a model of cheap labels to begin from, if it asks for one, the records of that, and its labels if they are
    to be corrected.
    """
    if recipe.breadth is None:
        return recipe, {}, None
    assert recipe.system is not None
    folder = recipe.output / BREADTH
    settings = {name: getattr(recipe.breadth, name) for name in type(recipe.breadth).model_fields if name != "delta"}
    made = run(Recipe(title=f"{recipe.name}: cheap labels", system=recipe.system, output=folder, model=recipe.model,
                      hot_temperature_K=None, workers=recipe.workers, seed=recipe.seed, **settings))
    records = {step: read_record(folder / RECORDS / f"{step}.json") for step in ("candidates", "labels", "train")}
    cheap = None
    if recipe.breadth.delta is not None:
        cheap = CheapLabels(folder / "train.extxyz", recipe.breadth.labeler, recipe.breadth.delta)
    return recipe.model_copy(update={"breadth": None, "start": made.model, "to_level": level}), records, cheap


def _known(recipe: ActiveRecipe) -> dict[str, list[System]] | None:
    """Labelled frames to begin with, each once, in their arms."""
    if recipe.data is None:
        return None
    given, others = (read_systems(path, require=("energy", "forces")) if path else []
                     for path in (recipe.data, recipe.validation))
    systems = each_once(given)
    if recipe.validation is not None:
        train, held = systems, each_once(others)
    elif all(system.tags.get("arm") in (ASKED, RANDOM, CONTROL) for system in systems):  # what validated goes on to
        train = [system for system in systems if system.tags["arm"] != RANDOM]
        held = [system for system in systems if system.tags["arm"] == RANDOM]
    elif recipe.start is not None and not recipe.to_level:
        raise ConfigError(expected="validation: labelled frames that the start has not learned from", received="none beside data",
                          where=f"data: {recipe.data}", todo="name some: what it has learned from says nothing of its errors; "
                          "labels of an earlier run (labelled.extxyz of its rounds) know which these are")
    else:
        train, held = _split(recipe, systems)
    is_new = is_of_new_kind(held, train)
    asked = [*train, *(system for system, new in zip(held, is_new, strict=True) if new)]
    at_random = [system for system, new in zip(held, is_new, strict=True) if not new]
    raise_on_errors(lint([*given, *others]) + lint_splits(asked, at_random), waived=recipe.waive)  # copies may contradict
    return {ASKED: asked, RANDOM: at_random}


def _require_one_level(known: Mapping[str, Sequence[System]], allowed: set[str], level: str) -> None:
    """Energies of two methods differ by thousands of eV."""
    if named := {system.level for part in known.values() for system in part} - allowed:
        raise ConfigError(expected=f"frames of {level}, the method of the labels", received=", ".join(sorted(named)),
                          where="data", todo=ONE_NAME + "label them anew")


def _split(recipe: ActiveRecipe, systems: list[System]) -> tuple[list[System], list[System]]:
    """What is learned from and what validates: of trajectories blocks in time."""
    n, n_held = len(systems), n_held_of(recipe, len(systems))
    if n < 2 * MIN_HELD:
        raise DataError(expected=f"at least {2 * MIN_HELD} labelled frames to begin with, of which {MIN_HELD} validate",
                        received=str(n), where=f"data: {recipe.data}", todo="give more, or leave data out: they are made then")
    if any("trajectory" in system.tags for system in systems):
        split = split_in_time(systems, fractions=((n - n_held) / n, n_held / n, 0.0), min_block_gaps=HELD_BLOCK, seed=recipe.seed)
        return list(split.train), list(split.validation)
    order = nested_order(systems, recipe.seed)
    return [systems[k] for k in order[: n - n_held]], [systems[k] for k in order[n - n_held :]]
