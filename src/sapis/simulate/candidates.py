"""Candidate structures for labelling, made in parallel and kept: one file per trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sapis.core.errors import ConfigError, LabelerError
from sapis.core.files import hash_file, hash_json
from sapis.core.progress import console, progress_bar
from sapis.core.records import Record, Stopwatch, provenance, read_record, valid_record, write_record
from sapis.data.system import System
from sapis.executors.outcome import KILLED, Failure
from sapis.executors.pool import run_tasks
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import LabelerConfig
from sapis.simulate.sampling import CandidatesConfig, Trajectory, rattled_candidates, simulate


def make_candidates(
    structures: Sequence[System],
    labeler_config: LabelerConfig,
    temperatures_K: Sequence[float],
    n_total: int,
    config: CandidatesConfig,
    seed: int,
    folder: Path,
    n_workers: int | None = None,
) -> tuple[list[System], dict[str, str]]:
    """``n_total`` candidates: ``rattle_fraction`` rattled, the rest from MD, evenly over the temperatures; and why trajectories
    ended early, by their names.

    Each trajectory is a file of its own in ``folder``, whole or absent; one that is there and was planned
    alike is not run again. The candidates depend neither on ``n_workers`` nor on interruptions, to the last
    bit: one whose process is killed is run again. A trajectory that fails gives fewer frames, and a line that says so.

    Args:
        structures: starting structures, see `load_structure`.
        labeler_config: the method that drives the dynamics.
        temperatures_K: of the trajectories; without any, all candidates are rattled.
        n_total: how many candidates.
        config: how they are made.
        seed: of everything random.
        folder: for the trajectories.
        n_workers: processes; default one per core.

    Raises:
        ConfigError: no structure, or a temperature that is not positive.
        LabelerError: a trajectory whose process was killed twice.
    """
    if not structures or any(not temperature > 0 for temperature in temperatures_K):
        raise ConfigError(expected="at least one structure, and temperatures above 0 K",
                          received=f"{len(structures)} structures, {list(temperatures_K)} K",
                          where="candidates",
                          todo="mend the recipe's structure or temperatures")
    n_rattled = round(n_total * config.rattle_fraction) if temperatures_K else n_total
    plan = _plan(structures, temperatures_K, n_total - n_rattled, config)
    candidates, endings = _run_plan(plan, labeler_config, config, seed, folder, n_workers)
    return candidates + rattled_candidates(structures, n_rattled, config.rattle_stdev_A, seed), endings


def dynamics_cost(folder: Path) -> dict[str, float]:
    """CPU seconds of the trajectories in ``folder``, also of those that an earlier call made."""
    return {"cpu_seconds": sum(read_record(path).cost["cpu_seconds"] for path in folder.glob("md-*.json"))}


def _plan(
    structures: Sequence[System], temperatures_K: Sequence[float], n_frames: int, config: CandidatesConfig
) -> list[Trajectory]:
    temperatures = list(dict.fromkeys(float(temperature) for temperature in temperatures_K))
    n_replicas = max(config.n_replicas, math.ceil(len(structures) / max(1, len(temperatures))))  # no structure is left out
    plan: list[Trajectory] = []
    for temperature, n_here in zip(temperatures, _shares(n_frames, len(temperatures)), strict=True):
        for replica, n_each in enumerate(_shares(n_here, n_replicas)):
            if n_each:
                start = structures[len(plan) % len(structures)].without_labels()  # in turn: each temperature begins elsewhere
                plan.append(Trajectory(f"md-{temperature:g}K-{replica}", start, temperature, n_each))
    return plan


def _shares(n: int, n_parts: int) -> list[int]:
    """``n`` in ``n_parts`` whole parts that differ by one at most."""
    return [n // n_parts + (part < n % n_parts) for part in range(n_parts)]


def _run_plan(
    plan: list[Trajectory], labeler_config: LabelerConfig, config: CandidatesConfig, seed: int, folder: Path,
    n_workers: int | None,
) -> tuple[list[System], dict[str, str]]:
    from sapis.data.formats import read_systems

    # The limit of forces decides what is kept of a trajectory that explodes.
    limit = labeler_config.max_force_eV_A
    method = build_labeler(labeler_config).method | ({} if limit is None else {"max_force_eV_A": limit})
    hashes = [_plan_hash(each, method, config, seed) for each in plan]
    missing = [i for i, each in enumerate(plan) if _finished(folder, each, hashes[i]) is None]
    n_missing = sum(plan[i].n_frames for i in missing)
    with progress_bar() as bar:
        n_frames = sum(each.n_frames for each in plan)
        task = bar.add_task("candidates", total=n_frames, completed=n_frames - n_missing, note="")
        outcomes = run_tasks(
            partial(_trajectory_runner, labeler_config, config, seed, folder),
            [(plan[i], hashes[i]) for i in missing],
            n_workers=n_workers, timeout_s=labeler_config.timeout_s, retries=1,
            on_progress=lambda amount: bar.advance(task, amount),
        )
    lost = {i: outcome for i, outcome in zip(missing, outcomes, strict=True) if isinstance(outcome, Failure)}
    for i, failure in lost.items():
        if failure.kind == KILLED:  # from outside, which says nothing of the trajectory
            raise LabelerError(expected="a trajectory to its end", received=failure.reason, where=plan[i].name,
                               todo="run the same command again, with more memory or fewer workers: what is finished is kept")
    candidates, endings = [], {}
    for i, each in enumerate(plan):
        record = None if i in lost else _finished(folder, each, hashes[i])
        ending = f"lost: {lost[i].reason}" if i in lost else record and record.result["ending"]
        if ending:
            endings[each.name] = ending
            console.print(f"trajectory {each.name}: {ending}", markup=False, highlight=False)
        if record and record.result["n_frames"]:
            candidates += read_systems(folder / f"{each.name}.extxyz")
    return candidates, endings


def _trajectory_runner(
    labeler_config: LabelerConfig, config: CandidatesConfig, seed: int, folder: Path
) -> Callable[[tuple[Trajectory, str]], None]:
    """What each worker runs: a trajectory; its frames are written first, and last the record that vouches."""

    def run(task: tuple[Trajectory, str]) -> None:
        from sapis.data.formats import write_systems

        plan, plan_hash = task
        watch = Stopwatch()
        frames, ending = simulate(plan, labeler_config, config, seed)
        path = folder / f"{plan.name}.extxyz"
        if frames:
            write_systems(path, frames)
        result = {"n_frames": len(frames), "ending": ending, "file_hash": hash_file(path) if frames else None}
        record = Record(plan.name, plan_hash, result, cost=watch.cost(), provenance=provenance())
        write_record(folder / f"{plan.name}.json", record)

    return run


def _finished(folder: Path, plan: Trajectory, plan_hash: str) -> Record | None:
    """The record of a trajectory that was planned alike and whose file is whole, else None."""
    record = valid_record(folder / f"{plan.name}.json", plan_hash)
    if record is None or not record.result["n_frames"]:
        return record
    path = folder / f"{plan.name}.extxyz"
    is_whole = path.exists() and path.stat().st_size > 0 and hash_file(path) == record.result["file_hash"]
    return record if is_whole else None


def _plan_hash(plan: Trajectory, method: dict[str, Any], config: CandidatesConfig, seed: int) -> str:
    settings = {"timestep_fs", "friction_per_fs", "equilibration_fs", "decorrelation_fs", "bias", "max_uncertainty_eV_A"}
    dynamics = config.model_dump(include=settings)
    return hash_json({
        "name": plan.name, "start": plan.start.structure_hash(), "tags": dict(plan.start.tags),
        "temperature_K": plan.temperature_K,
        "n_frames": plan.n_frames, "dynamics": dynamics, "method": method, "seed": seed,
    })
