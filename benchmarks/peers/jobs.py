"""Work in other environments: one process for each job, its result kept until what it depends on changes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peak import yardstick
from sapis.core.config import load_yaml
from sapis.core.errors import ConfigError
from sapis.core.files import hash_file, hash_json, read_json, write_json
from sapis.core.progress import console
from sapis.core.records import Record, Stopwatch, provenance, valid_record, write_record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".peers"
PROTOCOL = 1  # counts up when a change of the common loop makes earlier results incomparable


@dataclass(frozen=True)
class Entry:
    """A row of peers.yaml."""

    name: str
    driver: str
    environment: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    is_inference_only: bool = False

    @property
    def is_ours(self) -> bool:
        """Trained by sapis itself."""
        return self.driver == "sapis"

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return Path(sys.executable) if self.environment == "main" else ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def is_installed(self) -> bool:
        """Its set-up was finished."""
        return self.environment == "main" or (ENVIRONMENTS / self.environment / ".ready").exists()

    def code(self) -> dict[str, str]:
        """Hashes of what this row alone depends on."""
        files = [] if self.is_ours else [HERE / f"{self.driver}.py"]
        files += [] if self.environment == "main" else [HERE / "requirements" / f"{self.environment}.txt"]
        return {file.name: hash_file(file) for file in files}


def read_entries() -> list[Entry]:
    """The rows of peers.yaml."""
    entries = []
    for name, row in load_yaml(HERE / "peers.yaml").items():
        environment = row.get("environment", "main" if row["driver"] == "sapis" else row["driver"])
        entries.append(Entry(name, row["driver"], environment, row.get("options", {}), row.get("recipe", {}),
                             row.get("is_inference_only", False)))
    return entries


def chosen(entries: list[Entry], text: str) -> set[str]:
    """The names in ``text``, separated by commas; all if it is empty.

    Raises:
        ConfigError: a name that no entry has.
    """
    known = {entry.name for entry in entries}
    names = set(text.split(",")) if text else known
    if names - known:
        raise ConfigError(expected=f"some of {', '.join(sorted(known))}", received=", ".join(sorted(names - known)),
                          where="--only", todo="mend the name")
    return names


def identity_of(entry: Entry, module: str, inputs: dict[str, Any]) -> str:
    """The hash of all that a job's result depends on."""
    return hash_json({"protocol": PROTOCOL, "module": module, "options": entry.options, "recipe": entry.recipe,
                      "code": entry.code(), **inputs})


def done(name: str, entry: Entry, module: str, job: dict[str, Any], folder: Path, inputs: dict[str, Any], *,
         may_run: bool = True) -> Record | None:
    """The record of a job, run now if it is not there yet; None if its environment is not, or it failed.

    Args:
        name: of the record.
        module: what the environment's interpreter runs, with the path of the job.
        job: what that module reads.
        folder: of the job, its checkpoints, its result.
        inputs: hashed: what the result depends on beside the entry itself.
        may_run: otherwise only what is there already is looked for.
    """
    identity = identity_of(entry, module, inputs)
    folder = folder / identity[:12]  # what was begun with other settings stays apart
    path = folder / "record.json"
    kept = valid_record(path, identity)
    if kept is not None or not may_run:
        return kept
    if not entry.is_installed:
        console.print(f"[yellow]{name}: not installed[/] (make peers NAME={entry.environment})")
        return None
    console.rule(name)
    made_by, before, watch = provenance(), yardstick(), Stopwatch()
    write_json(folder / "job.json", {**job, "name": name, "driver": entry.driver, "options": entry.options,
                                     "recipe": entry.recipe})
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "PYTHONUNBUFFERED": "1"} | {
        f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    command = [entry.python, "-W", "ignore", "-m", f"benchmarks.peers.{module}", folder / "job.json"]
    ended = subprocess.run(command, cwd=ROOT, env=variables)
    if ended.returncode:
        console.print(f"[red]{name}: failed with exit code {ended.returncode}[/]")
        return None
    result = read_json(folder / "result.json") | {"yardstick": {"before": before, "after": yardstick()}}
    record = Record(name, identity, result, watch.cost(), made_by)
    write_record(path, record)
    return record
