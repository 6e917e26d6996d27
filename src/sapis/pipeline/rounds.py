"""Rounds of asking and learning, until a stop rule fires.

A round makes candidates (molecular dynamics with the present model, or a pool), chooses among them by what the model does not
know, labels them, goes on training on all labels so far, and calibrates. Part of the labels of each round are chosen at random:
they are never trained on, validate, and their errors before the training say how good the model is where it goes.

Each step has a record that names the hash of all it was made from (`sapis.pipeline.workspace`), so that a run killed anywhere
goes on with the same command, and no label is bought twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sapis.api import load, save
from sapis.core.errors import ConfigError
from sapis.core.files import hash_file, hash_json
from sapis.core.memory import keep_freed_memory
from sapis.core.progress import console
from sapis.core.records import Record
from sapis.core.seeds import derive_seed
from sapis.core.version import __version__
from sapis.data.formats import read_systems, write_systems
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.outcome import Failure
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import isolated_atom_energies, label_at
from sapis.model.potential import TransformerPotential
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.choice import ASKED, CONTROL, RANDOM, NothingToAsk, choose, explored, worth_a_label
from sapis.pipeline.label import executor_of
from sapis.pipeline.members import trained_members
from sapis.pipeline.workspace import Workspace
from sapis.potential.bundle import hash_tensors
from sapis.potential.calibration import MIN_ERRORS
from sapis.potential.posterior import Posterior
from sapis.report.active import ActiveStory, write_active_report
from sapis.training.config import TrainingConfig
from sapis.training.fit import at_new_level, known_potential, new_potential
from sapis.training.loop import Training
from sapis.uncertainty.assess import assess, force_reliability, require_enough
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.make import uncertain
from sapis.uncertainty.stopping import enough
from sapis.uncertainty.uncertain import Uncertain

STORE, MODEL, REPORT = "labels.store", "model.sapis", "report.html"
CONTROL_MODEL = "control.sapis"
N_SHOWN = 3  # structures of each round in the report


@dataclass(frozen=True)
class ActiveOutcome:
    """Where a run left what it made.

    Attributes:
        model: its file.
        model_hash: of that.
        rounds: the record of each round's training, in order.
        reason: why it stopped.
    """

    model: Path
    model_hash: str
    rounds: list[Record]
    reason: str


def rounds(recipe: ActiveRecipe, *, known: Mapping[str, Sequence[System]] | None = None,
           breadth: Mapping[str, Record] | None = None) -> ActiveOutcome:
    """Do, or finish, the rounds that ``recipe`` asks for. Killed anywhere, the same call goes on.

    Args:
        known: labelled frames by arm to begin with, in place of new labels.
        breadth: records of cheap labels that came first, for the report.

    Raises:
        SapisError: bad input; all labels and models so far are kept.
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.training.threads)
    work = Workspace(recipe.output, [STORE, MODEL, REPORT])
    with work.locked():
        return _Run(recipe, work, known, dict(breadth or {})).finish()


class _Run:
    def __init__(self, recipe: ActiveRecipe, work: Workspace, known: Mapping[str, Sequence[System]] | None,
                 breadth: dict[str, Record]) -> None:
        self.recipe, self.work, self.known, self.breadth = recipe, work, known, breadth
        self.models: list[Record] = []
        self.labels: list[Record] = []
        self.rounds: list[dict[str, Record]] = []
        self.last_fresh: tuple[int, tuple[list[System], dict[str, int]]] | None = None  # of a round
        self.labeler = build_labeler(recipe.labeler)
        self.level = recipe.to_level or self.labeler.level  # of theory, of all labels
        self.executor = executor_of(recipe.cluster, recipe.workers)
        self._require_one_level()

    def _require_one_level(self) -> None:
        """Say now if what there is has other energies than the labels to come: those of two methods differ by thousands of eV."""
        todo = "if they are one method, give both one name (labeler: {level: NAME}); if not, "
        named = {system.level for part in (self.known or {}).values() for system in part} - {"", self.level, self.labeler.level}
        if named:
            raise ConfigError(expected=f"frames of {self.level}, the method of the labels", received=", ".join(sorted(named)),
                              where="data", todo=todo + "label them anew")
        if self.recipe.start is None or self.recipe.to_level:
            return
        model = load(self.recipe.start)
        said = model.card.get("level_of_theory", "not given")
        of_model = list(model.potential.conditions.levels) or ([said] if isinstance(said, str) and said != "not given" else [])
        if of_model and self.level not in of_model:
            raise ConfigError(expected=f"a model of {self.level}, the method of the labels", received=", ".join(of_model),
                              where=f"start: {self.recipe.start}", todo=todo + "have its reference energies estimated anew by "
                              "to_level: NAME")

    def finish(self) -> ActiveOutcome:
        reason = f"{self.recipe.rounds} rounds"
        for number in range(self.recipe.rounds + 1):
            if number == 0 and self.known is not None:
                self._given(self.known)
            else:
                try:
                    self._candidates(number)
                    if reached := self._is_reached(number):
                        reason = reached
                        break
                    self._labels(number, self._choice(number))
                except NothingToAsk as end:
                    if number == 0:
                        raise
                    reason = f"nothing to ask for in round {number}: {end.expected} were wanted, and there are {end.received}"
                    break
            self._model(number)
            if self.recipe.control and number:
                self._control(number)
        source = self._path(len(self.models) - 1, MODEL)
        final = self.work.step("bundle", {"model": hash_file(source)}, [MODEL], lambda: self._bundle(source))
        curves = self._curves() if self.recipe.control and len(self.models) > 1 else {}
        write_active_report(self.work.path(REPORT), ActiveStory(
            self.recipe.name, reason, self.rounds, self._least_certain(), self.breadth, curves))
        return ActiveOutcome(self.work.path(MODEL), final.result["file_hash"], self.models, reason)

    # What a round knows

    def _path(self, number: int, name: str) -> Path:
        return self.work.path(f"round-{number:02d}/{name}")

    def _step(self, number: int, name: str, inputs: dict[str, Any], file: str, run: Any) -> Record:
        self._path(number, "").mkdir(parents=True, exist_ok=True)
        title = f"round-{number:02d}"
        record = self.work.step(f"{title}-{name}", {"version": __version__} | inputs, [f"{title}/{file}"], run)
        if number == len(self.rounds):
            self.rounds.append({})
        self.rounds[number][name] = record
        return record

    def _least_certain(self) -> list[System]:
        """Of each round some that were asked for."""
        found = []
        for number in range(1, len(self.labels)):
            asked = sorted(self._labelled(number, ASKED), key=lambda system: -float(system.tags["uncertainty_eV_A"]))
            found += [system.with_tags(caption=f"round {number}: {float(system.tags['uncertainty_eV_A']):.2f} eV/Å")
                      for system in asked[:N_SHOWN]]
        return found

    def _settings(self, *names: str) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json", include=set(names))

    def _so_far(self, name: str) -> list[System]:
        """The frames of all rounds with labels: ``chosen`` or ``labelled``."""
        return [system for number in range(len(self.labels)) for system in read_systems(self._path(number, f"{name}.extxyz"))]

    def _known(self, arm: str) -> list[System]:
        """All labelled frames of an arm so far."""
        return [system for number in range(len(self.labels)) for system in self._labelled(number, arm)]

    def _labelled(self, number: int, arm: str) -> list[System]:
        """Those of a round."""
        return [system for system in read_systems(self._path(number, "labelled.extxyz")) if system.tags["arm"] == arm]

    def _fresh(self, number: int) -> tuple[list[System], dict[str, int]]:
        """Candidates of a round that are worth a label, and how many are not; the model looks at them once."""
        if self.last_fresh is None or self.last_fresh[0] != number:
            self.last_fresh = number, worth_a_label(
                self.recipe, read_systems(self._path(number, "candidates.extxyz")), self._so_far("chosen"),
                self._so_far("labelled"), self._present(number - 1) if number else None)
        return self.last_fresh[1]

    # Its steps

    def _candidates(self, number: int) -> None:
        recipe = self.recipe
        model = self._path(number - 1, MODEL) if number else recipe.start
        inputs = self._settings("system", "pool", "n_candidates", "n_start", "temperatures_K", "candidates", "displaced_fraction",
                                "seed", "labeler")
        file = recipe.system.file if recipe.system else recipe.pool
        inputs |= {"model": model and hash_file(model), "structures": file and hash_file(file), "method": self.labeler.method}

        def run() -> dict[str, Any]:
            driver = self._driver(model) if model else recipe.labeler
            found, endings = explored(recipe, number, driver, self.level, self._path(number, "trajectories"))
            write_systems(self._path(number, "candidates.extxyz"), found)
            return {"n": len(found), "endings": endings}

        self._step(number, "candidates", inputs, "candidates.extxyz", run)

    def _driver(self, model: Path) -> LabelerConfig:
        """Dynamics by a model; one of several levels of theory is told which."""
        arguments = {"path": str(model)}
        if self.level in (levels := load(model).potential.conditions.levels) and len(levels) > 1:
            arguments["level"] = self.level
        return LabelerConfig(name="potential", arguments=arguments, is_stateless=True,
                             max_force_eV_A=self.recipe.labeler.max_force_eV_A)

    def _is_reached(self, number: int) -> str:
        """Why no more labels are needed, if they are not."""
        if number == 0:
            return ""
        potential = self._present(number - 1)

        def errors() -> list[float]:
            """Of each model so far on the same frames, which none has learned from."""
            held = self._known(RANDOM)
            return [evaluate(self._present(k), held)["force_rmse_meV_A"] for k in range(number)]

        def fresh() -> tuple[list[Posterior], int]:
            systems, left_out = self._fresh(number)
            return potential.posterior(systems), sum(left_out.values()) + len(self.rounds[number]["candidates"].result["endings"])

        return enough(self.recipe.stop, [record.result["n_train"] for record in self.models], errors, fresh,
                      potential.calibrations["forces"])

    def _present(self, number: int) -> Uncertain:
        """The model of a round."""
        potential = load(self._path(number, MODEL)).potential
        assert isinstance(potential, Uncertain)
        return potential

    def _choice(self, number: int) -> Record:
        inputs = self.rounds[number]["candidates"].result["files"] | self._settings(
            "strategy", "n_start", "n_per_round", "random_fraction", "control", "seed", "energy_window_eV_atom", "labeler")
        inputs |= {"known": [record.result["files"] for record in self.labels],
                   "model": self.models[-1].result["files"] if self.models else None}

        def run() -> dict[str, Any]:
            fresh, left_out = self._fresh(number)
            potential = self._present(number - 1) if number else None
            chosen, figures = choose(self.recipe, number, fresh, left_out, self._known(ASKED), potential)
            write_systems(self._path(number, "chosen.extxyz"), chosen)
            return {**figures, "left_out": left_out}

        return self._step(number, "choice", inputs, "chosen.extxyz", run)

    def _given(self, known: Mapping[str, Sequence[System]]) -> None:
        """Labelled frames in place of the labels of the first round."""
        systems = [replace(system, level=self.level).with_tags(arm=arm)
                   for arm in (ASKED, RANDOM) for system in known[arm]]

        def run() -> dict[str, Any]:
            require_enough(known[RANDOM])
            for name in ("chosen", "labelled"):
                write_systems(self._path(0, f"{name}.extxyz"), systems)
            return {"n_labelled": len(systems), "failures": [], **self._method(0, systems), "cost": {"cpu_seconds": 0.0}}

        inputs = self._settings("labeler", "to_level") | {"given": hash_systems(systems), "start": self.recipe.start is not None}
        self.labels.append(self._step(0, "labels", inputs, "labelled.extxyz", run))

    def _method(self, number: int, systems: Sequence[System]) -> dict[str, Any]:
        """The method of the labels, and where a new model is begun its energies of isolated atoms."""
        isolated = dict[int, float]()
        if number == 0 and self.recipe.start is None:
            elements = {int(z) for system in systems for z in system.numbers}
            isolated = isolated_atom_energies(self.recipe.labeler, elements, self.executor)
        return {"method": self.labeler.method, "isolated": {str(z): energy for z, energy in isolated.items()}}

    def _labels(self, number: int, chosen: Record) -> None:
        recipe = self.recipe

        def run() -> dict[str, Any]:
            systems = read_systems(self._path(number, "chosen.extxyz"))
            done, outcomes = label_at(self.work.path(STORE), systems, recipe.labeler, self.executor, at_once=True)
            labelled = [outcome for outcome in outcomes if isinstance(outcome, System)]
            failures = [{"number": k, "kind": outcome.kind, "reason": outcome.reason} for k, outcome in enumerate(outcomes)
                        if isinstance(outcome, Failure)]
            counts = Counter(system.tags["arm"] for system in labelled)
            if counts[ASKED] == 0 or (number == 0 and counts[RANDOM] < MIN_ERRORS):
                why = failures[0]["reason"] if failures else "none was asked for"
                raise NothingToAsk(
                    expected=f"labels of frames that were asked for, and {MIN_ERRORS} at random to begin with",
                    received=f"{counts[ASKED]} and {counts[RANDOM]} of {len(systems)}: {why}",
                    where=f"round {number}, labeler {recipe.labeler.name}", todo="check charge, spin and structures")
            write_systems(self._path(number, "labelled.extxyz"), [replace(system, level=self.level) for system in labelled])
            n_labelled = len({system.structure_hash() for system in labelled})  # the control may have one that was asked for
            return {"n_labelled": n_labelled, "failures": failures, **self._method(number, systems),
                    "cost": {"cpu_seconds": done.total_cpu_seconds - sum(record.cost["cpu_seconds"] for record in self.labels)}}

        inputs = self._settings("labeler", "to_level") | chosen.result["files"] | {"method": self.labeler.method}
        self.labels.append(self._step(number, "labels", inputs, "labelled.extxyz", run))

    def _model(self, number: int) -> None:
        recipe = self.recipe
        later = ("later_learning_rate",) if number else ()
        inputs = self._settings("model", "training", "uncertainty", "seed", "to_level", *later) | {
            "labels": [record.result["files"] for record in self.labels],
            "from": self.models[-1].result["files"] if self.models else recipe.start and hash_file(recipe.start)}

        def run() -> dict[str, Any]:
            train, held = self._known(ASKED), self._known(RANDOM)
            fresh = {arm: self._labelled(number, arm) for arm in (ASKED, RANDOM)}
            old = held[: len(held) - len(fresh[RANDOM])]
            settings = self._training(number)
            before = self._errors(self._present(number - 1), old, fresh) if number else {}
            folder = self._path(number, "training")
            ages = ["old"] * len(old) + ["new"] * len(fresh[RANDOM]) if old else []
            first = Training(self._begin(train, settings.seed, 0), train, held, settings, folder / "member-0", groups=ages)
            progress = first.run()
            spent = [{"cpu_seconds": progress.cpu_seconds, "flops": progress.flops}]

            def others() -> list[TransformerPotential]:
                members, cost = trained_members(
                    recipe.uncertainty.n_members, lambda seed, k: self._begin(train, seed, k), train, held, settings, folder,
                    flops=progress.flops, workers=recipe.workers)
                spent.append(cost)
                return members

            found = uncertain(first.potential, recipe.uncertainty, train, held, others=others, seed=settings.seed)
            doubt = recipe.uncertainty.model_dump(mode="json")
            doubt["calibrations"] = {name: each.to_json() for name, each in found.calibrations.items()}
            weights_hash = hash_tensors(dict(found.state_dict()), hash_json(found.settings()))
            card = {"level_of_theory": self.labels[0].result["method"], "round": number, "uncertainty": doubt,
                    "training": {"model_hash": weights_hash, "config": settings.model_dump(mode="json")},
                    "data": {name: {"n": len(part), "hash": hash_systems(part)} for name, part in (
                        ("train", train), ("validation", held))}}
            save(self._path(number, MODEL), found, card)
            after = self._errors(found, old, fresh)
            return {"n_train": len(train), "n_held": len(held), "before": before, "after": after,
                    "held": _figures(evaluate(found, held)),
                    "cost": {key: sum(each[key] for each in spent) for key in ("cpu_seconds", "flops")}}

        self.models.append(self._step(number, "model", inputs, MODEL, run))
        console.print(_told(number, self.models[-1].result))

    def _training(self, number: int) -> TrainingConfig:
        """Settings of a round's training."""
        recipe, changes = self.recipe, dict[str, Any](seed=derive_seed(self.recipe.seed, "round", number))
        if number and recipe.later_learning_rate is not None:
            changes["learning_rate"] = recipe.later_learning_rate
        return recipe.uncertainty.trained_with(recipe.training.model_copy(update=changes))

    def _control(self, number: int) -> None:
        """A model that goes on from the first one with labels at random, as many as were asked for."""
        recipe, before = self.recipe, self._path(number - 1, CONTROL_MODEL if number > 1 else MODEL)
        inputs = self._settings("training", "uncertainty", "seed", "to_level", "later_learning_rate") | {
            "labels": [record.result["files"] for record in self.labels], "from": hash_file(before)}

        def run() -> dict[str, Any]:
            train, held = self._labelled(0, ASKED) + self._known(CONTROL), self._known(RANDOM)
            start = at_new_level(_one_of(before), train, recipe.to_level)
            potential, _ = known_potential(start, train, precision=recipe.training.precision)
            training = Training(potential, train, held, self._training(number), self._path(number, "training") / CONTROL)
            spent = training.run()
            save(self._path(number, CONTROL_MODEL), training.potential, {"level_of_theory": self.labels[0].result["method"]})
            return {"n_train": len(train), "cost": {"cpu_seconds": spent.cpu_seconds, "flops": spent.flops}}

        self._step(number, CONTROL, inputs, CONTROL_MODEL, run)

    def _curves(self) -> dict[str, Any]:
        """Errors of one model of each round, of the control's too, on all frames that were held out: both have the same number
        of labels.
        """
        numbers = range(len(self.models))
        files = {ASKED: [self._path(number, MODEL) for number in numbers],
                 CONTROL: [self._path(number, CONTROL_MODEL if number else MODEL) for number in numbers]}

        def run() -> dict[str, Any]:
            held = self._known(RANDOM)
            return {"n_train": [record.result["n_train"] for record in self.models], "n_held": len(held), **{
                arm: [_figures(evaluate(_one_of(file), held)) for file in own] for arm, own in files.items()}}

        inputs = {"version": __version__, "held": [record.result["files"] for record in self.labels],
                  "models": {arm: [hash_file(file) for file in own] for arm, own in files.items()}}
        return self.work.step("curves", inputs, [], run).result

    def _begin(self, train: Sequence[System], seed: int, member: int) -> TransformerPotential:
        """What member ``member`` of an ensemble, or the only model, goes on from, with reference energies of all labels."""
        recipe, precision = self.recipe, self.recipe.training.precision
        if self.models:
            before = self._present(len(self.models) - 1)
            own = before.members[member] if isinstance(before, Ensemble) else before.first
            assert isinstance(own, TransformerPotential)
            return known_potential(at_new_level(own, train, recipe.to_level), train, precision=precision)[0]
        if recipe.start is not None:
            start = load(recipe.start).single
            if recipe.to_level:
                start = at_new_level(start, train, recipe.to_level)
            return known_potential(start, train, precision=precision)[0]
        isolated = {int(z): energy for z, energy in self.labels[0].result["isolated"].items()}
        return new_potential(train, isolated, recipe.model, precision=precision, seed=seed)[0]

    @staticmethod
    def _errors(potential: Uncertain, old: Sequence[System], fresh: dict[str, list[System]]) -> dict[str, Any]:
        """Of frames held out in earlier rounds, and of what is new: forgetting shows in the first."""
        sets = {"old": old, "asked": fresh[ASKED], "random": fresh[RANDOM]}
        found = {}
        for name, systems in sets.items():
            if len(systems) > 1:
                posteriors = potential.posterior(systems)
                found[name] = _figures(evaluate(potential, systems)) | {
                    "uncertainty": assess(posteriors, systems), "doubt": force_reliability(posteriors, systems)}
        return found

    def _bundle(self, source: Path) -> dict[str, Any]:
        model = load(source)
        return {"file_hash": save(self.work.path(MODEL), model.potential, model.card)}


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
