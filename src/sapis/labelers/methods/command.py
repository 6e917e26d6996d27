"""``command``: a program that reads a structure from one file and writes its labels to another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from pydantic import Field

from sapis.core.config import Config, parse_config
from sapis.core.errors import ConfigError, SapisError
from sapis.core.files import hash_file
from sapis.data.formats import read_systems
from sapis.data.system import System
from sapis.labelers.evaluation import AseLabeler, keep
from sapis.labelers.labeler import Labeler, LabelerConfig
from sapis.labelers.methods.ase import new_scratch

MOVED = 1e-3  # Å; codes print positions with fewer digits than they read
LAST_LINES = 3


class CommandConfig(Config):
    """Arguments of the labeler ``command``.

    Attributes:
        command: the program and its arguments, one by one: no shell sees them. ``{charge}``, ``{multiplicity}`` and
            ``{unpaired}`` (multiplicity less 1) stand for those of the structure.
        structure: name of the file that the program reads; its ending says in which format ASE writes it.
        result: name of the file with energy and forces that the program writes, in any format that is read here. Its last frame
            counts.
        files: copied beside the structure, such as a control file.
        version: of the program: labels of another version are other labels.
    """

    command: tuple[str, ...] = Field(min_length=1)
    structure: str = "structure.xyz"
    result: str = "result.extxyz"
    files: tuple[Path, ...] = ()
    version: str = ""


def build(config: LabelerConfig) -> Labeler:
    """Labels from a program. Each label has a folder of its own, which is kept if it fails and ``scratch`` is given.

    Raises:
        ConfigError: no such program, or arguments that are none.
        FileError: a file that is to be copied is not there.
    """
    settings = parse_config(CommandConfig, config.arguments, where="labeler command: arguments")
    program = shutil.which(settings.command[0])
    if program is None:
        raise ConfigError(expected="a program on PATH, or the path of one", received=repr(settings.command[0]),
                          where="labeler command: command", todo="install it, or give its whole path")
    method = {"name": "command", "arguments": {**settings.model_dump(mode="json"),
                                               "files": {path.name: hash_file(path) for path in settings.files}}}

    def calculator(system: System) -> ProgramCalculator:
        return ProgramCalculator(settings, Path(new_scratch(config)), is_kept=config.scratch is not None)

    level = config.level or " ".join([Path(program).name, settings.version]).strip()

    def remove(made: Calculator) -> None:
        shutil.rmtree(made.directory, ignore_errors=True)

    return AseLabeler(method, level, calculator, on_success=remove, on_failure=keep if config.scratch else remove)


class ProgramCalculator(Calculator):
    """ASE calculator that runs a program in ``folder``: energy (eV), forces (eV/Å), stress where the program has it."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, settings: CommandConfig, folder: Path, *, is_kept: bool = False) -> None:
        super().__init__(directory=str(folder))
        self.settings, self.folder, self.is_kept = settings, folder, is_kept

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        if self.results and not system_changes:  # ASE asks once more for what was not there
            raise PropertyNotImplementedError(f"the program writes no {', '.join(properties or [])}")
        super().calculate(atoms, properties, system_changes)
        held = self.atoms
        assert held is not None  # ASE's own calculate keeps a copy of atoms
        self._run(held)
        labelled = self._result(held)
        self.results = {"energy": labelled.energy, "free_energy": labelled.energy, "forces": labelled.forces}
        if labelled.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(labelled.stress)
        elif "stress" in (properties or []):
            raise PropertyNotImplementedError("the program writes no stress")

    def _run(self, atoms: Atoms) -> None:
        from ase.io import write

        settings = self.settings
        for path in settings.files:
            shutil.copy(path, self.folder / path.name)
        (self.folder / settings.result).unlink(missing_ok=True)
        write(self.folder / settings.structure, atoms)
        spin = int(atoms.info.get("spin", 1))
        known = {"charge": int(atoms.info.get("charge", 0)), "multiplicity": spin, "unpaired": spin - 1}
        words = [_filled(word, known) for word in settings.command]
        with (self.folder / "stdout.txt").open("wb") as out, (self.folder / "stderr.txt").open("wb") as err:
            done = subprocess.run(words, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        if done.returncode:
            raise RuntimeError(f"{words[0]} ended with exit code {done.returncode}: {self._last_words()}")

    def _last_words(self) -> str:
        """What the program said last, on either stream, and where all of it is, if it is kept."""
        said = [(self.folder / name).read_text(errors="replace").strip() for name in ("stderr.txt", "stdout.txt")]
        lines = next((text.splitlines()[-LAST_LINES:] for text in said if text), ["it said nothing"])
        return " / ".join(lines)[:300] + (f" (in {self.folder})" if self.is_kept else "")

    def _result(self, atoms: Atoms) -> System:
        path = self.folder / self.settings.result
        try:
            found = read_systems(path, index="-1", require=("energy", "forces"))[0]
        except SapisError as error:
            raise RuntimeError(f"no labels in {path}: {error.received}; {self._last_words()}") from error
        if found.numbers.tolist() != atoms.numbers.tolist():
            raise RuntimeError(f"{path} holds other atoms, or in another order")
        moved = float(np.abs(found.positions - atoms.positions).max())
        if moved > MOVED:
            raise RuntimeError(f"{path} holds another structure: atoms moved by {moved:.3g} Å")
        return found


def _filled(word: str, known: dict[str, Any]) -> str:
    for name, value in known.items():
        word = word.replace(f"{{{name}}}", str(value))
    return word
