"""A worker process of the pool: receives a function once, then tasks, and answers each.

The start is kept light (no torch, no atoms): what is heavy comes with the function.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from sapis.core.errors import LabelerError, SapisError

ORPHAN_GRACE_S = 1.0
HEARTBEAT_S = 1.0

# Messages to the parent: (kind, value, CPU seconds of this process so far).
READY, PROGRESS, DONE, FAILED, REFUSED = "ready", "progress", "done", "failed", "refused"

_parent: Connection | None = None
_last_report = 0.0


def serve(handle: int) -> None:
    """Answer tasks on the socket ``handle`` until the parent closes it."""
    global _parent
    os.set_inheritable(handle, False)
    _parent = Connection(handle)
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(_parent, inbox), daemon=True).start()
    function = None
    # Pickle is safe here: the only writer to this socket is the process that started this one.
    while (message := inbox.get()) is not None:
        kind: str
        value: Any
        try:
            if function is None:
                function = _built(message)
                kind, value = READY, None
            else:
                kind, value = DONE, function(pickle.loads(message))
        except SapisError as error:
            kind, value = REFUSED, error
        except (Exception, SystemExit) as error:  # the pool turns it into this task's failure
            kind, value = FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]
        _parent.send((kind, value, _cpu_seconds()))


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
        _parent.send((PROGRESS, amount, _cpu_seconds()))
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
