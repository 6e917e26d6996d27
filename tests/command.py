"""The command line as a user meets it: `sapis` with arguments, what it prints, how it ends, what it leaves on disk."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest import mock

PROGRAM = [sys.executable, "-c", "from sapis.cli import main; main()"]
PARTS = ("expected: ", "received: ", "where:    ", "what to do: ")

TINY_MODEL = {"n_channels": 16, "n_heads": 2, "n_channels_carried": 16, "l_max": 1, "n_radial": 4, "n_hidden_readout": 8}


def hear_interrupts() -> None:
    """For a new process: a shell's background jobs, and so a test run started as one, ignore Ctrl-C and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code and all that it printed."""

    code: int
    text: str


def sapis(*arguments: str | Path) -> Ending:
    """Run `sapis` in this process, which saves the seconds of importing torch."""
    from sapis.cli import main

    printed, code = StringIO(), 0
    with mock.patch.object(sys, "argv", ["sapis", *map(str, arguments)]), redirect_stdout(printed), redirect_stderr(printed):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Ending(code, printed.getvalue())


def sapis_process(*arguments: str | Path, environment: Mapping[str, str] | None = None, timeout_s: float = 120) -> Ending:
    """Run `sapis` in a process of its own."""
    done = subprocess.run([*PROGRAM, *map(str, arguments)], env={**os.environ, **(environment or {})}, timeout=timeout_s,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Ending(done.returncode, done.stdout)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below ``folder``, by its name."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


class Sapis:
    """`sapis` in processes forked from one that has imported torch: real processes to kill, without seconds of start-up."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["sapis.cli.run", "sapis.pipeline.run", "matplotlib.figure", "rdkit.Chem"])

    def start(self, *arguments: str | Path, log: Path, n_threads: int = 1) -> multiprocessing.process.BaseProcess:
        """Start the command; what it prints goes to ``log``."""
        process = self._context.Process(target=_logged, args=([str(each) for each in arguments], log, n_threads))
        process.start()
        return process

    def run(self, *arguments: str | Path, log: Path, n_threads: int = 1) -> Ending:
        """Start the command and wait for its end."""
        process = self.start(*arguments, log=log, n_threads=n_threads)
        process.join()
        return Ending(process.exitcode or 0, log.read_text())


def _logged(arguments: list[str], log: Path, n_threads: int) -> None:
    import torch

    torch.set_num_threads(n_threads)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = ["sapis", *arguments]
        from sapis.cli import main

        main()
