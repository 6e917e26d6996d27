"""Labels for many structures: cached ones for nothing, the others in parallel processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from sapis.core.errors import DataError
from sapis.core.progress import progress_bar
from sapis.data.system import System
from sapis.executors.outcome import Failure
from sapis.executors.pool import run_tasks
from sapis.labelers.build import build_labeler
from sapis.labelers.cache import LabelCache
from sapis.labelers.evaluation import within_limit
from sapis.labelers.labeler import LabelerConfig, Outcome


def label_all(
    systems: Sequence[System],
    config: LabelerConfig,
    cache: LabelCache,
    *,
    n_workers: int | None = None,
    title: str = "labels",
    retry_failures: bool = False,
) -> list[Outcome]:
    """Label or failure of each system, in order; each distinct structure is computed once.

    Every finished label is in ``cache`` at once: an interrupted run loses only what was being computed.

    Args:
        systems: structures; labels they already have are ignored.
        config: the method and its time limit per label.
        cache: consulted first and filled.
        n_workers: processes of one thread each; default one per core.
        title: of the progress bar.
        retry_failures: compute again what the cache holds as a failure.

    Raises:
        ConfigError, LabelerError, MissingDependencyError: see `build_labeler`.
        FileError: the cache cannot be written.
    """
    method = build_labeler(config).method
    keys = [cache.key(system, method) for system in systems]
    distinct = dict(zip(keys, systems, strict=True))
    known = {key: outcome for key in distinct if (outcome := cache.get(key)) is not None}
    if retry_failures:
        known = {key: outcome for key, outcome in known.items() if not isinstance(outcome, Failure)}
    missing = [key for key in distinct if key not in known]

    with progress_bar() as bar:
        task = bar.add_task(title, total=len(distinct), completed=len(known), note="")
        n_failed, cpu_seconds = sum(isinstance(outcome, Failure) for outcome in known.values()), 0.0

        def keep(index: int, outcome: Outcome) -> None:
            nonlocal n_failed, cpu_seconds
            cpu_seconds += outcome.cpu_seconds
            known[missing[index]] = outcome
            if isinstance(outcome, Failure):
                n_failed += 1
                if outcome.kind != "killed":  # says nothing about the structure: the next run tries again
                    cache.put(missing[index], outcome)  # a worker that was lost could not
            bar.update(task, advance=1, note=f"{n_failed} failed, {cpu_seconds:.1f} CPU-s")

        run_tasks(partial(_labelling, config, cache), [distinct[key] for key in missing],
                  n_workers=n_workers, timeout_s=config.timeout_s, on_done=keep)
    return [known[key] for key in keys]


def apply_labels(
    systems: Sequence[System], outcomes: Sequence[Outcome]
) -> tuple[list[System], list[tuple[int, Failure]]]:
    """The systems that were labelled, with their labels; and the failures with their index in ``systems``."""
    if len(systems) != len(outcomes):
        raise DataError(expected=f"{len(systems)} outcomes, one for each system", received=str(len(outcomes)),
                        where="apply_labels", todo="pass the list that label_all returned for these systems")
    labelled, failures = [], []
    for index, (system, outcome) in enumerate(zip(systems, outcomes, strict=True)):
        if isinstance(outcome, Failure):
            failures.append((index, outcome))
        else:
            labelled.append(
                replace(system, energy=outcome.energy, forces=outcome.forces, stress=outcome.stress)
            )
    return labelled, failures


def _labelling(config: LabelerConfig, cache: LabelCache) -> Callable[[System], Outcome]:
    """What each worker runs: it writes the cache itself, so that a dead parent loses no finished label."""
    labeler = build_labeler(config)
    method = labeler.method

    def compute(system: System) -> Outcome:
        outcome = within_limit(labeler.label(system), config.max_force_eV_A)
        cache.put(cache.key(system, method), outcome)
        return outcome

    return compute
