"""`sapis active`: a model that asks for the labels it needs, from cheap labels on if asked."""

from __future__ import annotations

from sapis.core.errors import DataError
from sapis.core.records import Record, read_record
from sapis.data.formats import read_systems
from sapis.data.splits import is_of_new_kind, nested_order, split_in_time
from sapis.data.system import System
from sapis.labelers.build import build_labeler
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.choice import ASKED, MIN_HELD, RANDOM, n_held_of
from sapis.pipeline.delta import CheapLabels
from sapis.pipeline.recipe import Recipe
from sapis.pipeline.rounds import ActiveOutcome, rounds
from sapis.pipeline.run import run
from sapis.pipeline.workspace import RECORDS

HELD_BLOCK = 5  # frames of a block in time that validates, at least: longer ones would be few, of one trajectory perhaps
BREADTH = "breadth"  # folder of the run on cheap labels


def active(recipe: ActiveRecipe) -> ActiveOutcome:
    """Do, or finish, what ``recipe`` asks for. Killed anywhere, the same call goes on.

    Raises:
        SapisError: bad input; all labels and models so far are kept.
    """
    begun, breadth, cheap = _broadened(recipe)
    return rounds(begun, known=_known(recipe), breadth=breadth, cheap=cheap)


def _broadened(recipe: ActiveRecipe) -> tuple[ActiveRecipe, dict[str, Record], CheapLabels | None]:
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
    level = recipe.to_level or build_labeler(recipe.labeler).level
    cheap = None
    if recipe.breadth.delta is not None:
        cheap = CheapLabels(folder / "train.extxyz", recipe.breadth.labeler, recipe.breadth.delta)
    return recipe.model_copy(update={"breadth": None, "start": made.model, "to_level": level}), records, cheap


def _known(recipe: ActiveRecipe) -> dict[str, list[System]] | None:
    """Labelled frames to begin with, in their arms; of trajectories what validates is blocks in time."""
    if recipe.data is None:
        return None
    systems = read_systems(recipe.data, require=("energy", "forces"))
    n, n_held = len(systems), n_held_of(recipe, len(systems))
    if n < 2 * MIN_HELD:
        raise DataError(expected=f"at least {2 * MIN_HELD} labelled frames to begin with, of which {MIN_HELD} validate",
                        received=str(n), where=f"data: {recipe.data}", todo="give more, or leave data out: they are made then")
    if any("trajectory" in system.tags for system in systems):
        split = split_in_time(systems, fractions=((n - n_held) / n, n_held / n, 0.0), min_block_gaps=HELD_BLOCK, seed=recipe.seed)
        is_new = is_of_new_kind(split.validation, split.train)
        held = list(zip(split.validation, is_new, strict=True))
        return {ASKED: [*split.train, *(system for system, new in held if new)],
                RANDOM: [system for system, new in held if not new]}
    n_asked = n - n_held
    order = nested_order(systems, recipe.seed)
    return {ASKED: [systems[k] for k in order[:n_asked]], RANDOM: [systems[k] for k in order[n_asked:]]}
