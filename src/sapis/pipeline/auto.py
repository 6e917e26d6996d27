"""`sapis scale auto`: one training that decides as it goes what its budget buys: steps, frames or a larger model.

The folder holds ``plan.json`` (settings, data, costs), ``events.json`` (each look and what was decided from it) and one
training folder a stage: a stage ends when frames are added, the model grows or a growth is taken back, and for the last part of
the budget, in which the learning rate falls. All else follows from the events, so that the same command goes on after a kill and
does the same.

Everything is paid in FLOPs of training; a label costs those that could be done in its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapis.api import load, save
from sapis.core.errors import ConfigError, FileError
from sapis.core.files import hash_file, hash_json, read_json, write_json
from sapis.core.memory import keep_freed_memory
from sapis.core.progress import progress_bar
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.version import __version__
from sapis.data.formats import read_systems
from sapis.data.reference import ReferenceEnergies
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import LocalExecutor
from sapis.labelers.build import build_labeler
from sapis.model.config import ModelConfig, dial
from sapis.model.growth import Growth, larger_config
from sapis.model.potential import TransformerPotential
from sapis.pipeline.auto_config import AutoConfig, steps_between
from sapis.pipeline.checks import checks_of, smallest
from sapis.pipeline.pool import Pool, PoolToLabel, in_parts
from sapis.pipeline.workspace import Workspace
from sapis.report.auto import write_auto_report
from sapis.scaling.controller import Costs, Decision, decide
from sapis.scaling.path import Look
from sapis.scaling.plan import Size
from sapis.scaling.policies import fixed
from sapis.training.config import TrainingConfig
from sapis.training.fit import at_new_level, known_potential
from sapis.training.growth import grow_checkpoint
from sapis.training.loop import CHECKPOINT, Training, read_checkpoint

PLAN, EVENTS, MODEL, RECORD, REPORT = "plan.json", "events.json", "model.sapis", "record.json", "report.html"
LABELS = "labels.store"
CHEAP = "cheap"  # folder of the training on cheap labels
MOST_FOR_START = 0.5  # of the budget, for labels to begin with
N_ERRORS = 200  # frames whose error is the training error


@dataclass(frozen=True)
class Stage:
    """A training between two changes.

    Attributes:
        size: index of the model's size.
        n_frames: of its training set.
        flops: at which its schedule ends, labels and what is lost left out.
        parent: number of the stage that it goes on from; None for the first.
        lost: FLOPs of branches that were taken back.
    """

    size: int
    n_frames: int
    flops: float
    parent: int | None = None
    lost: float = 0.0


@dataclass(frozen=True)
class Event:
    """A look, what was decided from it, and the stage that follows.

    Attributes:
        after: where the model grew, the error of the larger one before its first step.
    """

    look: Look
    decision: Decision
    stage: Stage
    after: float | None = None


@dataclass(frozen=True, eq=False)
class Grown:
    """What came of it.

    Attributes:
        record: with test errors, decisions and cost.
        training: the last one, with the potential.
        references: energies that the model holds, by level.
    """

    record: Record
    training: Training
    references: dict[str, ReferenceEnergies]


def auto(data: Path, folder: Path, config: AutoConfig, *, isolated: Path | None = None) -> Record:
    """Train a model on frames of ``data``, whose labels count as bought when they are used; the record, with test errors. With
    a labeler in ``config`` the frames need no labels: they are computed as they are asked for.

    Raises:
        FileError: ``folder`` holds another run, cannot be written, or another process is at it.
        DataError: too few frames, or frames with errors.
    """
    with Workspace(folder).locked():
        return _auto(data, folder, config, isolated)


def _auto(data: Path, folder: Path, config: AutoConfig, isolated: Path | None) -> Record:
    before: Record | None = None
    if config.cheap is not None and config.labeler is not None:
        before = auto(data, folder / CHEAP, config.on_cheap_labels(), isolated=isolated)
        level = build_labeler(config.labeler).level
        config = config.on_dear_labels(folder / CHEAP / MODEL, before.result["size"], before.cost["flops"], level)
    if config.labeler is None:
        pool = Pool.read(data, n_validation=config.n_validation, n_test=config.n_test, group_by=config.group_by,
                         isolated=isolated, seed=config.seed)
        pool.require_sound()
    else:
        systems = [system.without_labels() for system in read_systems(data)]
        split = in_parts(systems, data, config.n_validation, config.n_test, config.group_by, config.seed)
        pool = PoolToLabel(split, config.labeler, folder / LABELS, LocalExecutor(config.workers), data_hash=hash_systems(systems),
                           seed=config.seed)
    grown = grow_on(pool, folder, config)
    record, spent = grown.record, grown.training.progress
    if before is not None:
        costs = {name: before.cost[name] for name in ("cpu_seconds", "flops")}
        record.cost.update({name: record.cost[name] + cost for name, cost in costs.items()})
        record.result["cheap"] = {name: before.result[name] for name in ("n_frames", "size", "n_parameters", "label_flops")} | {
            "labeler": before.result["config"]["labeler"]["name"], **costs,
            "test_force_rmse_meV_A": before.result["errors"]["test"]["force_rmse_meV_A"]}
    potential = grown.training.potential
    level = build_labeler(config.labeler).level if config.labeler else ", ".join(potential.conditions.levels)
    checked = checks_of(potential.with_precision("float64"), smallest(pool.validation))
    record.result["model_hash"] = save(folder / MODEL, potential, {
        "level_of_theory": level or "not given", "checks": checked["checks"],
        "training": {"n_steps": spent.step, "flops": spent.flops}, "test": record.result["errors"]["test"],
        "data": {"hash": pool.data_hash}})
    write_record(folder / RECORD, record)
    write_auto_report(folder / REPORT, f"Training on {data.name}", record)
    return record


def grow_on(pool: Pool, folder: Path, config: AutoConfig) -> Grown:
    """The same on the frames of ``pool``; what lands in ``folder`` is what it needs to go on after a stop."""
    return _Run(pool, folder, config).finish()


class _Run:
    def __init__(self, pool: Pool, folder: Path, config: AutoConfig) -> None:
        keep_freed_memory()
        torch.set_num_threads(config.training.threads)
        self.pool, self.folder, self.config, self.watch, self.made_by = pool, folder, config, Stopwatch(), provenance()
        self.settings = config.sizes()
        self.start = load(config.start).single if config.start else None
        self.models = self._models()
        self.sizes, self.label_flops = self._plan()
        self.costs = Costs(np.array([float(size.n_parameters) for size in self.sizes]),
                           np.array([size.flops for size in self.sizes]), self.label_flops, float(len(self.pool.train)),
                           config.flops, config.target, config.floor, steps_between(self.settings), 1 - config.cooldown)
        self.chunk = config.flops / config.controller.looks
        self.events = self._known_events()
        self.references: dict[str, ReferenceEnergies] = {}
        self.present: tuple[int, Training] | None = None  # the number of a stage and its training

    def finish(self) -> Grown:
        """Look, decide and train to the end."""
        with progress_bar() as bar:
            task = bar.add_task("budget", total=1000, note="")
            while not self.events or self.events[-1].decision.action != "stop":
                self._next()
                event = self.events[-1]
                bar.update(task, completed=int(1000 * event.look.spent / self.config.flops), note=_note(event))
            stage, training = self.events[-1].stage, self._training()
            spent = training.run(is_quiet=True)
            bar.update(task, completed=1000, note=_note(self.events[-1]))
        errors = {name: evaluate(training.potential, part) for name, part in (("validation", self.pool.validation),
                                                                              ("test", self.pool.test))}
        for found in errors.values():
            del found["parity"]
        labels = self.label_flops * stage.n_frames
        flops = spent.flops + labels + stage.lost
        result = {
            "errors": errors, "n_parameters": self.sizes[stage.size].n_parameters, "n_frames": stage.n_frames,
            "size": self.settings[stage.size], "n_steps": spent.step, "label_flops": labels, "lost_flops": stage.lost,
            "flops": flops, "events": [_to_json(event) for event in self.events], "config": self.config.model_dump(mode="json"),
        }
        cost = {**self.watch.cost(), "cpu_seconds": self._cpu_seconds(), "flops": flops}
        record = Record("auto", read_json(self.folder / PLAN)["input_hash"], result, cost, self.made_by)
        return Grown(record, training, self.references)

    # What there is

    def _models(self) -> list[ModelConfig]:
        """Of each size."""
        if self.start is None:
            return [dial(size["n_channels"], {**self.config.model, **size}) for size in self.settings]
        own = {axis: getattr(self.start.config, axis) for axis in self.settings[0]}
        if own != self.settings[0]:
            raise ConfigError(expected=f"sizes from those of the model to go on from: {own}", received=str(self.settings[0]),
                              where=f"widths and axes, with start {self.config.start}", todo="mend the least of each")
        return [larger_config(self.start.config, size) for size in self.settings]

    def _plan(self) -> tuple[list[Size], float]:
        """What the sizes cost, and a label."""
        path, config = self.folder / PLAN, self.config
        wanted = hash_json({"version": __version__, "data": self.pool.data_hash, "config": config.model_dump(mode="json"),
                            "start": config.start and hash_file(config.start)})
        if path.exists():
            known = read_json(path)
            if known["input_hash"] != wanted:
                raise FileError(expected="a new folder, or one of a run of these settings and data",
                                received="one of another run", where=str(path), todo="choose another folder")
            return [Size(**size) for size in known["sizes"]], known["label_flops"]
        frames = self.pool.frames(config.n_start, config.seed)
        potential, _ = self._begun(frames, self.models[0], config.training)
        for model in self.models[1:]:  # says now which it cannot grow into
            Growth(potential, model)
        sizes = [self.pool.measured(model, config.training, self.folder / "size", frames) for model in self.models]
        label_flops = config.label_flops
        if label_flops is None:
            rate = sizes[0].flops / sizes[0].cpu_seconds
            label_flops = rate * self.pool.cpu_seconds_of_a_label() if isinstance(self.pool, PoolToLabel) else 0.0
        n_start = min(config.n_start, len(self.pool.train))
        if label_flops * n_start > MOST_FOR_START * config.flops:
            raise ConfigError(expected=f"a budget of which {n_start} labels to begin with take half at most: "
                              f"{label_flops * n_start / MOST_FOR_START:.3g} FLOPs or more", received=f"{config.flops:.3g}",
                              where="sapis scale auto: flops", todo="raise flops, or lower n_start")
        write_json(path, {"input_hash": wanted, "config": config.model_dump(mode="json"), "data_hash": self.pool.data_hash,
                          "sizes": [asdict(size) for size in sizes], "label_flops": label_flops})
        return sizes, label_flops

    def _known_events(self) -> list[Event]:
        path = self.folder / EVENTS
        return [_from_json(entry) for entry in read_json(path)] if path.exists() else []

    def _stages(self) -> list[Stage]:
        """All so far: they follow from the events."""
        first = len(self.sizes) - 1 if self.config.policy == "largest" else 0
        n_frames = min(self.config.n_start, len(self.pool.train))
        found = [Stage(first, n_frames, self.config.flops - self.label_flops * n_frames)]
        for event in self.events:
            if event.stage != found[-1]:
                found.append(event.stage)
        return found

    def _cpu_seconds(self) -> float:
        """Of all trainings, those that were taken back among them."""
        stages = self._stages()
        ends = [float(read_checkpoint(self._folder(number) / CHECKPOINT)[1]["cpu_seconds"]) for number in range(len(stages))]
        return sum(end - (0.0 if stage.parent is None else ends[stage.parent]) for end, stage in zip(ends, stages, strict=True))

    # What is done

    def _training(self) -> Training:
        """The training of the present stage, made once; what the stage before it has learned is carried over."""
        stages, seed = self._stages(), self.config.seed
        number, stage = len(stages) - 1, stages[-1]
        if self.present is not None and self.present[0] == number:
            return self.present[1]
        settings = self._settings(stage)
        line = [stage]
        while (parent := line[-1].parent) is not None:
            line.append(stages[parent])
        begun = self._begun(self.pool.frames(line[-1].n_frames, seed), self.models[line[-1].size], settings)
        potential, self.references = begun
        growth: Growth | None = None
        for later in reversed(line[:-1]):
            growth = Growth(potential, self.models[later.size], seed=seed)
            potential = growth.potential()
        training = Training(potential, self.pool.frames(stage.n_frames, seed), self.pool.validation, settings,
                            self._folder(number))
        if growth is not None and stage.parent is not None:
            grow_checkpoint(self._folder(stage.parent), growth, training)
        self.present = number, training
        return training

    def _begun(self, frames: Sequence[System], model: ModelConfig, settings: TrainingConfig,
               ) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
        """What the first training begins from, and the reference energies that it holds, by level."""
        if self.start is None:
            return self.pool.begun(frames, model, settings, self.config.seed)
        known = at_new_level(self.start, frames, self.config.to_level) if self.config.to_level else self.start
        potential, references = known_potential(known, frames, precision=settings.precision)
        return Growth(potential, model, seed=self.config.seed).potential(), references

    def _settings(self, stage: Stage) -> TrainingConfig:
        """With a running mean over a look's worth of steps: its error is near the one that a falling learning rate would give.
        That of shorter means is mostly the noise of steps, which no larger model and no more data would take away.
        """
        steps = self.chunk / (self.sizes[stage.size].flops * self.config.training.batch_size)
        decay = max(self.config.training.ema_decay, 1 - 1 / max(steps, 1.0))
        return self.config.training.model_copy(update={
            "flops": stage.flops, "seed": self.config.seed, "cooldown": self.config.cooldown, "ema_decay": decay})

    def _folder(self, number: int) -> Path:
        return self.folder / f"stage-{number:02d}"

    def _next(self) -> None:
        """Train for one look's worth, look, decide."""
        stage, training = self._stages()[-1], self._training()
        paid = self.label_flops * stage.n_frames + stage.lost
        bought = self.label_flops * (stage.n_frames - self.events[-1].look.n_frames) if self.events else 0.0
        until = (self.events[-1].look.spent + bought if self.events else paid) + self.chunk
        spent = training.run(until=min(1.0, (until - paid) / stage.flops), is_quiet=True)
        look = self._look(training, stage, paid + spent.flops)
        decision = self._decision(look, is_late=spent.flops >= (1 - self.config.cooldown) * stage.flops)
        after = None
        if decision.size in self.costs.steps(stage.size):
            larger = Growth(training.potential, self.models[decision.size], seed=self.config.seed).potential()
            after = float(evaluate(larger, self.pool.validation)["force_rmse_meV_A"])
            decision = replace(decision, reason=f"{decision.reason}; {self._growth(stage.size, decision.size)}")
        self.events.append(Event(look, decision, self._following(stage, decision, spent.flops), after))
        write_json(self.folder / EVENTS, [_to_json(each) for each in self.events])

    def _growth(self, old: int, new: int) -> str:
        """In words."""
        return ", ".join(f"{axis} {before} to {self.settings[new][axis]}" for axis, before in self.settings[old].items()
                         if self.settings[new][axis] != before)

    def _following(self, stage: Stage, decision: Decision, flops: float) -> Stage:
        """The stage after a decision, when a training has spent ``flops``."""
        stages = self._stages()
        if decision.action == "train":
            return stage
        if decision.action == "stop":  # what is left is for the falling learning rate
            end = min(stage.flops, flops / (1 - self.config.cooldown))
            return stage if end == stage.flops else replace(stage, flops=end, parent=len(stages) - 1)
        if decision.action == "take_back":
            grown = stage
            while grown.parent is not None and stages[grown.parent].size == stage.size:  # frames were bought since
                grown = stages[grown.parent]
            assert grown.parent is not None
            before = stages[grown.parent]
            look = next(event.look for event in self.events if event.stage == grown)  # after which it grew
            lost = flops - (look.spent - self.label_flops * before.n_frames - before.lost)
            return Stage(before.size, stage.n_frames, stage.flops - lost, grown.parent, stage.lost + lost)
        frames = round(decision.n_frames)
        left = stage.flops - self.label_flops * (frames - stage.n_frames)
        return Stage(decision.size, frames, left, len(stages) - 1, stage.lost)

    def _look(self, training: Training, stage: Stage, spent: float) -> Look:
        """Errors of the running mean of the weights."""
        potential = training.potential
        potential.load_state_dict(training.mean.values)
        frames = self.pool.frames(min(stage.n_frames, N_ERRORS), self.config.seed)
        losses = [float(evaluate(potential, part)["force_rmse_meV_A"]) for part in (self.pool.validation, frames)]
        seen = float(training.progress.step * self.config.training.batch_size)
        return Look(float(self.sizes[stage.size].n_parameters), float(stage.n_frames), seen, spent, *losses)

    def _decision(self, look: Look, *, is_late: bool) -> Decision:
        looks, decisions = [*(event.look for event in self.events), look], [event.decision for event in self.events]
        if is_late:
            size = self._stages()[-1].size
            return Decision("stop", size, look.n_frames, "stop", look.loss, "the learning rate falls from here on")
        if self.config.policy == "controller":
            return decide(looks, decisions, self.costs, self.config.controller)
        return fixed(self.config.policy, looks, decisions, self.costs)


def _note(event: Event) -> str:
    look = event.look
    return f"F {look.loss:.1f} meV/Å, {look.n_parameters:,.0f} weights, {look.n_frames:,.0f} frames; {event.decision.action}"


def _to_json(event: Event) -> dict[str, Any]:
    decision = asdict(event.decision)
    decision["foretold"] = None if np.isnan(event.decision.foretold) else event.decision.foretold
    return {"look": asdict(event.look), "decision": decision, "stage": asdict(event.stage), "after": event.after}


def _from_json(entry: dict[str, Any]) -> Event:
    foretold = entry["decision"]["foretold"]
    decision = Decision(**{**entry["decision"], "foretold": np.nan if foretold is None else foretold})
    return Event(Look(**entry["look"]), decision, Stage(**entry["stage"]), entry["after"])
