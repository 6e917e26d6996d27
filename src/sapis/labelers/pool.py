"""A pool of processes that outlives its workers: time limits, crashes and Ctrl-C cost one task at most.

`concurrent.futures.ProcessPoolExecutor` gives up as a whole when a worker dies and cannot end a task that
takes too long. Here each worker is a process group of its own with a socket to the parent, which can be
killed and replaced. A worker sees the end of that socket when the parent dies, however it dies, and then ends
itself.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe, wait
from typing import Any, TypeVar

from sapis.core.errors import LabelerError
from sapis.labelers.labeler import Failure, FailureKind
from sapis.labelers.worker import DONE, FAILED, PROGRESS, READY, REFUSED

FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # no process sends these to itself, not even by a bug
STARTUP_LIMIT_S = 300.0
EXIT_GRACE_S = 2.0
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
# A plain `-c` and not multiprocessing's spawn, which runs the user's main script again in every worker.
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); " \
       "from sapis.labelers.worker import serve; serve(int(sys.argv[1]))"

Task = TypeVar("Task")
Result = TypeVar("Result")


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    prepare: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    n_workers: int | None = None,
    timeout_s: float | None = None,
    on_progress: Callable[[int], None] = lambda amount: None,
    on_done: Callable[[int, Result | Failure], None] = lambda index, outcome: None,
) -> list[Result | Failure]:
    """Run every task in parallel single-threaded processes; outcomes in the order of ``tasks``.

    Args:
        prepare: called once in each worker, returns the function of one task. A module's function, or a
            `functools.partial` of one, so that it can be sent.
        tasks: what that function is called with, one by one.
        n_workers: processes; default one per core.
        timeout_s: longest silence of a task (see `worker.report_progress`) before its worker is killed.
        on_progress: called with the amounts that tasks report.
        on_done: called here as each task ends, with its index.

    Returns:
        What the function returned, or a `Failure` of kind ``timeout``, ``crashed``, ``killed`` or ``error``.

    Raises:
        SapisError: raised by ``prepare`` or by a task, or a worker that cannot start. All workers are ended.
    """
    outcomes: list[Any] = [None] * len(tasks)
    pending = deque(range(len(tasks)))
    n_open = len(tasks)
    message = pickle.dumps(prepare)
    workers: list[_Worker] = []
    try:
        for _ in range(min(max(1, n_workers or n_cores()), len(tasks))):
            workers.append(_Worker(message, timeout_s))
        while n_open:
            _wait(workers)
            for worker in list(workers):
                outcome = worker.listen(on_progress)
                if outcome is not None:
                    index = worker.release()
                    outcomes[index] = outcome[0]
                    n_open -= 1
                    on_done(index, outcome[0])
                if worker.is_dead:
                    workers.remove(worker)
                    if pending:
                        workers.append(_Worker(message, timeout_s))
                elif worker.is_ready and worker.index is None and pending:
                    index = pending.popleft()
                    worker.assign(index, tasks[index])
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.end(grace_s=EXIT_GRACE_S)
    finally:
        for worker in workers:
            worker.end(grace_s=0.0)
    return outcomes


def _wait(workers: list[_Worker]) -> None:
    deadline = min(worker.deadline for worker in workers)
    remaining = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    wait([worker.connection for worker in workers], remaining)


class _Worker:
    """The parent's view of one worker process: starting, then idle (``index`` None) or busy, at last dead."""

    def __init__(self, prepare: bytes, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self.index: int | None = None
        self.is_ready = self.is_dead = False
        self.deadline = time.monotonic() + STARTUP_LIMIT_S
        self.cpu_seconds = self.unreported_cpu_seconds = 0.0
        self.last_words: list[str] = []
        self.connection, theirs = Pipe()
        self.errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(theirs.fileno()), json.dumps([str(path) for path in sys.path])],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
            env={**os.environ, **ONE_THREAD},
            # Of its own, so that Ctrl-C reaches the parent only and a kill reaches the worker's children too.
            start_new_session=True,
        )
        theirs.close()
        self._send(prepare)

    def assign(self, index: int, task: Any) -> None:
        """Send a task."""
        self.index = index
        self.errors.truncate(0)
        self._restart_clock()
        self._send(pickle.dumps(task))

    def release(self) -> int:
        """Forget the finished task and return its index."""
        index, self.index, self.deadline = self.index, None, float("inf")
        assert index is not None
        return index

    def listen(self, on_progress: Callable[[int], None]) -> tuple[Any] | None:
        """The outcome of the task if it has one by now. Raises what the worker refused to go on with."""
        try:
            while self.connection.poll():
                kind, value, cpu_seconds = self.connection.recv()
                spent, self.cpu_seconds = cpu_seconds - self.cpu_seconds, cpu_seconds
                if kind == DONE:
                    return (value,)
                if kind == FAILED:
                    return (Failure("error", value, spent),)
                if kind == REFUSED:
                    raise value
                if kind == READY:
                    self.is_ready, self.deadline = True, float("inf")
                if kind == PROGRESS:
                    self._restart_clock()
                    on_progress(value)
        except (EOFError, ConnectionError):
            return self._died()
        return self._overdue() if time.monotonic() > self.deadline else None

    def end(self, *, grace_s: float) -> None:
        """Wait for the process up to ``grace_s``, then kill what is left of its group."""
        if self.is_dead:
            return
        before = _children_cpu_seconds()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_s)
        # The group may outlive its leader: a quantum-chemistry program that the worker started.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.unreported_cpu_seconds = max(0.0, _children_cpu_seconds() - before - self.cpu_seconds)
        self.is_dead = True
        self.connection.close()
        self.errors.seek(0)
        self.last_words = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self.errors.close()

    def _died(self) -> tuple[Failure] | None:
        self.end(grace_s=EXIT_GRACE_S)
        code = self.process.returncode
        how = f"was killed: {signal.strsignal(-code)}" if code < 0 else f"left with exit code {code}"
        kind: FailureKind = "killed" if -code in FROM_OUTSIDE else "crashed"
        return self._lost(kind, "; ".join([f"the process {how}", *self.last_words]))

    def _overdue(self) -> tuple[Failure] | None:
        self.end(grace_s=0.0)
        limit = self.timeout_s if self.is_ready else STARTUP_LIMIT_S
        return self._lost("timeout", f"no result within {limit:g} s")

    def _lost(self, kind: FailureKind, reason: str) -> tuple[Failure] | None:
        if not self.is_ready:
            raise LabelerError(
                expected="a worker process that starts", received=reason, where="starting a worker process",
                todo="check that the labeler's package works in a Python session of its own",
            )
        return None if self.index is None else (Failure(kind, reason[:500], self.unreported_cpu_seconds),)

    def _restart_clock(self) -> None:
        self.deadline = time.monotonic() + (float("inf") if self.timeout_s is None else self.timeout_s)

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # a worker that is gone shows as the end of its socket, see `listen`
            self.connection.send_bytes(message)


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
