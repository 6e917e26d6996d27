"""Frames for every peer: read with sapis' readers, split as sapis splits, written for the other environments."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.protocol import Frame, Problem, write_problem
from sapis.data.formats import read_systems, write_systems
from sapis.data.reference import reference_energies_from_isolated, total_reference
from sapis.data.splits import random_split
from sapis.data.system import System, hash_systems
from sapis.model.config import ModelConfig
from sapis.training.fit import new_potential

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SAPIS_SHARED_DATA", ROOT.parent / "shared" / "data"))
N_TRAIN, N_VALIDATION, SPLIT_SEED = 450, 50, 0
CUTOFF = 5.0  # Å
FILES = {
    "3bpa": {"train": "3bpa/train_300K.extxyz.gz", "isolated": "3bpa/iso_atoms.extxyz.gz",
             "tests": ["3bpa/test_300K.extxyz.gz"]},
    "acac": {"train": "acac/train_300K.extxyz.gz", "isolated": "acac/isolated_atoms.extxyz.gz",
             "tests": ["acac/test_MD_300K.extxyz.gz", "acac/test_MD_600K.extxyz.gz"]},
}


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        problem: npz file for the peers.
        files: for sapis: ``train``, ``validation``, ``isolated`` and the tests by name.
        hashes: of the frames of each part.
    """

    problem: Path
    files: dict[str, Path]
    hashes: dict[str, str]


def make_dataset(name: str, folder: Path) -> Dataset:
    """Read, split and write data set ``name`` below ``folder``."""
    files = FILES[name]
    tests = {Path(test).name.split(".")[0]: DATA / test for test in files["tests"]}
    split = random_split(read_systems(DATA / str(files["train"])), N_TRAIN, N_VALIDATION, SPLIT_SEED)
    parts = {"train": split.train, "validation": split.validation} | {
        test: read_systems(path) for test, path in tests.items()}
    isolated = DATA / str(files["isolated"])
    own = {part: folder / f"{part}.extxyz" for part in ("train", "validation")}
    for part, path in own.items():
        write_systems(path, parts[part])
    problem = make_problem(parts, reference_energies_from_isolated(read_systems(isolated)))
    write_problem(folder / "problem.npz", problem)
    return Dataset(folder / "problem.npz", own | {"isolated": isolated} | tests,
                   {part: hash_systems(systems) for part, systems in parts.items()})


def make_problem(parts: dict[str, list[System]], isolated: dict[int, float]) -> Problem:
    """Reference energies, scale and mean number of neighbours are those that sapis takes itself, for every peer."""
    train = parts["train"]
    potential, _ = new_potential(train, isolated, ModelConfig(cutoff=CUTOFF), precision="float64", seed=0)
    values = dict(zip(potential.elements, potential.reference_energies[0].tolist(), strict=True))
    frames = {part: [to_frame(system, values) for system in systems] for part, systems in parts.items()}
    return Problem(potential.elements, potential.scale, potential.average_neighbors, CUTOFF, frames)


def to_frame(system: System, values: dict[int, float]) -> Frame:
    """``system``, which has energy and forces, less the reference energies ``values``."""
    assert system.energy is not None and system.forces is not None
    energy = system.energy - total_reference(system, values)
    return Frame(system.numbers, system.positions, system.cell, system.pbc, energy, system.forces)


def unlabelled(system: System) -> System:
    """``system`` with zeros for labels: for measuring time."""
    return replace(system, energy=0.0, forces=0.0 * system.positions)
