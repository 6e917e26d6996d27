"""Where tasks are done: one interface, processes on this machine or jobs of a cluster behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sapis.executors.outcome import Limits
from sapis.executors.pool import Pool

Prepare = Callable[[], Callable[[Any], Any]]


class Executor(Protocol):
    """Does tasks side by side. Takes them as it can do them: a million tasks never wait in memory."""

    def outcomes(self, prepare: Prepare, tasks: Iterable[Any], *, limits: Limits) -> Iterator[tuple[int, Any]]:
        """The number of each task and its result or `Failure`, as they end.

        Args:
            prepare: called once in each worker, returns the function of one task. A module's function, or a
                `functools.partial` of one, so that it can be sent.
            tasks: what that function is called with, one by one.
            limits: of each task.

        Raises:
            SapisError: raised by ``prepare`` or by a task, or a worker that cannot start.
        """
        ...


class LocalExecutor:
    """Processes of one thread on this machine.

    Args:
        n_workers: how many; default one per core.
    """

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = n_workers

    def outcomes(self, prepare: Prepare, tasks: Iterable[Any], *, limits: Limits) -> Iterator[tuple[int, Any]]:
        """See `Executor`."""
        with Pool(prepare, n_workers=self.n_workers, limits=limits) as pool:
            yield from pool.outcomes(tasks)
