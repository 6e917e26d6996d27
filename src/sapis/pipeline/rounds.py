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
from ase.data import chemical_symbols

from sapis.api import Model, load, save
from sapis.core.errors import ConfigError, LabelerError
from sapis.core.files import hash_file, write_text
from sapis.core.memory import keep_freed_memory
from sapis.core.records import Record
from sapis.core.version import __version__
from sapis.data.formats import read_systems, write_systems
from sapis.data.splits import is_of_new_kind
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.outcome import Failure
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import all_labelled, isolated_atom_energies, label_at, require_not_killed
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.checks import checks, smallest
from sapis.pipeline.choice import ASKED, CONTROL, RANDOM, TOO_CLOSE, NothingToAsk, choose, explored, is_known, worth_a_label
from sapis.pipeline.delta import CheapLabels, correct
from sapis.pipeline.label import executor_of
from sapis.pipeline.learning import learning_curves, train_control, train_round
from sapis.pipeline.past import MODEL, Past
from sapis.pipeline.workspace import Workspace
from sapis.potential.calibration import MIN_ERRORS
from sapis.potential.posterior import Posterior
from sapis.report.active import ActiveStory, write_active_report
from sapis.simulate.candidates import dynamics_cost
from sapis.simulate.structures import load_structure
from sapis.uncertainty.assess import require_enough
from sapis.uncertainty.stopping import enough

STORE, REPORT = "labels.store", "report.html"
N_SHOWN = 3  # structures of each round in the report
CHECK = "check charge, spin and structures"
ONE_NAME = "if they are one method, give both one name (labeler: {level: NAME}); if not, "


@dataclass(frozen=True)
class ActiveOutcome:
    """Where a run left what it made.

    Attributes:
        model: its file.
        report: the page about it.
        model_hash: of the model.
        rounds: the record of each round's training, in order.
        curves: see `learning_curves`.
        reason: why it stopped.
        cost: CPU seconds and FLOPs of all steps of all rounds.
        all_passed: whether the model obeys the laws of physics.
    """

    model: Path
    report: Path
    model_hash: str
    rounds: list[Record]
    curves: dict[str, Any]
    reason: str
    cost: dict[str, float]
    all_passed: bool


def rounds(recipe: ActiveRecipe, *, known: Mapping[str, Sequence[System]] | None = None,
           breadth: Mapping[str, Record] | None = None, cheap: CheapLabels | None = None) -> ActiveOutcome:
    """Do, or finish, the rounds that ``recipe`` asks for. Killed anywhere, the same call goes on.

    Args:
        known: labelled frames by arm to begin with, in place of new labels.
        breadth: records of cheap labels that came first, for the report.
        cheap: these labels, if they are to be corrected by the dear ones and learned beside them.

    Raises:
        SapisError: bad input; all labels and models so far are kept.
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.training.threads)
    work = workspace_of(recipe)
    with work.locked():
        return _Run(recipe, work, known, dict(breadth or {}), cheap).finish()


def workspace_of(recipe: ActiveRecipe) -> Workspace:
    """The folder of a run."""
    return Workspace(recipe.output, [STORE, MODEL, REPORT])


class _Run:
    def __init__(self, recipe: ActiveRecipe, work: Workspace, known: Mapping[str, Sequence[System]] | None,
                 breadth: dict[str, Record], cheap: CheapLabels | None) -> None:
        self.recipe, self.work, self.known, self.breadth, self.cheap = recipe, work, known, breadth, cheap
        self.past = Past(recipe, work)
        self.last_fresh: tuple[int, tuple[list[System], dict[str, int]]] | None = None  # of a round
        self.labeler = build_labeler(recipe.labeler)
        self.level = recipe.to_level or self.labeler.level  # of theory, of all labels
        self.executor = executor_of(recipe.cluster, recipe.workers)
        if recipe.start is not None:
            self._require_known(load(recipe.start))

    def _require_known(self, model: Model) -> None:
        """Say now of elements, charges and levels of theory that the model to begin from does not know them."""
        start, levels, where = model.single, model.potential.conditions.levels, f"start: {self.recipe.start}"
        systems = [system for part in (self.known or {}).values() for system in part]
        systems += load_structure(file=self.recipe.pool) if self.recipe.pool else []
        unknown = [system for system in systems if not is_known(start, replace(system, level=next(iter(levels), "")))]
        if unknown:
            raise ConfigError(
                expected=f"structures of {', '.join(chemical_symbols[z] for z in start.elements)}, of charges that it knows",
                received=f"{len(unknown)} of {len(systems)} others, the first {unknown[0].where}", where=where,
                todo="leave them out, or add to the model what it lacks: `sapis grow MODEL LARGER`")
        if self.recipe.to_level:
            if len(levels) > 1:
                raise ConfigError(expected="a model of one level of theory, to estimate reference energies anew",
                                  received=", ".join(levels), where=where,
                                  todo="add the level to it: `sapis grow MODEL LARGER --level NAME`")
            return
        said = model.card.get("level_of_theory", "not given")
        of_model = list(levels) or ([said] if isinstance(said, str) and said != "not given" else [])
        if of_model and self.level not in of_model:
            raise ConfigError(expected=f"a model of {self.level}, the method of the labels", received=", ".join(of_model),
                              where=where, todo=ONE_NAME + "have its reference energies estimated anew by "
                              "to_level: NAME")

    def finish(self) -> ActiveOutcome:
        reason = f"{self.recipe.rounds} rounds"
        for number in range(self.recipe.rounds + 1):
            if number == 0 and self.known is not None:
                self._given(self.known)
            else:
                if spent := self._is_spent():
                    reason = spent
                    break
                try:
                    self._candidates(number)
                    if reached := self._is_reached(number):
                        reason = reached
                        break
                    self._labels(number, self._choice(number))
                except NothingToAsk as end:
                    if number == 0:
                        raise
                    reason = (f"nothing to ask for in round {number}: {end.expected} were wanted, and there are {end.received}; "
                              f"{end.todo}")
                    break
            if self.cheap is not None:
                correct(self.past, number, self.cheap, self.level, self.executor)
            train_round(self.past, number)
            if self.recipe.control and number:
                train_control(self.past, number)
        source = self.past.path(len(self.past.models) - 1, MODEL)
        learned = self.past.known(ASKED)
        checked = self.work.step("checks", {"version": __version__, "model": hash_file(source)}, [],
                                 lambda: checks(source, smallest(learned)))
        curves = learning_curves(self.past)
        card = {"checks": checked.result["checks"], "validation": curves["errors"][ASKED][-1]}
        final = self.work.step("bundle", {"model": hash_file(source)} | card, [MODEL], lambda: self._bundle(source, card))
        write_active_report(self.work.path(REPORT), ActiveStory(
            self.recipe.name, self._how(), reason, self.past.rounds, curves, self._least_certain(), self.breadth))
        cost = {key: sum(record.cost.get(key, 0.0) for record in self._steps()) for key in ("cpu_seconds", "flops")}
        return ActiveOutcome(self.work.path(MODEL), self.work.path(REPORT), final.result["file_hash"], self.past.models, curves,
                             reason, cost, checked.result["all_passed"])

    # What a round knows

    def _steps(self) -> list[Record]:
        """The records of all rounds so far."""
        return [record for steps in self.past.rounds for record in steps.values()]

    def _how(self) -> list[tuple[str, str]]:
        """What the recipe says of where it looked and how it chose."""
        recipe, dynamics = self.recipe, self.recipe.candidates
        found = [("labels", self.labeler.level), ("uncertainty", recipe.uncertainty.method), ("choice", recipe.strategy)]
        if recipe.pool:
            return [*found, ("candidates", f"structures of {recipe.pool.name}")]
        kelvins = ", ".join(f"{temperature:g}" for temperature in recipe.temperatures_K)
        found.append(("candidates", f"dynamics by the model at {kelvins} K"))
        further = {"displaced structures": recipe.displaced_fraction, "bias of the dynamics": dynamics.bias,
                   "dynamics ends above (eV/Å)": dynamics.max_uncertainty_eV_A,
                   "left out above (eV per atom)": recipe.energy_window_eV_atom,
                   "left out above (eV/Å)": recipe.labeler.max_force_eV_A}
        return found + [(name, f"{value:g}") for name, value in further.items() if value]

    def _least_certain(self) -> list[System]:
        """Of each round some that were asked for."""
        found = []
        for number in range(1, len(self.past.labels)):
            asked = sorted(self.past.labelled(number, ASKED), key=lambda system: -float(system.tags["uncertainty_eV_A"]))
            found += [system.with_tags(caption=f"round {number}: {float(system.tags['uncertainty_eV_A']):.2f} eV/Å")
                      for system in asked[:N_SHOWN]]
        return found

    def _fresh(self, number: int) -> tuple[list[System], dict[str, int]]:
        """Candidates of a round that are worth a label, and how many are not; the model looks at them once."""
        if self.last_fresh is None or self.last_fresh[0] != number:
            self.last_fresh = number, worth_a_label(
                self.recipe, read_systems(self.past.path(number, "candidates.extxyz")), self.past.so_far("chosen"),
                self.past.so_far("labelled"), self.past.present(number - 1) if number else None)
        return self.last_fresh[1]

    # Its steps

    def _candidates(self, number: int) -> None:
        recipe = self.recipe
        model = self.past.path(number - 1, MODEL) if number else recipe.start
        inputs = self.past.settings("system", "pool", "n_candidates", "n_start", "temperatures_K", "candidates",
                                    "displaced_fraction", "seed", "labeler")
        file = recipe.system.file if recipe.system else recipe.pool
        inputs |= {"model": model and hash_file(model), "structures": file and hash_file(file), "method": self.labeler.method}

        def run() -> dict[str, Any]:
            driver = self._driver(model) if model else recipe.labeler
            found, endings, n_lost = explored(recipe, number, driver, self.level, self.past.path(number, "trajectories"))
            write_systems(self.past.path(number, "candidates.extxyz"), found)
            cost = dynamics_cost(self.past.path(number, "trajectories")) if recipe.system else {}
            return {"n": len(found), "endings": endings, "n_lost": n_lost, "cost": cost}

        self.past.step(number, "candidates", inputs, "candidates.extxyz", run)

    def _driver(self, model: Path) -> LabelerConfig:
        """Dynamics by a model; one of several levels of theory is told which."""
        arguments: dict[str, Any] = {"path": str(model), "uncertainty": self.recipe.candidates.asks_for_doubt}
        if self.level in (levels := load(model).potential.conditions.levels) and len(levels) > 1:
            arguments["level"] = self.level
        return LabelerConfig(name="potential", arguments=arguments, is_stateless=True,
                             max_force_eV_A=self.recipe.labeler.max_force_eV_A)

    def _is_spent(self) -> str:
        """Why no round is begun for what it costs, if so."""
        budget = self.recipe.stop.cpu_seconds
        spent = sum(record.cost["cpu_seconds"] for record in (*self.breadth.values(), *self._steps()))
        if budget is None or not self.past.models or spent < budget:
            return ""
        return f"{spent:,.0f} CPU seconds of {budget:,.0f} are spent"

    def _is_reached(self, number: int) -> str:
        """Why no more labels are needed, if they are not."""
        if number == 0:
            return ""
        potential = self.past.present(number - 1)

        def errors() -> list[float]:
            """Of each model so far on the same frames, which none has learned from."""
            held = self.past.known(RANDOM)
            return [evaluate(self.past.present(k), held)["force_rmse_meV_A"] for k in range(number)]

        def fresh() -> tuple[list[Posterior], int]:
            systems, left_out = self._fresh(number)
            # Structures of a pool are no doing of the model.
            beyond = sum(n for why, n in left_out.items() if not (self.recipe.pool and why == TOO_CLOSE))
            return potential.posterior(systems), beyond + self.past.rounds[number]["candidates"].result["n_lost"]

        return enough(self.recipe.stop, [record.result["n_train"] for record in self.past.models], errors, fresh,
                      potential.calibrations["forces"], self.recipe.n_asked)

    def _choice(self, number: int) -> Record:
        inputs = self.past.rounds[number]["candidates"].result["files"] | self.past.settings(
            "strategy", "n_start", "n_per_round", "random_fraction", "control", "seed", "energy_window_eV_atom", "labeler")
        inputs |= {"known": [record.result["files"] for record in self.past.labels],
                   "model": self.past.models[-1].result["files"] if self.past.models else None}

        def run() -> dict[str, Any]:
            fresh, left_out = self._fresh(number)
            potential = self.past.present(number - 1) if number else None
            learned, held, control = (self.past.known(arm) for arm in (ASKED, RANDOM, CONTROL))
            chosen, figures = choose(self.recipe, number, fresh, left_out, learned, held, control, potential)
            write_systems(self.past.path(number, "chosen.extxyz"), chosen)
            return {**figures, "left_out": left_out}

        return self.past.step(number, "choice", inputs, "chosen.extxyz", run)

    def _given(self, known: Mapping[str, Sequence[System]]) -> None:
        """Labelled frames in place of the labels of the first round."""
        systems = [replace(system, level=self.level).with_tags(arm=arm)
                   for arm in (ASKED, RANDOM) for system in known[arm]]

        def run() -> dict[str, Any]:
            require_enough(known[RANDOM])
            for name in ("chosen", "labelled"):
                write_systems(self.past.path(0, f"{name}.extxyz"), systems)
            return {"n_labelled": len(systems), "failures": [], **self._method(0, systems), "cost": {"cpu_seconds": 0.0}}

        inputs = self.past.settings("labeler", "to_level") | {
            "method": self.labeler.method, "given": hash_systems(systems), "n_held": len(known[RANDOM]),
            "start": self.recipe.start is not None}
        self.past.labels.append(self.past.step(0, "labels", inputs, "labelled.extxyz", run))

    def _method(self, number: int, systems: Sequence[System]) -> dict[str, Any]:
        """The method of the labels, and where a new model is begun its energies of isolated atoms."""
        isolated = dict[int, float]()
        if number == 0 and self.recipe.start is None:
            elements = {int(z) for system in systems for z in system.numbers}
            isolated = isolated_atom_energies(self.recipe.labeler, elements, self.executor)
        return {"method": self.labeler.method, "isolated": {str(z): energy for z, energy in isolated.items()}}

    def _labels(self, number: int, chosen: Record) -> None:
        recipe, where = self.recipe, f"round {number}, labeler {self.recipe.labeler.name}"

        def run() -> dict[str, Any]:
            systems = read_systems(self.past.path(number, "chosen.extxyz"))
            self._require_can_train(number, systems)
            done, outcomes = label_at(self.work.path(STORE), systems, recipe.labeler, self.executor, at_once=True)
            labelled = [outcome for outcome in outcomes if isinstance(outcome, System)]
            require_not_killed(outcomes, where)
            # Each structure once: the control may have one that was asked for.
            failed = {systems[k].structure_hash(): {"number": k, "kind": outcome.kind, "reason": outcome.reason}
                      for k, outcome in enumerate(outcomes) if isinstance(outcome, Failure)}
            failures = list(failed.values())
            labelled = _held_of_known_kind(labelled) if number == 0 else labelled  # later ones are chosen so
            counts = Counter(system.tags["arm"] for system in labelled)
            if number == 0 and (counts[ASKED] == 0 or counts[RANDOM] < MIN_ERRORS):
                raise LabelerError(
                    expected=f"labels of frames that were asked for, and {MIN_ERRORS} at random",
                    received=f"{counts[ASKED]} and {counts[RANDOM]} of {len(systems)}: "
                    f"{failures[0]['reason'] if failures else 'none was asked for'}", where=where, todo=CHECK)
            path = self.past.path(number, "labelled.extxyz")
            write_systems(path, [replace(system, level=self.level) for system in labelled])
            if not labelled:
                write_text(path, "\n")  # no frames, and yet no file that was cut off
            n_labelled = len({system.structure_hash() for system in labelled})
            spent_before = sum(record.cost["cpu_seconds"] for record in self.past.labels)
            return {"n_labelled": n_labelled, "failures": failures, **self._method(number, systems),
                    "cost": {"cpu_seconds": done.total_cpu_seconds - spent_before}}

        inputs = self.past.settings("labeler", "to_level") | chosen.result["files"] | {"method": self.labeler.method}
        if number == 0:
            inputs["start"] = recipe.start is not None
        record = self.past.step(number, "labels", inputs, "labelled.extxyz", run)
        if not record.result["n_labelled"]:  # what it cost and why they failed is in its record
            failures = record.result["failures"]
            raise NothingToAsk(expected="labels", received=f"none of {len(failures)}: {failures[0]['reason']}", where=where,
                               todo=CHECK)
        self.past.labels.append(record)

    def _require_can_train(self, number: int, systems: Sequence[System]) -> None:
        """Say before they are bought that new labels would be for a training that is there and has begun with others."""
        folder = self.past.path(number, "training")
        if folder.exists() and not all_labelled(self.work.path(STORE), systems, self.recipe.labeler):
            raise ConfigError(
                expected="the recipe that this folder was begun with", received="one that asks for other labels",
                where=f"round {number}, {folder}", todo="choose another output folder, or delete the folders of this round and "
                "of later ones: labels so far are kept in any case")

    def _bundle(self, source: Path, card: dict[str, Any]) -> dict[str, Any]:
        model = load(source)
        return {"file_hash": save(self.work.path(MODEL), model.potential, model.card | card)}


def _held_of_known_kind(labelled: Sequence[System]) -> list[System]:
    """``labelled``, in which frames at random of an element or charge that none of the others has are learned from: labels of the
    others may have failed.
    """
    others = [system for system in labelled if system.tags["arm"] == ASKED]
    is_new = is_of_new_kind(labelled, others)
    return [system.with_tags(arm=ASKED) if new else system for system, new in zip(labelled, is_new, strict=True)]
