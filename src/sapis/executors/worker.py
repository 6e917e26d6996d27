"""A worker process of the pool: a supervisor that prepares once, and the process that does the tasks, forked from it.

When a task takes its process with it, the supervisor says so and forks the next one: what was imported and prepared is there
already, so that a death costs milliseconds. The start is kept light (no torch, no atoms): what is heavy comes with the function.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sapis.core.errors import LabelerError, SapisError

ORPHAN_GRACE_S = 1.0
HEARTBEAT_S = 1.0
MEMORY_CHECK_S = 0.25

# Messages to the parent: (kind, value, CPU seconds of the process so far, number of the task that it is of, if any). What is sent
# to a process that has just died may be read by the next one: the number tells whose answer it is.
READY, PROGRESS, DONE, FAILED, REFUSED, DIED = "ready", "progress", "done", "failed", "refused", "died"

_parent: Connection | None = None
_last_report = 0.0
_number: int | None = None  # of the task at hand


def serve(handle: int, memory_MB: float | None) -> None:
    """Supervise processes that answer tasks on the socket ``handle`` until the parent closes it."""
    os.set_inheritable(handle, False)
    connection = Connection(handle)
    try:
        # Pickle is safe here: the only writer to this socket is the process that started this one.
        function = _built(connection.recv_bytes())
    except SapisError as error:
        connection.send((REFUSED, error, _cpu_seconds(), None))
        return
    except EOFError:
        return
    gc.freeze()  # what is there is not looked at again, so that forked processes share its memory
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # to wait for it with a time limit
    while True:
        before = _children_cpu_seconds()
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            os.setpgid(0, 0)  # a group of its own, so that what it starts can be ended with it
            _answer(connection, function)
            os._exit(0)
        is_too_large = _waited(child, memory_MB)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        with suppress(ProcessLookupError, PermissionError):  # the group may outlive its leader
            os.killpg(child, signal.SIGKILL)
        if code == 0:
            return
        try:
            connection.send((DIED, (code, is_too_large), _children_cpu_seconds() - before, None))
            while connection.poll():  # what was sent to the dead one is sent again
                connection.recv_bytes()
        except (EOFError, OSError):  # the parent is gone
            return


def _waited(child: int, memory_MB: float | None) -> bool:
    """Wait until ``child`` has ended; whether it had to be ended because of its memory."""
    if memory_MB is None:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        return False
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if _memory_MB(child) > memory_MB:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            return True
        signal.sigtimedwait([signal.SIGCHLD], MEMORY_CHECK_S)
    return False


def _memory_MB(process: int) -> float:
    """Resident memory of a process and of all that it started; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20 + sum(_memory_MB(int(child)) for child in children)


def _answer(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the parent closes the socket."""
    global _parent, _number
    _parent = connection
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    connection.send((READY, os.getpid(), _cpu_seconds(), None))
    while (message := inbox.get()) is not None:
        kind: str
        value: Any
        try:
            _number, task = pickle.loads(message)
            kind, value = DONE, function(task)
        except SapisError as error:
            kind, value = REFUSED, error
        except (Exception, SystemExit) as error:  # the pool turns it into this task's failure
            kind, value = FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]
        connection.send((kind, value, _cpu_seconds(), _number))


def report_progress(amount: int = 0) -> None:
    """Tell the parent that ``amount`` more is done, or (0) only that this worker is alive.

    Either restarts the clock of the pool's time limit. Does nothing outside a worker. Ends the worker if the parent is gone:
    an exception here would look to the task like a failure of its own, with a result that is kept.
    """
    global _last_report
    if _parent is None or (amount == 0 and time.monotonic() - _last_report < HEARTBEAT_S):
        return
    _last_report = time.monotonic()
    try:
        _parent.send((PROGRESS, amount, _cpu_seconds(), _number))
    except OSError:
        _end()


def _built(message: bytes) -> Callable[[Any], Any]:
    try:
        function: Callable[[Any], Any] = pickle.loads(message)()
        return function
    except SapisError:
        raise
    except Exception as error:
        raise LabelerError(
            expected="a worker process that can prepare its work",
            received=f"{type(error).__name__}: {error}",
            where="a worker process",
            todo="check that the packages it needs can be imported",
        ) from error


def _receive(connection: Connection, inbox: queue.SimpleQueue[bytes | None]) -> None:
    """Pass messages on; when the parent is gone, end this process and whatever it started.

    The parent closes the socket only when this worker is idle, so the main thread then leaves by itself. It
    is still here after the grace only if the parent died in the middle of a task.
    """
    while True:
        try:
            inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            break
    inbox.put(None)
    time.sleep(ORPHAN_GRACE_S)
    _end()


def _end() -> None:
    """End this process and whatever it started."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
