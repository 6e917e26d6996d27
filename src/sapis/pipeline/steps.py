"""What each step of a run does. Each takes what it needs and returns the result of its record, JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sapis.api import Model, load, save
from sapis.core.errors import DataError
from sapis.core.files import hash_json
from sapis.core.records import Stopwatch
from sapis.core.seeds import derive_seed
from sapis.data.formats import read_systems, write_systems
from sapis.data.lint import lint, lint_splits, raise_on_errors
from sapis.data.reference import ReferenceEnergies
from sapis.data.splits import Split, holdout_temperature, split_in_time
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import LocalExecutor
from sapis.executors.outcome import Failure
from sapis.labelers.labelling import isolated_atom_energies, label_at
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.auto import grow_on
from sapis.pipeline.auto_config import AutoConfig, GrowthConfig
from sapis.pipeline.choice import ASKED, RANDOM
from sapis.pipeline.members import trained_members
from sapis.pipeline.pool import Pool
from sapis.pipeline.recipe import Recipe
from sapis.pipeline.rounds import rounds
from sapis.potential.bundle import hash_tensors
from sapis.simulate.candidates import dynamics_cost, make_candidates
from sapis.simulate.structures import load_structure
from sapis.training.config import TrainingConfig
from sapis.training.fit import by_symbol
from sapis.training.loop import Training
from sapis.uncertainty.assess import assess, force_reliability
from sapis.uncertainty.config import UncertaintyConfig
from sapis.uncertainty.make import uncertain
from sapis.uncertainty.uncertain import Uncertain

PARTS = ("train", "validation", "test", "hot")
MIN_FRAMES = 10
OF_WIDTH = ("n_channels", "n_channels_carried", "n_heads", "n_hidden_readout")  # settings that follow from the width


def candidates(recipe: Recipe, folder: Path, target: Path) -> dict[str, Any]:
    """Structures worth labelling, from molecular dynamics with the labeler and from rattling."""
    starts = load_structure(recipe.system.smiles, recipe.system.file, recipe.system.charge, recipe.system.spin,
                            n_conformers=recipe.candidates.n_conformers, seed=recipe.seed)
    hot, n_total = recipe.hot_temperature_K, recipe.budget.labels
    # For rounds of asking: the labeler knows no doubt.
    how = recipe.candidates.without_doubt() if recipe.active else recipe.candidates
    n_hot = round(n_total * recipe.split.hot) if hot is not None else 0
    seed = derive_seed(recipe.seed, "candidates")
    found, endings = make_candidates(starts, recipe.labeler, recipe.temperatures_K, n_total - n_hot, how, seed, folder,
                                     recipe.workers)
    if hot is not None:
        from_dynamics = how.model_copy(update={"rattle_fraction": 0.0})
        hotter, of_these = make_candidates(starts, recipe.labeler, [hot], n_hot, from_dynamics, seed, folder, recipe.workers)
        found, endings = found + hotter, endings | of_these
    write_systems(target, found)
    return {
        "n": len(found), "by_source": dict(Counter(str(system.tags.get("source", "start")) for system in found)),
        "temperatures_K": [*recipe.temperatures_K, *([hot] if hot is not None else [])],
        "n_starts": len(starts), "formula": starts[0].formula, "endings": endings, "cost": dynamics_cost(folder),
    }


def labels(recipe: Recipe, source: Path, store: Path, target: Path) -> dict[str, Any]:
    """Energies and forces of the candidates, kept in ``store``; failures are recorded, not labels."""
    systems = read_systems(source)
    executor = LocalExecutor(recipe.workers)
    done, outcomes = label_at(store, systems, recipe.labeler, executor)
    labelled = [outcome for outcome in outcomes if isinstance(outcome, System)]
    failures = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
    if len(labelled) < MIN_FRAMES:
        reasons = Counter(failure.reason for _, failure in failures).most_common(1)
        raise DataError(
            expected=f"at least {MIN_FRAMES} labelled structures",
            received=f"{len(labelled)} of {len(systems)}; most frequent failure: {reasons[0][0] if reasons else 'none'}",
            where=f"labeler {recipe.labeler.name}", todo="check charge, spin and structure, or choose another labeler",
        )
    isolated = isolated_atom_energies(recipe.labeler, {int(z) for system in labelled for z in system.numbers}, executor)
    write_systems(target, labelled)
    return {
        "n_requested": len(systems), "n_labelled": len(labelled), "method": done.method,
        "failures": [{"index": index, "kind": failure.kind, "reason": failure.reason} for index, failure in failures],
        "isolated_atoms": by_symbol(isolated), "isolated": {str(z): energy for z, energy in isolated.items()},
        "cost": {"cpu_seconds": done.total_cpu_seconds},
    }


def data(recipe: Recipe, source: Path, folder: Path) -> dict[str, Any]:
    """Lint, split in time, keep the hot frames apart."""
    systems = read_systems(source, require=("energy", "forces"))
    hot: list[System] = []
    if recipe.hot_temperature_K is not None:
        try:
            systems, hot = holdout_temperature(systems, recipe.hot_temperature_K)
        except DataError as error:
            raise DataError(
                expected=error.expected, received=f"{error.received}; its trajectories or labels failed",
                where="hot_temperature_K", todo="choose a lower one, or null for no such test; all labels are kept",
            ) from None
    chosen = recipe.split
    fractions = (chosen.train, chosen.validation, 1 - chosen.train - chosen.validation)
    split = split_in_time(systems, fractions=fractions, seed=derive_seed(recipe.seed, "split"))
    findings = lint(systems) + lint_splits(split.train, split.validation, [*split.test, *hot])
    raise_on_errors(findings, waived=chosen.waive)
    parts = dict(zip(PARTS, (split.train, split.validation, split.test, hot), strict=True))
    for name, part in parts.items():
        if part:
            write_systems(folder / f"{name}.extxyz", part)
        else:  # an earlier split may have left one
            (folder / f"{name}.extxyz").unlink(missing_ok=True)
    return {
        "n_train": len(split.train), "n_validation": len(split.validation), "n_test": len(split.test), "n_ood": len(hot),
        "n_dropped": len(split.dropped), "ood_temperature_K": recipe.hot_temperature_K,
        "findings": [asdict(finding) for finding in findings],
    }


def train(parts: Mapping[str, Sequence[System]], begun: tuple[TransformerPotential, dict[str, ReferenceEnergies]],
          training: TrainingConfig, folder: Path, target: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Train a potential on ``parts`` and write it as a bundle with ``card``; ``begun`` is from `sapis.training.fit`."""
    potential, references = begun
    run = Training(potential, parts["train"], parts["validation"], training, folder)
    run.run()
    return keep_trained(parts, run, references, target, card)


def grow(parts: Mapping[str, Sequence[System]], isolated: Mapping[int, float], growth: GrowthConfig, model: ModelConfig,
         training: TrainingConfig, folder: Path, target: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The same with a controller that decides how far the model grows, and on how many of the frames it trains."""
    shared = {name: value for name, value in model.model_dump().items() if name not in (*OF_WIDTH, *growth.axes)}
    settings = AutoConfig(**growth.model_dump(), model=shared, training=training, seed=training.seed)
    data_hash = hash_json([hash_systems(parts[name]) for name in ("train", "validation", "test")])
    split = Split(parts["train"], parts["validation"], parts["test"])
    grown = grow_on(Pool(split, isolated, data_hash=data_hash, seed=training.seed), folder, settings)
    result = keep_trained(parts, grown.training, grown.references, target, card)
    cost = {name: grown.record.cost[name] for name in ("cpu_seconds", "flops")}
    return {**result, "growth": grown.record.result, "flops": cost["flops"], "cost": cost}


def keep_trained(parts: Mapping[str, Sequence[System]], run: Training, references: Mapping[str, ReferenceEnergies], target: Path,
                 card: dict[str, Any]) -> dict[str, Any]:
    """The result of a training that is finished; its potential as a bundle."""
    potential, progress, training = run.potential, run.progress, run.config
    weights_hash = hash_tensors(dict(potential.state_dict()), hash_json(potential.settings()))
    named = {level if len(references) > 1 else "": found for level, found in references.items()}
    result = {
        "n_parameters": potential.n_parameters, "n_steps": progress.step, "n_epochs": progress.step / run.n_batches,
        "flops": progress.flops, "backend": ", ".join(progress.backends), "history": progress.history,
        "config": training.model_dump(), "model": potential.config.model_dump(),
        "model_hash": weights_hash, "best_validation_loss": progress.best_score,
        "reference_energies": {key: value for level, found in named.items() for key, value in by_symbol(
            {z: found.values[z] for z in potential.elements if z in found.values}, level).items()},
        "reference_source": ", ".join(sorted({found.source[z] for found in named.values() for z in potential.elements
                                              if z in found.source})),
        "force_scale_eV_A": potential.scale, "average_neighbors": potential.average_neighbors,
        "cost": {"cpu_seconds": progress.cpu_seconds, "flops": progress.flops},
    }
    # The bundle holds no clock readings: the same training gives the same file, byte for byte.
    clockless = [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in progress.history]
    record = {key: value for key, value in result.items() if key not in ("cost", "history")}
    save(target, potential, {
        **card, "training": {**record, "history": clockless},
        "data": {name: {"n": len(part), "hash": hash_systems(part)} for name, part in parts.items() if part},
        "seed": training.seed,
    })
    return result


def uncertainty(source: Path, target: Path, parts: Mapping[str, Sequence[System]], config: UncertaintyConfig,
                training: TrainingConfig, folder: Path, begin: Callable[[int], TransformerPotential], *, flops: float,
                workers: int | None = None) -> dict[str, Any]:
    """The trained model with an uncertainty that is calibrated on the validation frames.

    Args:
        training: of the model, and of the members of an ensemble, each with a seed of its own, in ``folder``.
        begin: an untrained potential from a seed.
        flops: what the training of the model took, see `trained_members`.
        workers: processes for the members.
    """
    model, watch = load(source), Stopwatch()
    spent = {"cpu_seconds": 0.0, "flops": 0.0}

    def others() -> list[TransformerPotential]:
        members, cost = trained_members(config.n_members, lambda seed, number: begin(seed), parts["train"], parts["validation"],
                                        training, folder, flops=flops, workers=workers)
        spent.update(cost)
        return members

    found = uncertain(model.single, config, parts["train"], parts["validation"], others=others, seed=training.seed)
    calibrations = {name: each.to_json() for name, each in found.calibrations.items()}
    save(target, found, {**model.card, "uncertainty": {**config.model_dump(mode="json"), "calibrations": calibrations}})
    return {"method": config.method, "calibrations": calibrations,
            "cost": {"cpu_seconds": spent["cpu_seconds"] or watch.cost()["cpu_seconds"], "flops": spent["flops"]}}


def ask(recipe: ActiveRecipe, parts: Mapping[str, Sequence[System]]) -> dict[str, Any]:
    """Rounds of asking that begin from the training and validation frames of ``parts``."""
    outcome = rounds(recipe, known={ASKED: parts["train"], RANDOM: parts["validation"]})
    last = outcome.rounds[-1].result
    return {"method": recipe.uncertainty.method, "reason": outcome.reason, "n_rounds": len(outcome.rounds) - 1,
            "n_labels": last["n_train"] + last["n_held"] - len(parts["train"]) - len(parts["validation"]),
            "held": outcome.curves["errors"][ASKED],
            "cost": outcome.cost}


def test(model: Path, parts: dict[str, list[System]]) -> dict[str, Any]:
    """Errors on the held-out frames and on the hotter ones."""
    return {"sets": errors(model, {("ood" if name == "hot" else name): parts[name]
                                   for name in ("test", "hot") if parts.get(name)}, home="test")}


def errors(model: Path, sets: Mapping[str, Sequence[System]], *, home: str = "") -> dict[str, Any]:
    """Errors on each of ``sets``, and how well the model knew them, if it has an uncertainty.

    Args:
        home: the set that is like what the model has learned from; deviations may tell the others from it.
    """
    potential = load(model).potential
    found = {name: evaluate(potential, systems) for name, systems in sets.items()}
    if isinstance(potential, Uncertain):
        posteriors = {name: potential.posterior(systems) for name, systems in sets.items()
                      if any(system.energy is not None or system.forces is not None for system in systems)}  # not stress alone
        for name, own in posteriors.items():
            at_home = posteriors.get(home, ()) if name != home else ()
            found[name]["uncertainty"] = assess(own, sets[name], own=at_home, calibrations=potential.calibrations)
            found[name]["parity"]["doubt"] = force_reliability(own, sets[name])
    return found


def bundle(source: Path, target: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """The trained model with what was measured of it in its card."""
    model: Model = load(source)
    file_hash = save(target, model.potential, {**model.card, **measured})
    return {"model_hash": model.card["training"]["model_hash"], "file_hash": file_hash}


def read_parts(folder: Path) -> dict[str, list[System]]:
    """The parts that `data` wrote."""
    return {name: read_systems(folder / f"{name}.extxyz") for name in PARTS if (folder / f"{name}.extxyz").exists()}

