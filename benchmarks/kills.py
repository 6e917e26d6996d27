"""Programs that are killed at moments spread over their course, and begun again by the same command."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.seeds import generator


@dataclass(frozen=True)
class Course:
    """What came of runs with and without kills.

    Attributes:
        whole: of a run that nothing disturbed.
        seconds: of its wall clock; compilers find their caches full.
        startup: wall seconds of the same command when all is done.
        ends: of every other run: one more that nothing disturbed, then those that were killed.
        kills: what ``kill`` says of each.
    """

    whole: dict[str, Any]
    seconds: float
    startup: float
    ends: list[dict[str, Any]]
    kills: list[Any]

    @property
    def is_same(self) -> bool:
        """Whether the same came of all runs."""
        return all(end == self.whole for end in self.ends)


def course(place: Path, begin: Callable[[Path], Path], finish: Callable[[Path], tuple[dict[str, Any], float]],
           kill: Callable[[Path, float], Any], n_kills: int, *key: str | int) -> Course:
    """Runs without and with kills, at random moments of the time that a whole run takes.

    Args:
        begin: prepares a run in a new folder; what the others are given.
        finish: runs to the end: what came of it, and wall seconds.
        kill: starts and kills after so many seconds, and says what was killed; None if it was over before.
        key: of the random moments.
    """
    first, _ = finish(begin(place / "first"))
    undisturbed = begin(place / "undisturbed")
    whole, seconds = finish(undisturbed)
    startup = finish(undisturbed)[1]  # all is done: what is left is the start of the program
    moments = np.sort(generator(*key).uniform(0, max(1.0, seconds - startup), n_kills))
    lives = (startup + np.diff(moments, prepend=0)).tolist()
    ends, kills = [first], list[Any]()
    run = begin(place / "killed-1")
    while lives:
        killed = kill(run, lives[0])
        if killed is not None:
            kills.append(killed)
            del lives[0]
        else:  # over before its time: this machine is not always equally fast
            ends.append(finish(run)[0])
            run, lives[0] = begin(place / f"killed-{len(ends)}"), lives[0] * 0.8
    ends.append(finish(run)[0])
    return Course(whole, seconds, startup, ends, kills)


def is_killed(command: Sequence[str], life: float, log: Any = subprocess.DEVNULL) -> bool:
    """Start ``command`` and kill it, with all that it has started, after ``life`` seconds; false if it was over before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    try:
        process.wait(timeout=life)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
