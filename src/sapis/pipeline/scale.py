"""`sapis scale`: a study of scaling in a folder: its plan, its trainings, its laws.

| file | what |
|---|---|
| ``plan.json`` | settings, data and their hash, sizes and what they cost, trainings |
| ``trials/NAME/record.json`` | errors and cost of one training; its checkpoint while it runs |
| ``laws.json``, ``laws.html`` | what was fitted to them |
| ``predictions.json`` | what was foretold of trainings before they were run |
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapis.core.config import parse_config
from sapis.core.errors import ConfigError, DataError, FileError, TrainingError
from sapis.core.files import hash_json, read_json, write_json
from sapis.core.memory import keep_freed_memory
from sapis.core.progress import progress_bar
from sapis.core.records import Record, Stopwatch, provenance, read_record, valid_record, write_record
from sapis.core.version import __version__
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import Executor
from sapis.executors.outcome import Failure, Limits
from sapis.model.config import dial
from sapis.pipeline.pool import Pool, n_parameters
from sapis.pipeline.workspace import Workspace
from sapis.report.scaling import write_scaling_report
from sapis.scaling.fit import Floor
from sapis.scaling.forms import Points
from sapis.scaling.frontier import allocate
from sapis.scaling.laws import Laws, fit_laws
from sapis.scaling.plan import Size, StudyConfig, Trial, plan, trial_at
from sapis.training.loop import Training

PLAN, TRIALS, RECORD, WORK = "plan.json", "trials", "record.json", "training"
LAWS, REPORT, PREDICTIONS = "laws.json", "laws.html", "predictions.json"
MAX_WIDTH = 512  # of what is foretold
MOST_UNFINISHED = 0.1  # of the trainings of a study from which something is foretold: some may have failed for good
N_TRAINING_ERRORS = 200  # training frames whose error is measured: the gap to the test error

Measure = Callable[[Pool, StudyConfig, int, Path], Size]
Trainer = Callable[[Path], Callable[[Trial], str]]


@dataclass(frozen=True)
class Study:
    """A planned study.

    Attributes:
        data: where the frames are.
        data_hash: of them, when the study was planned.
        isolated: file of isolated atoms, if there is one.
        config: what was asked for.
        sizes: of the model.
        trials: all trainings.
        n_available: frames that can train.
    """

    data: Path
    data_hash: str
    isolated: Path | None
    config: StudyConfig
    sizes: list[Size]
    trials: list[Trial]
    n_available: int

    def size_of(self, trial: Trial) -> Size:
        """The size of the model of ``trial``."""
        return next(size for size in self.sizes if size.width == trial.width)


def plan_study(data: Path, folder: Path, config: StudyConfig, *, isolated: Path | None = None, measure: Measure | None = None,
               ) -> Study:
    """Plan a study of ``data`` and write it to ``folder``; a plan of the same that is there is kept.

    Args:
        isolated: file of isolated atoms; a store has them itself.
        measure: of another model than ours: what a width costs, from trainings in a folder of their own.

    Raises:
        DataError: too few frames, or frames with errors.
        ConfigError: a budget that is too small.
        FileError: ``folder`` holds another study.
    """
    keep_freed_memory()
    pool = pool_of(data.resolve(), config, isolated)
    wanted = {"data_hash": pool.data_hash, "config": config.model_dump(mode="json")}
    if (folder / PLAN).exists():
        known = read_json(folder / PLAN)
        if {key: known[key] for key in wanted} != wanted:
            raise FileError(expected="a new folder, or one of a study of these settings and data",
                            received="one of another study", where=str(folder / PLAN), todo="choose another folder")
        return read_study(folder)
    pool.require_sound()
    with progress_bar() as bar:
        task = bar.add_task("sizes", total=len(config.widths), note="")
        sizes = []
        for width in sorted(set(config.widths)):
            sizes.append((measure or _measured)(pool, config, width, folder / TRIALS / f"w{width:03d}"))
            bar.update(task, advance=1, note=f"{width} channels: {sizes[-1].n_parameters:,} weights")
    trials = plan(config, sizes, len(pool.train))
    study = Study(data.resolve(), pool.data_hash, isolated and isolated.resolve(), config, sizes, trials, len(pool.train))
    write_study(folder, study)
    return study


def write_study(folder: Path, study: Study) -> None:
    """Write the plan of ``study``."""
    write_json(folder / PLAN, {
        "version": __version__, "data": str(study.data), "data_hash": study.data_hash,
        "isolated": study.isolated and str(study.isolated), "config": study.config.model_dump(mode="json"),
        "n_available": study.n_available, "sizes": [asdict(size) for size in study.sizes],
        "trials": [asdict(trial) for trial in study.trials],
    })


def read_study(folder: Path) -> Study:
    """The study in ``folder``.

    Raises:
        FileError: there is none.
    """
    path = folder / PLAN
    if not path.exists():
        raise FileError(expected="a folder with a planned study", received=f"no {PLAN}", where=str(folder),
                        todo="plan one: `sapis scale plan DATA FOLDER --cpu-seconds N`")
    known = read_json(path)
    return Study(Path(known["data"]), known["data_hash"], Path(known["isolated"]) if known["isolated"] else None,
                 parse_config(StudyConfig, known["config"], where=str(path)), [Size(**each) for each in known["sizes"]],
                 [Trial(**each) for each in known["trials"]], known["n_available"])


def run_study(folder: Path, executor: Executor, *, trainer: Trainer | None = None,
              ) -> tuple[dict[str, Record], dict[str, Failure]]:
    """Run what is left of the study in ``folder``; the same call goes on where it was stopped.

    Args:
        trainer: of another model than ours: what makes, in each worker, the function that trains one trial, and calls
            `record_trial`.

    Returns:
        The records of finished trainings and the failures of others, by name.

    Raises:
        FileError: no study, its data have changed, or another process is at it.
    """
    with Workspace(folder).locked():
        return _run_study(folder, read_study(folder), executor, trainer or _trainer)


def _run_study(folder: Path, study: Study, executor: Executor, trainer: Trainer) -> tuple[dict[str, Record], dict[str, Failure]]:
    records = finished(folder, study)
    left = [trial for trial in study.trials if trial.name not in records]
    failures: dict[str, Failure] = {}
    with progress_bar() as bar:
        total = sum(trial.cpu_seconds for trial in study.trials)
        done = sum(trial.cpu_seconds for trial in study.trials if trial.name in records)
        task = bar.add_task("CPU-s", total=round(total), completed=round(done), note=_note(records, study, failures))
        for number, outcome in executor.outcomes(partial(trainer, folder), left, limits=Limits()):
            trial = left[number]
            if isinstance(outcome, Failure):
                failures[trial.name] = outcome
            else:
                records[trial.name] = read_record(_record_path(folder, trial))
            done += trial.cpu_seconds
            bar.update(task, completed=round(done), note=_note(records, study, failures))
    return records, failures


def finished(folder: Path, study: Study) -> dict[str, Record]:
    """The records of the trainings that are done, by name."""
    found = {trial.name: valid_record(_record_path(folder, trial), _input_hash(study, trial)) for trial in study.trials}
    return {name: record for name, record in found.items() if record is not None}


def _note(records: dict[str, Record], study: Study, failures: dict[str, Failure]) -> str:
    spent = sum(record.cost["cpu_seconds"] for record in records.values())
    flops = sum(record.cost["flops"] for record in records.values())
    failed = f", {len(failures)} failed" if failures else ""
    return f"{len(records)} of {len(study.trials)} trainings{failed}, {spent:,.0f} CPU-s, {flops / 1e12:.2f} TFLOP"


def _record_path(folder: Path, trial: Trial) -> Path:
    return trial_folder(folder, trial) / RECORD


def _input_hash(study: Study, trial: Trial) -> str:
    known = {key: value for key, value in asdict(trial).items() if key not in ("cpu_seconds", "epochs", "is_held_out")}
    return hash_json({"version": __version__, "data": study.data_hash, "trial": known,
                      "config": study.config.model_dump(mode="json", exclude={"flops", "cpu_seconds", "levels", "widths"})})


def pool_of(data: Path, config: StudyConfig, isolated: Path | None) -> Pool:
    """The frames of a study in their parts."""
    return Pool.read(data, n_validation=config.n_validation, n_test=config.n_test, group_by=config.group_by, isolated=isolated,
                     seed=config.seed)


def _measured(pool: Pool, config: StudyConfig, width: int, folder: Path) -> Size:
    return pool.measured(dial(width, config.model), config.training, folder)


def known_pool(study: Study) -> Pool:
    """The frames that ``study`` was planned for.

    Raises:
        FileError: they have changed.
    """
    pool = pool_of(study.data, study.config, study.isolated)
    if pool.data_hash != study.data_hash:
        raise FileError(expected="the data that the study was planned for", received="other content", where=str(study.data),
                        todo="bring them back, or plan a new study")
    return pool


def _trainer(folder: Path) -> Callable[[Trial], str]:
    """What a worker does with each trial; made once in each."""
    keep_freed_memory()
    study = read_study(folder)
    return partial(_run, folder, study, known_pool(study))


def _run(folder: Path, study: Study, pool: Pool, trial: Trial) -> str:
    """Train, test, write the record; the checkpoint goes with it."""
    config, work = study.config, trial_folder(folder, trial) / WORK
    settings = config.training.model_copy(update={"flops": trial.flops, "seed": trial.seed})
    torch.set_num_threads(settings.threads)
    made_by, watch = provenance(), Stopwatch()
    frames = pool.frames(trial.n_frames, trial.seed)
    potential = pool.potential(frames, dial(trial.width, config.model), settings, trial.seed)
    training = Training(potential, frames, pool.validation, settings, work)
    try:
        spent = training.run()
    except TrainingError as error:  # that of one training, and not of the study
        raise RuntimeError(str(error)) from error
    errors = {name: _without_points(evaluate(potential, part)) for name, part in (
        ("train", frames[:N_TRAINING_ERRORS]), ("validation", pool.validation), ("test", pool.test))}
    return record_trial(
        folder, study, trial, n_parameters=n_parameters(potential), n_steps=spent.step, epochs=spent.step / training.n_batches,
        errors=errors, history=spent.history, made_by=made_by,
        cost={**watch.cost(), "cpu_seconds": spent.cpu_seconds, "flops": spent.flops})


def trial_folder(folder: Path, trial: Trial) -> Path:
    """Of the record of ``trial`` and, while it runs, of its checkpoints (in `WORK`)."""
    return folder / TRIALS / trial.name


def record_trial(folder: Path, study: Study, trial: Trial, *, n_parameters: int, n_steps: int, epochs: float,
                 errors: dict[str, dict[str, Any]], history: list[dict[str, float]], cost: dict[str, float],
                 made_by: dict[str, Any]) -> str:
    """Write the record of a training that is finished, delete its checkpoints, return its name.

    Args:
        n_parameters: weights, without the embedding of elements and conditions.
        errors: on the parts ``train``, ``validation`` and ``test``; the laws are of ``force_rmse_meV_A``.
        history: a row for each validation.
        cost: with ``cpu_seconds`` and ``flops`` of the training.
        made_by: `provenance` at its start.
    """
    if not all(isinstance(found["force_rmse_meV_A"], float) and math.isfinite(found["force_rmse_meV_A"])
               for found in errors.values()):
        raise RuntimeError(f"{trial.name}: errors that are no numbers")
    result = {
        "trial": asdict(trial), "n_parameters": n_parameters, "n_frames": trial.n_frames, "n_steps": n_steps, "epochs": epochs,
        "errors": errors, "history": history,
        "gap": errors["test"]["force_rmse_meV_A"] / errors["train"]["force_rmse_meV_A"],
    }
    write_record(_record_path(folder, trial), Record(trial.name, _input_hash(study, trial), result, cost, made_by))
    shutil.rmtree(trial_folder(folder, trial) / WORK, ignore_errors=True)
    return trial.name


def _without_points(errors: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in errors.items() if name not in ("parity", "by_element", "by_temperature")}


def points_of(study: Study, records: dict[str, Record]) -> tuple[Points, np.ndarray]:
    """The finished trainings that laws are fitted to, and the level of compute of each, ``(points,)``."""
    trials = [trial for trial in study.trials if trial.name in records and not trial.is_held_out]
    found = [records[trial.name] for trial in trials]
    sets = [(trial.n_frames, trial.seed) for trial in trials]  # those of one number and seed have the same frames
    columns = [[record.cost["flops"] for record in found], [record.result["n_parameters"] for record in found],
               [record.result["n_frames"] for record in found], [record.result["epochs"] for record in found],
               [_loss(record) for record in found], [sets.index((trial.n_frames, trial.seed)) for trial in trials]]
    return Points(*map(np.array, columns)), np.array([trial.flops for trial in trials])


def _loss(record: Record) -> float:
    return float(record.result["errors"]["test"]["force_rmse_meV_A"])


def fit_study(folder: Path, *, floor: Floor | None = None) -> tuple[Laws, dict[str, Any]]:
    """Fit the laws of the trainings that are finished in ``folder``, and write them as JSON and as a page.

    Raises:
        FileError: no study.
        DataError: too few finished trainings.
    """
    study = read_study(folder)
    records = finished(folder, study)
    points, levels = points_of(study, records)
    laws = fit_laws(points, levels, study.sizes, floor=floor, n_available=study.n_available)
    trials = [{
        "name": trial.name, "level": trial.flops, "flops": record.cost["flops"], "cpu_seconds": record.cost["cpu_seconds"],
        "n_parameters": record.result["n_parameters"], "n_frames": trial.n_frames, "epochs": record.result["epochs"],
        "seed": trial.seed, "loss": _loss(record),
        "train_loss": record.result["errors"]["train"]["force_rmse_meV_A"],
    } for trial in study.trials if not trial.is_held_out and (record := records.get(trial.name))]
    held_out = [{
        "flops": entry["trial"]["flops"], "n_parameters": record.result["n_parameters"], "n_frames": record.result["n_frames"],
        "foretold": entry["foretold"], "low": entry["low"], "high": entry["high"], "measured": _loss(record),
        "relative_error": entry["foretold"] / _loss(record) - 1,
    } for entry in _predictions(folder) if (record := records.get(Trial(**entry["trial"]).name))]
    found = {**laws.to_record(), "trials": trials, "held_out": held_out, "data_hash": study.data_hash,
             "floor": floor and {"mean": floor.mean, "std": floor.std}}
    write_json(folder / LAWS, found)
    write_scaling_report(folder / REPORT, f"Scaling on {study.data.name}", found)
    return laws, found


def foretell(folder: Path, *, factor: float = 4.0, floor: Floor | None = None, seed: int = 0, measure: Measure | None = None,
             ) -> tuple[Trial, dict[str, Any]]:
    """Foretell the error of a training with ``factor`` times the largest compute of the study, at the size that the law says is
    best, note it in ``predictions.json``, and add the training to the plan, held out: `run_study` makes it, `fit_study`
    compares. What was foretold once stays.

    Args:
        measure: of another model than ours, see `plan_study`.

    Raises:
        FileError: no study.
        DataError: trainings that are not finished, or too few.
        ConfigError: ``factor`` not above 1.
    """
    if factor <= 1:
        raise ConfigError(expected="a factor above 1", received=f"{factor:g}", where="--factor", todo="give 4, for example")
    study = read_study(folder)
    known = _predictions(folder)
    flops = float(f"{factor * max(trial.flops for trial in study.trials if not trial.is_held_out):.3g}")
    for entry in known:
        if entry["trial"]["flops"] == flops and entry["trial"]["seed"] == seed:
            _hold_out(folder, study, Trial(**entry["trial"]), Size(**entry["size"]))
            return Trial(**entry["trial"]), entry
    records = finished(folder, study)
    left = [trial.name for trial in study.trials if trial.name not in records]
    if len(left) > MOST_UNFINISHED * len(study.trials):
        raise DataError(expected="a study whose trainings are finished: what is foretold once stays",
                        received=f"{len(left)} of {len(study.trials)} that are not", where=str(folder),
                        todo="finish them first: `sapis scale run`")
    points, levels = points_of(study, records)
    laws = fit_laws(points, levels, study.sizes, floor=floor, n_available=study.n_available)
    best = allocate(laws.joint[0], study.sizes, np.array([flops]), n_available=study.n_available)
    size = _size_near(folder, study, float(best.n_parameters[0, 0]), measure or _measured)
    seen = flops / size.flops
    trial = trial_at(study.config, size, flops=flops, n_frames=round(min(seen, study.n_available)), seed=seed, is_held_out=True)
    foretold, low, high = (float(value) for value in laws.joint[0].predict(Points(*(np.array([value], dtype=float) for value in (
        flops, size.n_parameters, trial.n_frames, max(trial.epochs, 1.0), 1.0))))[:, 0])
    entry = {"trial": asdict(trial), "size": asdict(size), "foretold": foretold, "low": low, "high": high,
             "law": laws.joint[0].to_record(), "n_trainings": len(points)}
    write_json(folder / PREDICTIONS, [*known, entry])  # before the plan: no training is made that was not foretold
    _hold_out(folder, study, trial, size)
    return trial, entry


def _hold_out(folder: Path, study: Study, trial: Trial, size: Size) -> None:
    """Add ``trial`` to the plan, if it is not there."""
    if trial not in study.trials:
        sizes = study.sizes if size.width in {each.width for each in study.sizes} else [*study.sizes, size]
        write_study(folder, replace(study, trials=[*study.trials, trial], sizes=sizes))


def _predictions(folder: Path) -> list[dict[str, Any]]:
    return read_json(folder / PREDICTIONS) if (folder / PREDICTIONS).exists() else []


def _size_near(folder: Path, study: Study, wanted: float, measure: Measure) -> Size:
    """The width, a multiple of the step between those of the study, whose number of weights is nearest to ``wanted``, by the
    power law of these; what it costs is measured.
    """
    widths, numbers = np.log([[size.width, size.n_parameters] for size in sorted(study.sizes, key=lambda size: size.width)]).T
    step = math.gcd(*study.config.widths)
    if len(widths) > 1:
        slopes = np.diff(widths) / np.diff(numbers)
        place = int(np.clip(np.searchsorted(numbers, np.log(wanted)) - 1, 0, len(slopes) - 1))
        found = float(np.exp(widths[place] + slopes[place] * (np.log(wanted) - numbers[place])))
    else:
        found = float(np.exp(widths[0]))
    width = int(min(max(step * round(found / step), step), MAX_WIDTH))
    known = [size for size in study.sizes if size.width == width]
    if known:
        return known[0]
    pool = pool_of(study.data, study.config, study.isolated)
    return measure(pool, study.config, width, folder / TRIALS / f"w{width:03d}")
