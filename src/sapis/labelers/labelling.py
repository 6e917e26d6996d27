"""Labels for any number of structures, appended to a store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import ground_state_magnetic_moments

from sapis.core.errors import DataError, LabelerError
from sapis.core.progress import progress_bar
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.executor import Executor
from sapis.executors.outcome import KILLED, Failure, Limits
from sapis.labelers.build import build_labeler
from sapis.labelers.evaluation import within_limit
from sapis.labelers.journal import Journal
from sapis.labelers.labeler import Label, LabelerConfig, Outcome

WINDOW = 4096  # structures under way or waiting to be written, at most
CHUNK = 256  # written together
WRITE_S = 2.0  # or as soon as the last writing is this long ago, or what waits has cost this much
DEAR_S, UNSAVED_S = 1.0, 10.0  # labels that cost this much each go out of turn once they have cost that much together
SHOW_S = 0.2  # between two looks of the progress bar
LOOK_AHEAD = 256  # structures whose journal entries are read together


@dataclass
class Labelling:
    """What a labelling did.

    Attributes:
        n_read: structures that were asked for.
        n_known: of these had been done before.
        n_labelled: new labels.
        failures: new failures by kind.
        elements: atomic numbers in all that have labels now.
        cpu_seconds: of the labels and failures themselves, in the processes that made them.
        total_cpu_seconds: those and of all earlier labellings into the store by the same method.
        level: level of theory of the labels.
        method: see `sapis.labelers.labeler.Labeler`.
    """

    level: str
    method: dict[str, Any]
    n_read: int = 0
    n_known: int = 0
    n_labelled: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    elements: set[int] = field(default_factory=set)
    cpu_seconds: float = 0.0
    total_cpu_seconds: float = 0.0


def label_into(
    store: Store, systems: Iterable[System], config: LabelerConfig, executor: Executor, *, limits: Limits | None = None,
    total: int | None = None, retry_failures: bool = False, at_once: bool = False, is_quiet: bool = False,
) -> Labelling:
    """Label ``systems`` and append them to ``store``, in their order.

    Each structure is labelled once, whatever happens: the same call after a kill goes on, and at most `WINDOW` labels that were
    not written yet are computed again, or, of dear ones, what took `UNSAVED_S` CPU seconds. Structures may be any number: they
    are read as they are needed.

    Args:
        systems: labels that they have are replaced.
        config: the method.
        executor: where it is computed.
        limits: of each label; the time limit is the configuration's if there is none.
        total: how many they are, for the progress bar.
        retry_failures: compute again what has failed before. What was killed from outside always is.
        at_once: write each label as it comes, in any order: then only those under way are computed again.
        is_quiet: show no progress.

    Raises:
        ConfigError, LabelerError, MissingDependencyError: see `sapis.labelers.build.build_labeler`.
        FileError: the store cannot be written, or is being written by another process.
    """
    labeler = build_labeler(config)
    found = Labelling(labeler.level, labeler.method)
    limits = _with_time(limits or Limits(), config)
    with Journal(store, labeler.method, labeler.level) as journal, progress_bar(is_hidden=is_quiet) as bar:
        journal.forget_failures(None if retry_failures else (KILLED,))
        journal.limited(_limited_to(config, limits))
        task = bar.add_task(f"labels {labeler.level}", total=total, note="")
        writing = _Writing(store, journal, found, at_once=at_once)
        shown = 0.0

        def show(*, is_last: bool = False) -> None:
            nonlocal shown
            if not is_last and time.monotonic() - shown < SHOW_S:
                return
            shown = time.monotonic()
            n_failed = sum(found.failures.values())
            bar.update(task, completed=found.n_known + found.n_labelled + n_failed,
                       note=f"{n_failed} failed, {found.cpu_seconds:.0f} CPU-s")

        tasks = _missing(systems, journal, found, writing, show)
        try:
            for number, outcome in executor.outcomes(partial(_labelling, config), tasks, limits=limits):
                found.cpu_seconds += outcome.cpu_seconds
                writing.take(number, outcome)
                show()
        except KeyboardInterrupt:
            writing.flush()
            raise
        writing.flush()
        found.total_cpu_seconds = journal.cpu_seconds
        show(is_last=True)
    return found


def labels_in(store: Store, systems: Sequence[System], config: LabelerConfig) -> list[System | Failure]:
    """What `label_into` made of each of ``systems`` by this method: the system with its label and the level of theory of that, or
    why it has none.

    Raises:
        DataError: one that was not labelled yet.
    """
    labeler = build_labeler(config)
    with Journal(store, labeler.method, labeler.level) as journal:
        outcomes = journal.get([journal.key(system) for system in systems])
    found = list[System | Failure]()
    for system, outcome in zip(systems, outcomes, strict=True):
        if outcome is None:
            raise DataError(expected=f"a structure that {labeler.level} has labelled", received=f"a new one, {system.where}",
                            where=str(store.path), todo="label it first")
        if isinstance(outcome, Failure):
            found.append(outcome)
            continue
        frame = store[outcome]
        assert frame.energy is not None and frame.forces is not None
        # The limit may have been another one when it was labelled.
        label = within_limit(Label(frame.energy, frame.forces, frame.stress, 0.0), config.max_force_eV_A)
        found.append(label if isinstance(label, Failure) else label.applied_to(system, level=frame.level))
    return found


def all_labelled(path: Path, systems: Sequence[System], config: LabelerConfig) -> bool:
    """Whether the store at ``path`` knows what comes of each of ``systems`` by this method, a label or a failure that would not
    be tried again.
    """
    labeler = build_labeler(config)
    with Store.at(path) as store, Journal(store, labeler.method, labeler.level) as journal:
        tried_again = {KILLED, *journal.stale_kinds(_limited_to(config, _with_time(Limits(), config)))}
        outcomes = journal.get([journal.key(system) for system in systems])
        return not any(outcome is None or (isinstance(outcome, Failure) and outcome.kind in tried_again) for outcome in outcomes)


def require_not_killed(outcomes: Sequence[System | Failure], where: str) -> None:
    """Raise `LabelerError` if one was ended from outside: that says nothing of its structure, and another call tries it again."""
    if killed := [outcome for outcome in outcomes if isinstance(outcome, Failure) and outcome.kind == KILLED]:
        raise LabelerError(
            expected="labels, or reasons why there are none", received=f"{len(killed)} of {len(outcomes)} killed: "
            f"{killed[0].reason}", where=where,
            todo="run the same command again, with more memory or fewer workers: what is finished is kept")


def label_at(path: Path, systems: Sequence[System], config: LabelerConfig, executor: Executor, *, limits: Limits | None = None,
             at_once: bool = False, is_quiet: bool = False) -> tuple[Labelling, list[System | Failure]]:
    """Label ``systems`` into the store at ``path``, which is made if it is not there: what was done, and what came of each.

    Arguments and errors are those of `label_into`.
    """
    with Store.at(path) as store:
        done = label_into(store, systems, config, executor, limits=limits, total=len(systems), at_once=at_once, is_quiet=is_quiet)
        return done, labels_in(store, systems, config)


def cpu_seconds_of_a_label(config: LabelerConfig, systems: Iterable[System], executor: Executor) -> float:
    """The median of a few, where they are computed; the first one may have more to do. Failures cost, too."""
    outcomes = executor.outcomes(partial(_labelling, config), systems, limits=Limits(timeout_s=config.timeout_s))
    return float(np.median([outcome.cpu_seconds for _, outcome in outcomes]))


def isolated_atom_energies(config: LabelerConfig, elements: Iterable[int], executor: Executor) -> dict[int, float]:
    """Energies (eV) of free atoms in their ground-state multiplicity; elements that fail are left out.

    The multiplicities are ASE's table of unpaired electrons of the free atom (H 1, C 2, N 3, O 2 …) plus one.
    """
    multiplicities = {z: round(n) + 1 for z, n in enumerate(ground_state_magnetic_moments) if np.isfinite(n)}
    known = sorted(set(elements) & set(multiplicities))
    if not known:
        return {}
    atoms = [System(numbers=np.array([z]), positions=np.zeros((1, 3)), spin=multiplicities[z]) for z in known]
    outcomes = executor.outcomes(partial(_labelling, config), atoms, limits=Limits(timeout_s=config.timeout_s))
    return dict(sorted((known[number], outcome.energy) for number, outcome in outcomes if isinstance(outcome, Label)))


def _with_time(limits: Limits, config: LabelerConfig) -> Limits:
    """The time limit is the configuration's if there is none."""
    return limits if limits.timeout_s is not None else limits.model_copy(update={"timeout_s": config.timeout_s})


def _limited_to(config: LabelerConfig, limits: Limits) -> dict[str, Any]:
    """By the kind of failure that comes of it."""
    return {"too_large": config.max_force_eV_A, "timeout": limits.timeout_s, "memory": limits.memory_MB}


def _missing(systems: Iterable[System], journal: Journal, found: Labelling, writing: _Writing, show: Callable[[], None],
             ) -> Iterator[System]:
    """Structures without a label, each once; those under way are kept by ``writing``."""
    source = iter(systems)
    while ahead := list(islice(source, LOOK_AHEAD)):
        found.n_read += len(ahead)
        keys = [journal.key(system) for system in ahead]
        before = set[bytes]()  # of these keys: theirs may be written by the time a copy comes
        for system, key, outcome in zip(ahead, keys, journal.get(keys), strict=True):
            is_known = outcome is not None or key in before
            before.add(key)
            if isinstance(outcome, int):
                found.elements.update(map(int, system.numbers))
            if is_known or not writing.is_new(system, key):
                found.n_known += 1
                continue
            yield system
        show()


class _Writing:
    """Outcomes on their way to the store: they come in any order and are written in that of the structures. Where one takes so
    long that `WINDOW` others wait for it, or dear ones, those go first.
    """

    def __init__(self, store: Store, journal: Journal, found: Labelling, *, at_once: bool) -> None:
        self.store, self.journal, self.found, self.at_once = store, journal, found, at_once
        self._waiting: dict[int, tuple[System, bytes]] = {}
        self._keys: set[bytes] = set()  # of those
        self._outcomes: dict[int, Outcome] = {}
        self._n_taken = self._n_ready = 0  # all below `_n_ready` have an outcome
        self._written, self._unwritten_s = time.monotonic(), 0.0

    def is_new(self, system: System, key: bytes) -> bool:
        """Take a structure that is about to be labelled; false if the same one is under way."""
        if key in self._keys:
            return False
        self._keys.add(key)
        self._waiting[self._n_taken] = system, key
        self._n_taken += 1
        return True

    def take(self, number: int, outcome: Outcome) -> None:
        """Take an outcome; write what is complete, if it is enough or has waited long enough."""
        self._outcomes[number] = outcome
        before = self._n_ready
        while self._n_ready in self._outcomes or (self._n_ready < self._n_taken and self._n_ready not in self._waiting):
            self._n_ready += 1
        self._unwritten_s += outcome.cpu_seconds
        is_due = max(time.monotonic() - self._written, self._unwritten_s) > WRITE_S
        is_dear = self._unwritten_s > max(UNSAVED_S, DEAR_S * len(self._outcomes))
        if self.at_once or len(self._outcomes) >= WINDOW or is_dear:
            self.flush()
        elif self._n_ready > before and (is_due or len(self._outcomes) >= CHUNK):
            self.flush(self._n_ready)

    def flush(self, stop: int | None = None) -> None:
        """Write what has an outcome, of those before number ``stop``."""
        labelled, failed, cost = list[tuple[bytes, System]](), list[tuple[bytes, System, Failure]](), 0.0
        for number in sorted(number for number in self._outcomes if stop is None or number < stop):
            (system, key), outcome = self._waiting.pop(number), self._outcomes.pop(number)
            self._keys.discard(key)
            cost += outcome.cpu_seconds
            if isinstance(outcome, Failure):
                failed.append((key, system, outcome))
            else:
                labelled.append((key, outcome.applied_to(system, level=self.found.level)))
                self.found.elements.update(map(int, system.numbers))
        self._written, self._unwritten_s = time.monotonic(), 0.0
        if labelled or failed:
            numbers = self.store.append([system for _, system in labelled])
            self.journal.note(((key, int(number)) for (key, _), number in zip(labelled, numbers, strict=True)), failed,
                              cpu_seconds=cost)
        self.found.n_labelled += len(labelled)
        self.found.failures.update(failure.kind for *_, failure in failed)


def _labelling(config: LabelerConfig) -> Callable[[System], Outcome]:
    """What each worker runs."""
    labeler = build_labeler(config)
    return lambda system: within_limit(labeler.label(system), config.max_force_eV_A)
