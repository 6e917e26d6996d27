"""The folder of a run: one record per step; a step whose record matches its input is skipped."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sapis.core.errors import FileError
from sapis.core.files import PART_SUFFIX, cannot_write, hash_file, hash_json
from sapis.core.progress import console
from sapis.core.records import Record, Stopwatch, provenance, read_record, valid_record, write_record

Step = Callable[[], dict[str, Any]]

LOCK, RECORDS = ".lock", "records"


class Workspace:
    """Runs steps in ``folder`` and remembers them in ``folder/records``.

    Args:
        folder: new, or of an earlier run.
        outputs: what the run writes there; where no run has been, such files belong to somebody and are not replaced.
    """

    def __init__(self, folder: Path, outputs: Sequence[str] = ()) -> None:
        self.folder, self.outputs = folder, outputs
        self.n_done = 0

    def path(self, name: str) -> Path:
        """A file or folder of this run."""
        return self.folder / name

    def record_path(self, step: str) -> Path:
        """Where the record of ``step`` is."""
        return self.folder / RECORDS / f"{step}.json"

    def step(self, name: str, inputs: dict[str, Any], files: list[str], run: Step) -> Record:
        """Run a step, or take its record if it was made from the same ``inputs`` and its ``files`` are as it left them.

        Args:
            name: of the step and of its record.
            inputs: everything that determines the result, JSON values.
            files: what the step writes, relative to the folder; their hashes become part of the result.
            run: does the work and returns the result.
        """
        self.n_done += 1
        input_hash = hash_json({"step": name, "inputs": inputs})
        path = self.record_path(name)
        record = valid_record(path, input_hash)
        if record is not None and self._are_intact(record):
            console.print(f"[green]✓[/] {self.n_done}. {name}: done before ({path.name})")
            return record
        console.print(f"[bold]▶ {self.n_done}. {name}[/]")
        watch = Stopwatch()
        result = run()
        result["files"] = {file: hash_file(self.path(file)) for file in files}
        cost = {**watch.cost(), **result.pop("cost", {})}
        record = Record(name, input_hash, result, cost, provenance())
        write_record(path, record)
        return read_record(path)

    def _are_intact(self, record: Record) -> bool:
        files = record.result.get("files", {})
        return all(self.path(file).exists() and hash_file(self.path(file)) == digest for file, digest in files.items())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of the same folder; the lock goes with the process, however it ends.

        Raises:
            FileError: another run holds the folder, it cannot be written, or it holds files that no run wrote.
        """
        handle = self._open_lock()
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileError(expected="a folder that no other run is using", received="another run holds it",
                                where=str(self.folder), todo="wait for it or stop it, or choose another output folder") from None
            # A killed run could not take away what it had half written.
            for part in self.folder.rglob(f".*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def _open_lock(self) -> int:
        lock = self.path(LOCK)
        found = [name for name in self.outputs if self.path(name).exists()]
        if found and not lock.exists() and not self.path(RECORDS).exists():
            raise FileError(
                expected="an output folder that is new, or of an earlier run",
                received=f"files that no run wrote: {', '.join(found)}", where=str(self.folder),
                todo="choose another output folder, or move these files away: they would be replaced",
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
