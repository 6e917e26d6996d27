"""What a round learns: the trainings of the model and of its control, and how both went on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sapis.api import load, save
from sapis.core.files import hash_file, hash_json
from sapis.core.progress import console
from sapis.core.records import Stopwatch
from sapis.core.seeds import derive_seed
from sapis.core.version import __version__
from sapis.data.formats import read_systems
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.model.potential import TransformerPotential
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.choice import ASKED, CONTROL, RANDOM
from sapis.pipeline.delta import CORRECTED
from sapis.pipeline.members import trained_members
from sapis.pipeline.past import MODEL, Past
from sapis.potential.bundle import hash_tensors
from sapis.training.config import TrainingConfig
from sapis.training.fit import at_new_level, known_potential, new_potential
from sapis.training.loop import Training
from sapis.uncertainty.assess import assess, force_reliability
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.make import uncertain
from sapis.uncertainty.uncertain import Uncertain

CONTROL_MODEL = "control.sapis"


def train_round(past: Past, number: int) -> None:
    """Learn from all labels so far, and from cheap ones that the round has corrected, calibrate, and say what was forgotten."""
    recipe, delta = past.recipe, past.rounds[number].get("delta")
    later = ("later_learning_rate",) if _goes_on(recipe, number) else ()
    inputs = past.settings("model", "training", "uncertainty", "seed", "to_level", *later) | {
        "labels": [record.result["files"] for record in past.labels],
        "from": past.models[-1].result["files"] if past.models else recipe.start and hash_file(recipe.start)}
    if not _goes_on(recipe, number):
        inputs["isolated"] = past.labels[0].result["isolated"]
    if delta is not None:
        inputs["corrected"] = delta.result["files"]

    def run() -> dict[str, Any]:
        asked, held = past.known(ASKED), past.known(RANDOM)
        train = asked + (read_systems(past.path(number, CORRECTED)) if delta is not None else [])
        fresh = {arm: past.labelled(number, arm) for arm in (ASKED, RANDOM)}
        old = held[: len(held) - len(fresh[RANDOM])]
        settings = _settings_of(past, number)
        before = _errors(past.present(number - 1), old, fresh) if number else {}
        folder = past.path(number, "training")
        ages = ["old"] * len(old) + ["new"] * len(fresh[RANDOM]) if old else []
        first = Training(_begin(past, train, settings.seed, 0), train, held, settings, folder / "member-0", groups=ages)
        progress = first.run()
        spent = [{"cpu_seconds": progress.cpu_seconds, "flops": progress.flops}]

        def others() -> list[TransformerPotential]:
            members, cost = trained_members(
                recipe.uncertainty.n_members, lambda seed, k: _begin(past, train, seed, k), train, held, settings, folder,
                flops=progress.flops, workers=recipe.workers)
            spent.append(cost)
            return members

        watch = Stopwatch()
        # Of corrected labels it is not sure: what is known is what was asked for.
        found = uncertain(first.potential, recipe.uncertainty, asked, held, others=others, seed=settings.seed)
        if len(spent) == 1:  # of members the trainings are nearly all, and may be those of an earlier call
            spent.append({"cpu_seconds": watch.cost()["cpu_seconds"], "flops": 0.0})
        doubt = recipe.uncertainty.model_dump(mode="json")
        doubt["calibrations"] = {name: each.to_json() for name, each in found.calibrations.items()}
        weights_hash = hash_tensors(dict(found.state_dict()), hash_json(found.settings()))
        card = {"level_of_theory": past.labels[0].result["method"], "round": number, "uncertainty": doubt,
                "training": {"model_hash": weights_hash, "config": settings.model_dump(mode="json")},
                "data": {name: {"n": len(part), "hash": hash_systems(part)} for name, part in (
                    ("train", train), ("validation", held))}}
        save(past.path(number, MODEL), found, card)
        after = _errors(found, old, fresh)
        return {"n_train": len(asked), "n_held": len(held), "before": before, "after": after,
                "cost": {key: sum(each[key] for each in spent) for key in ("cpu_seconds", "flops")}}

    past.models.append(past.step(number, "model", inputs, MODEL, run))
    console.print(_told(number, past.models[-1].result))


def train_control(past: Past, number: int) -> None:
    """A model that goes on from the first one with labels at random, as many as were asked for."""
    recipe, before = past.recipe, past.path(number - 1, CONTROL_MODEL if number > 1 else MODEL)
    inputs = past.settings("training", "uncertainty", "seed", "to_level", "later_learning_rate") | {
        "labels": [record.result["files"] for record in past.labels], "from": hash_file(before)}

    def run() -> dict[str, Any]:
        train, held = past.labelled(0, ASKED) + past.known(CONTROL), past.known(RANDOM)
        start = at_new_level(_one_of(before), train, recipe.to_level)
        potential, _ = known_potential(start, train, precision=recipe.training.precision)
        training = Training(potential, train, held, _settings_of(past, number), past.path(number, "training") / CONTROL)
        spent = training.run()
        save(past.path(number, CONTROL_MODEL), training.potential, {"level_of_theory": past.labels[0].result["method"]})
        return {"n_train": len(train), "cost": {"cpu_seconds": spent.cpu_seconds, "flops": spent.flops}}

    past.step(number, CONTROL, inputs, CONTROL_MODEL, run)


def learning_curves(past: Past) -> dict[str, Any]:
    """By arm, numbers of labels ``n_train`` and errors of one model of each round, of the control's too if there is one, on all
    frames that were held out.
    """
    numbers = range(len(past.models))
    files, n_train = {ASKED: [past.path(number, MODEL) for number in numbers]}, {
        ASKED: [record.result["n_train"] for record in past.models]}
    if past.recipe.control:
        files[CONTROL] = [past.path(number, CONTROL_MODEL if number else MODEL) for number in numbers]
        n_train[CONTROL] = n_train[ASKED][:1] + [past.rounds[number][CONTROL].result["n_train"] for number in numbers[1:]]

    def run() -> dict[str, Any]:
        held = past.known(RANDOM)
        return {"n_held": len(held), "n_train": n_train,
                "errors": {arm: [_figures(evaluate(_one_of(file), held)) for file in own] for arm, own in files.items()}}

    inputs = {"version": __version__, "held": [record.result["files"] for record in past.labels],
              "models": {arm: [hash_file(file) for file in own] for arm, own in files.items()}}
    return past.work.step("curves", inputs, [], run).result


def _goes_on(recipe: ActiveRecipe, number: int) -> bool:
    """Whether the model of round ``number`` is trained from one that was there."""
    return number > 0 or recipe.start is not None


def _settings_of(past: Past, number: int) -> TrainingConfig:
    """Settings of a round's training."""
    recipe, changes = past.recipe, dict[str, Any](seed=derive_seed(past.recipe.seed, "round", number))
    if _goes_on(recipe, number) and recipe.later_learning_rate is not None:
        changes["learning_rate"] = recipe.later_learning_rate
    return recipe.uncertainty.trained_with(recipe.training.model_copy(update=changes))


def _begin(past: Past, train: Sequence[System], seed: int, member: int) -> TransformerPotential:
    """What member ``member`` of an ensemble, or the only model, goes on from, with reference energies of all labels."""
    recipe, precision = past.recipe, past.recipe.training.precision
    if past.models:
        before = past.present(len(past.models) - 1)
        own = before.members[member] if isinstance(before, Ensemble) else before.first
        assert isinstance(own, TransformerPotential)
        return known_potential(at_new_level(own, train, recipe.to_level), train, precision=precision)[0]
    if recipe.start is not None:
        start = load(recipe.start).single
        if recipe.to_level:
            start = at_new_level(start, train, recipe.to_level)
        return known_potential(start, train, precision=precision)[0]
    isolated = {int(z): energy for z, energy in past.labels[0].result["isolated"].items()}
    return new_potential(train, isolated, recipe.model, precision=precision, seed=seed)[0]


def _errors(potential: Uncertain, old: Sequence[System], fresh: dict[str, list[System]]) -> dict[str, Any]:
    """Of frames held out in earlier rounds, and of what is new: forgetting shows in the first."""
    sets = {"old": old, "asked": fresh[ASKED], "random": fresh[RANDOM]}
    found = {}
    for name, systems in sets.items():
        if systems:
            posteriors = potential.posterior(systems)
            found[name] = _figures(evaluate(potential, systems)) | {
                "uncertainty": assess(posteriors, systems, calibrations=potential.calibrations),
                "doubt": force_reliability(posteriors, systems)}
    return found


def _told(number: int, result: dict[str, Any]) -> str:
    """A line on a round's training, with what it has forgotten."""
    parts = {words: [result[when][name]["force_rmse_meV_A"] for when in ("before", "after") if name in result[when]]
             for name, words in (("random", "new frames at random"), ("asked", "those asked for"), ("old", "earlier rounds'"))}
    errors = "; ".join(f"{words} " + " → ".join(f"{error:.1f}" for error in found) for words, found in parts.items() if found)
    return f"  round {number}, {result['n_train']} labels learned: force RMSE (meV/Å), before → after: {errors}"


def _one_of(file: Path) -> TransformerPotential:
    """The model in a file, or the first of several."""
    found = load(file).potential
    return found.first if isinstance(found, Uncertain) else found


def _figures(errors: dict[str, Any]) -> dict[str, Any]:
    return {name: errors[name] for name in ("n", "force_rmse_meV_A", "energy_rmse_meV_atom")}
