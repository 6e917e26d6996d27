"""Processes on this machine that outlive their tasks: limits, crashes and Ctrl-C cost one task at most.

`concurrent.futures.ProcessPoolExecutor` gives up as a whole when a worker dies and cannot end a task that takes too long. Here
each worker is a supervisor with a socket to the parent, in whose forked process the tasks run (see `sapis.executors.worker`). A
worker sees the end of that socket when the parent dies, however it dies, and then ends itself.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from typing import Any, TypeVar

from sapis.core.errors import LabelerError
from sapis.executors.outcome import Failure, FailureKind, Limits
from sapis.executors.worker import DIED, DONE, FAILED, PROGRESS, READY, REFUSED

FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # no process sends these to itself, not even by a bug
RETRIED: tuple[FailureKind, ...] = ("crashed", "killed")
STARTUP_LIMIT_S = 300.0
EXIT_GRACE_S = 2.0
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
# A plain `-c` and not multiprocessing's spawn, which runs the user's main script again in every worker.
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); " \
       "from sapis.executors.worker import serve; serve(int(sys.argv[1]), json.loads(sys.argv[3]))"

Task = TypeVar("Task")
Result = TypeVar("Result")


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Attempt:
    """A task under way: how often its process died, and what that cost."""

    index: int
    task: Any
    n_deaths: int = 0
    cpu_seconds: float = 0.0

    def failure(self, last: Failure) -> Failure:
        """That of all attempts together."""
        tried = f" ({self.n_deaths + 1} times)" if self.n_deaths else ""
        return Failure(last.kind, (last.reason + tried)[:500], self.cpu_seconds)


class _Todo:
    """Tasks that wait: first those to be tried again, then new ones, which are taken one by one."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self.again: deque[_Attempt] = deque()
        self._new = enumerate(tasks)

    def next(self) -> _Attempt | None:
        """The next one; None if there is none."""
        if self.again:
            return self.again.popleft()
        found = next(self._new, None)
        return None if found is None else _Attempt(*found)


class Pool:
    """Single-threaded processes on this machine that do tasks one by one; see `sapis.executors.executor.Executor`.

    Args:
        prepare: called once in each worker, returns the function of one task. A module's function, or a
            `functools.partial` of one, so that it can be sent.
        n_workers: processes; default one per core.
        limits: of each task.
    """

    def __init__(self, prepare: Callable[[], Callable[[Any], Any]], *, n_workers: int | None = None, limits: Limits | None = None,
                 ) -> None:
        self.message = pickle.dumps(prepare)
        self.n_workers, self.limits = max(1, n_workers or n_cores()), limits or Limits()
        self._workers: list[_Worker] = []

    def outcomes(self, tasks: Iterable[Any], *, on_progress: Callable[[int], None] = lambda amount: None,
                 ) -> Iterator[tuple[int, Any]]:
        """The number of each task and its result or `Failure`, as they end. Tasks are taken as processes become free.

        Args:
            tasks: what the function is called with, one by one.
            on_progress: called with the amounts that tasks report.

        Raises:
            SapisError: raised by ``prepare`` or by a task, or a worker that cannot start. All workers are ended.
        """
        todo = _Todo(tasks)
        try:
            while self._hand_out(todo):
                busy = [worker for worker in self._workers if worker.attempt is not None]
                _wait(busy)
                for worker in busy:
                    ended = worker.listen(on_progress)
                    if worker.is_gone:
                        self._workers.remove(worker)
                    if ended is None or self._is_tried_again(*ended, todo):
                        continue
                    attempt, outcome = ended
                    yield attempt.index, attempt.failure(outcome) if isinstance(outcome, Failure) else outcome
        except BaseException:
            self.close(grace_s=0.0)
            raise

    def _hand_out(self, todo: _Todo) -> bool:
        """Give each free worker a task, and start workers while there is work for them; whether any is busy."""
        for worker in self._workers:
            if worker.attempt is None and (attempt := todo.next()) is not None:
                worker.assign(attempt)
        while len(self._workers) < self.n_workers and (attempt := todo.next()) is not None:
            self._workers.append(_Worker(self.message, self.limits))
            self._workers[-1].assign(attempt)
        return any(worker.attempt is not None for worker in self._workers)

    def _is_tried_again(self, attempt: _Attempt, outcome: Any, todo: _Todo) -> bool:
        if not isinstance(outcome, Failure):
            return False
        attempt.cpu_seconds += outcome.cpu_seconds
        if outcome.kind not in RETRIED or attempt.n_deaths == self.limits.retries:
            return False
        attempt.n_deaths += 1
        todo.again.append(attempt)
        return True

    def close(self, *, grace_s: float = EXIT_GRACE_S) -> None:
        """End the workers: idle ones leave by themselves within ``grace_s``."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end(grace_s=grace_s if worker.attempt is None else 0.0)
        self._workers = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_tasks(
    prepare: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    n_workers: int | None = None,
    timeout_s: float | None = None,
    retries: int = 0,
    on_progress: Callable[[int], None] = lambda amount: None,
    on_done: Callable[[int, Result | Failure], None] = lambda index, outcome: None,
) -> list[Result | Failure]:
    """Run every task in a `Pool`; outcomes in the order of ``tasks``.

    Args:
        prepare, n_workers: see `Pool`.
        tasks: what the function is called with, one by one.
        timeout_s, retries: see `Limits`.
        on_progress: called with the amounts that tasks report.
        on_done: called here as each task ends, with its index.

    Raises:
        SapisError: see `Pool.outcomes`.
    """
    outcomes: list[Any] = [None] * len(tasks)
    with Pool(prepare, n_workers=n_workers, limits=Limits(timeout_s=timeout_s, retries=retries)) as pool:
        for index, outcome in pool.outcomes(tasks, on_progress=on_progress):
            outcomes[index] = outcome
            on_done(index, outcome)
    return outcomes


def _wait(workers: list[_Worker]) -> None:
    deadline = min(worker.deadline for worker in workers)
    remaining = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    wait([worker.connection for worker in workers], remaining)


class _Worker:
    """The parent's view of one worker: its supervisor is starting or running (or gone), its process idle or busy.

    Attributes:
        attempt: the task at hand, also while the process that shall do it is being started.
        is_gone: the supervisor has ended.
    """

    def __init__(self, prepare: bytes, limits: Limits) -> None:
        self.limits = limits
        self.attempt: _Attempt | None = None
        self.is_gone = False
        self.deadline = time.monotonic() + STARTUP_LIMIT_S
        self._process_id = 0  # of the process that does tasks; 0 while it is being started
        self._number = 0  # of the task at hand, among all that were sent
        self._is_sent = self._has_started = self._is_overdue = False
        self._cpu_seconds = 0.0
        self.connection, theirs = Pipe()
        self.errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self.scratch = tempfile.TemporaryDirectory(prefix="sapis-", ignore_cleanup_errors=True)  # a killed one cleans nothing up
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(theirs.fileno()), json.dumps([str(path) for path in sys.path]),
             json.dumps(limits.memory_MB)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
            env={**os.environ, **ONE_THREAD, "TMPDIR": self.scratch.name},
            # Of its own, so that Ctrl-C reaches the parent only and a kill reaches the worker's children too.
            start_new_session=True,
        )
        theirs.close()
        self._send(prepare)

    def assign(self, attempt: _Attempt) -> None:
        """Take a task, which begins as soon as there is a process for it."""
        self.attempt = attempt
        self._start()

    def listen(self, on_progress: Callable[[int], None]) -> tuple[_Attempt, Any] | None:
        """The task at hand and its outcome, if it has one by now. Raises what the worker refused to go on with."""
        try:
            while self.connection.poll():
                kind, value, cpu_seconds, number = self.connection.recv()
                if kind == DIED:
                    return self._died(*value, cpu_seconds=max(0.0, cpu_seconds - self._cpu_seconds))
                spent, self._cpu_seconds = cpu_seconds - self._cpu_seconds, cpu_seconds
                if number not in (None, self._number):  # it was sent to a process that had just died, and is tried again
                    continue
                if kind == DONE:
                    return self._ended(value)
                if kind == FAILED:
                    return self._ended(Failure("error", value, spent))
                if kind == REFUSED:
                    raise value
                if kind == READY:
                    self._process_id, self._has_started = value, True
                    self._start()
                if kind == PROGRESS:
                    self._restart_clock()
                    on_progress(value)
        except (EOFError, ConnectionError):
            return self._lost()
        if time.monotonic() > self.deadline:
            return self._overdue()
        return None

    def _start(self) -> None:
        """Send the task at hand, if there is a process to do it."""
        if self.attempt is not None and self._process_id and not self._is_sent:
            self.errors.truncate(0)
            self._restart_clock()
            self._is_sent = True
            self._number += 1
            self._send(pickle.dumps((self._number, self.attempt.task)))

    def _ended(self, outcome: Any) -> tuple[_Attempt, Any] | None:
        attempt, self.attempt, self._is_sent, self.deadline = self.attempt, None, False, float("inf")
        if self._is_overdue:  # its answer has crossed with the end of its process: the next task waits for the next one
            self._process_id, self.deadline = 0, time.monotonic() + STARTUP_LIMIT_S
        return None if attempt is None else (attempt, outcome)

    def _died(self, code: int, is_too_large: bool, *, cpu_seconds: float) -> tuple[_Attempt, Any] | None:
        """The process is dead, and the supervisor starts another one."""
        is_overdue, self._is_overdue = self._is_overdue, False
        self._process_id, self._cpu_seconds = 0, 0.0
        if not self._is_sent:  # killed while idle: nothing is lost, and the task at hand waits for the next process
            return None
        if is_overdue:
            return self._ended(Failure("timeout", f"no result within {self.limits.timeout_s:g} s", cpu_seconds))
        if is_too_large:
            return self._ended(Failure("memory", f"more than {self.limits.memory_MB:g} MB", cpu_seconds))
        return self._ended(_dead(code, self._last_words(), cpu_seconds))

    def _lost(self) -> tuple[_Attempt, Any] | None:
        """The supervisor is dead, too."""
        words = self.end(grace_s=EXIT_GRACE_S)
        failure = _dead(self.supervisor.returncode, words, 0.0)
        self._require_start(failure.reason)
        return self._ended(failure)

    def _overdue(self) -> tuple[_Attempt, Any] | None:
        if self._process_id and not self._is_overdue:
            self._is_overdue, self.deadline = True, time.monotonic() + STARTUP_LIMIT_S
            with suppress(ProcessLookupError, PermissionError):  # it may just have ended
                os.killpg(self._process_id, signal.SIGKILL)
            return None
        self.end(grace_s=0.0)
        reason = f"no process within {STARTUP_LIMIT_S:g} s"
        self._require_start(reason)
        return self._ended(Failure("timeout", reason, 0.0))

    def _require_start(self, reason: str) -> None:
        if not self._has_started:
            raise LabelerError(
                expected="a worker process that starts", received=reason[:500], where="starting a worker process",
                todo="check that the labeler's package works in a Python session of its own",
            )

    def end(self, *, grace_s: float) -> list[str]:
        """Wait for the supervisor up to ``grace_s``, then kill what is left; the last line that was said."""
        if self.is_gone:
            return []
        with suppress(subprocess.TimeoutExpired):
            self.supervisor.wait(timeout=grace_s)
        for group in filter(None, (self.supervisor.pid, self._process_id)):
            # A group may outlive its leader: a quantum-chemistry program that the worker started.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self.supervisor.wait()
        self.is_gone = True
        self.connection.close()
        words = self._last_words()
        self.errors.close()
        self.scratch.cleanup()
        return words

    def _last_words(self) -> list[str]:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip().splitlines()[-1:]

    def _restart_clock(self) -> None:
        self.deadline = time.monotonic() + (self.limits.timeout_s or float("inf"))

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # a worker that is gone shows as the end of its socket, see `listen`
            self.connection.send_bytes(message)


def _dead(code: int, last_words: Sequence[str], cpu_seconds: float) -> Failure:
    how = f"was killed: {signal.strsignal(-code)}" if code < 0 else f"left with exit code {code}"
    kind: FailureKind = "killed" if -code in FROM_OUTSIDE else "crashed"
    return Failure(kind, "; ".join([f"the process {how}", *last_words])[:500], cpu_seconds)
