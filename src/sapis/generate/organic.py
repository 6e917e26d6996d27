"""`sapis data generate organic`: structures of many molecules, labelled by GFN2-xTB, the same for the same seed.

Two stores, one after the other: structures, of which each molecule is one task, and labels. Either is taken up where it was
stopped, and the finished set has a card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sapis.core.config import Config
from sapis.core.errors import FileError, SapisError
from sapis.core.files import read_json, write_json
from sapis.core.progress import progress_bar
from sapis.core.records import Stopwatch, provenance
from sapis.core.seeds import derive_seed, generator
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.executor import Executor
from sapis.executors.outcome import Failure, Limits
from sapis.generate.card import write_card
from sapis.generate.displacements import conformer, is_plausible, paired, spread_out, stretched, turned, vibrated
from sapis.generate.molecules import molecules
from sapis.labelers.build import build_labeler
from sapis.labelers.journal import Journal
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import isolated_atom_energies, label_into
from sapis.simulate.sampling import CandidatesConfig, Trajectory, simulate
from sapis.simulate.structures import load_structure

STRUCTURES, LABELS = "structures.store", "organic.store"
PLAN, COSTS, FAILURES = "plan.json", "costs.json", "failures.json"
LIMITS = Limits(timeout_s=300, memory_MB=4000, retries=1)
OVERSAMPLING = 1.5  # structures made for each that is kept
VERSION = 1  # of what is made from the same settings
IN_A_ROW = 32  # tasks written together
PARTNERS = ("O", "O", "N", "CO", "C=O", "CC(=O)O", "NC=O", "c1ccccc1", "C", "S", "F", "Cl", "C#N", "[NH4+]", "[Cl-]", "CS(C)=O")


class OrganicConfig(Config):
    """What is made of each molecule.

    Attributes:
        n_molecules: from the grammar of `sapis.generate.molecules`.
        n_clusters: of two to seven molecules of water, half of them with another molecule or an ion.
        n_conformers: of each molecule at most; each is a frame.
        n_vibrations, n_torsions, n_stretches, n_pairs: frames of each molecule at most.
        md_every: one molecule of so many has frames of dynamics instead of vibrations.
        n_md: frames of a trajectory.
        temperatures_K: ladder of vibrations and dynamics.
        max_force_eV_A: labels with larger forces are left out.
        seed: of everything random.
    """

    n_molecules: int = Field(12_500, ge=1)
    n_clusters: int = Field(600, ge=0)
    n_conformers: int = Field(2, ge=1)
    n_vibrations: int = Field(9, ge=0)
    n_torsions: int = Field(3, ge=0)
    n_stretches: int = Field(3, ge=0)
    n_pairs: int = Field(4, ge=0)
    md_every: int = Field(7, ge=1)
    n_md: int = Field(14, ge=1)
    temperatures_K: tuple[Annotated[float, Field(gt=0)], ...] = (300.0, 600.0, 1000.0, 1500.0)
    max_force_eV_A: float = Field(30.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Task:
    """One molecule, or a cluster of molecules of water.

    Attributes:
        number: its place in the plan.
        smiles: of the molecule; of a cluster, of what is in the water, or empty.
        n_waters: of a cluster; 0 for a molecule.
    """

    number: int
    smiles: str
    n_waters: int = 0


def generate(folder: Path, config: OrganicConfig, executor: Executor) -> dict[str, Any]:
    """Make the set in ``folder``; the card's figures.

    Raises:
        FileError: ``folder`` holds a set of other settings, or cannot be written.
        MissingDependencyError: RDKit or tblite is not installed.
    """
    plan: dict[str, Any] = {"settings": config.model_dump(mode="json"), "version": VERSION}
    path = folder / PLAN
    if path.exists() and read_json(path) != plan:
        raise FileError(expected="a folder of a set with these settings", received="one of others", where=str(path),
                        todo="choose another folder, or give the settings that it names")
    labeler = LabelerConfig(name="gfn2", max_force_eV_A=config.max_force_eV_A)
    method = build_labeler(labeler)  # says now what is missing
    tasks = plan_tasks(config)
    write_json(path, plan)
    with Store.at(folder / STRUCTURES) as structures, Store.at(folder / LABELS, level=method.level) as labels:
        with _costed(folder, "structures"):
            failures = make_structures(structures, tasks, config, executor)
            if failures:
                known = read_json(folder / FAILURES) if (folder / FAILURES).exists() else []
                write_json(folder / FAILURES, known + failures)
        with _costed(folder, "labels"):
            found = label_into(labels, structures, labeler, executor, limits=LIMITS, total=len(structures))
        if not labels.isolated:
            elements = {int(z) for system in labels[:2000] for z in system.numbers}
            labels.set_isolated(method.level, isolated_atom_energies(labeler, elements, executor))
        if found.n_labelled:
            labels.add_source({"name": "organic", "method": method.method, "settings": plan["settings"], "level": method.level})
        with Journal(labels, method.method, method.level) as journal:
            left_out = Counter(failure["kind"] for failure in journal.failures())
        return write_card(folder, structures, labels, left_out=left_out, settings=plan["settings"], method=method.method,
                          costs=read_json(folder / COSTS))


def plan_tasks(config: OrganicConfig) -> list[Task]:
    """The molecules and clusters, clusters spread among the molecules, so that every part of the set is like the whole."""
    rng = generator(config.seed, "plan")
    tasks = [Task(0, smiles) for smiles in molecules(config.n_molecules, config.seed)]
    for _ in range(config.n_clusters):
        inside = PARTNERS[rng.integers(2, len(PARTNERS))] if rng.random() < 0.5 else ""
        tasks.append(Task(0, inside, int(rng.integers(2, 8))))
    return [replace(tasks[place], number=number) for number, place in enumerate(rng.permutation(len(tasks)))]


def make_structures(store: Store, tasks: list[Task], config: OrganicConfig, executor: Executor) -> list[dict[str, Any]]:
    """Append the structures of every task to ``store``, in the order of the tasks, from where it was stopped.

    Returns:
        The tasks that failed, with their reasons.
    """
    failures: list[dict[str, Any]] = []
    first = int(store[len(store) - 1].tags["molecule"]) + 1 if len(store) else 0
    with progress_bar() as bar:
        shown = bar.add_task("structures", total=len(tasks), completed=first, note="")
        pending: list[System] = []
        for n_done, (task, outcome) in enumerate(_in_order(executor, config, tasks[first:]), start=1):
            if isinstance(outcome, Failure):
                failures.append({"number": task.number, "smiles": task.smiles, "kind": outcome.kind, "reason": outcome.reason})
            else:
                pending += outcome
            if n_done % IN_A_ROW == 0:
                store.append(pending)
                pending = []
                bar.update(shown, completed=first + n_done, note=f"{len(store):,} frames, {len(failures)} tasks failed")
        if pending:
            store.append(pending)
        bar.update(shown, completed=len(tasks), note=f"{len(store):,} frames, {len(failures)} tasks failed")
    return failures


def _in_order(executor: Executor, config: OrganicConfig, tasks: list[Task]) -> Iterator[tuple[Task, list[System] | Failure]]:
    waiting: dict[int, list[System] | Failure] = {}
    next_one = 0
    for number, outcome in executor.outcomes(partial(_frames_maker, config), tasks, limits=LIMITS):
        waiting[number] = outcome
        while next_one in waiting:
            yield tasks[next_one], waiting.pop(next_one)
            next_one += 1


def _frames_maker(config: OrganicConfig) -> Callable[[Task], list[System] | Failure]:
    """What each worker runs."""

    def make(task: Task) -> list[System] | Failure:
        try:
            frames = frames_of(task, config)
        except SapisError as error:  # a molecule that RDKit cannot place in space: the others go on
            return Failure("unsupported", f"expected {error.expected}, received {error.received}", 0.0)
        return [frame.with_tags(molecule=task.number) for frame in frames if is_plausible(frame)]

    return make


def frames_of(task: Task, config: OrganicConfig) -> list[System]:
    """The structures of one task. The same task and settings give the same bits."""
    rng = generator(config.seed, "frames", task.number)
    if task.n_waters:
        return _dynamics(_cluster(task, config, rng), config, rng, f"cluster-{task.number}", 300.0)
    from rdkit import Chem

    starts = load_structure(task.smiles, n_conformers=config.n_conformers, seed=derive_seed(config.seed, "start", task.number))
    starts = [start.with_tags(smiles=task.smiles, source="conformer") for start in starts]
    molecule = Chem.AddHs(Chem.MolFromSmiles(task.smiles))
    shapes = [conformer(molecule, start) for start in starts]
    frames = list(starts)
    shape = shapes[rng.integers(len(shapes))]
    temperatures = rng.choice(config.temperatures_K, size=round(OVERSAMPLING * config.n_vibrations))
    if task.number % config.md_every == 0:
        temperature = float(rng.choice(config.temperatures_K))
        frames += _dynamics(starts[0], config, rng, f"md-{task.number}", temperature)
    else:
        frames += _chosen(vibrated(shape, temperatures, rng), config.n_vibrations)
    frames += _chosen(turned(shape, round(OVERSAMPLING * config.n_torsions), rng), config.n_torsions)
    frames += stretched(shape, config.n_stretches, rng)
    for _ in range(config.n_pairs):
        partner = _partner(PARTNERS[rng.integers(len(PARTNERS))])
        frames.append(paired(frames[rng.integers(len(frames))], partner, rng))
    return frames


@cache
def _partner(smiles: str) -> System:
    return load_structure(smiles, n_conformers=1, seed=0)[0]


def _chosen(frames: list[System], n: int) -> list[System]:
    return spread_out([frame for frame in frames if is_plausible(frame)], n)


def _cluster(task: Task, config: OrganicConfig, rng: np.random.Generator) -> System:
    """Molecules side by side, each where the van der Waals spheres touch what is there already."""
    water = _partner("O")
    found = _partner(task.smiles) if task.smiles else water
    for _ in range(task.n_waters if task.smiles else task.n_waters - 1):
        found = paired(found, water, rng, scale=0.9)
    return replace(found, tags={"smiles": ".".join(filter(None, [task.smiles, *["O"] * task.n_waters])), "source": "cluster"})


def _dynamics(start: System, config: OrganicConfig, rng: np.random.Generator, name: str, temperature_K: float) -> list[System]:
    """Frames of a short trajectory of GFN2-xTB."""
    how = CandidatesConfig(timestep_fs=1.0, equilibration_fs=40.0, decorrelation_fs=12.0, friction_per_fs=0.02)
    plan = Trajectory(name, start, temperature_K, config.n_md)
    frames, _ = simulate(plan, LabelerConfig(), how, int(rng.integers(2**62)))
    return [replace(frame, tags={**start.tags, **frame.tags}) for frame in frames]


class _costed:
    """Adds what is spent inside to the account of ``name`` in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / COSTS, name

    def __enter__(self) -> None:
        self.watch = Stopwatch()

    def __exit__(self, *_: object) -> None:
        known = read_json(self.path) if self.path.exists() else {}
        spent = known.get(self.name, {})
        cost = {key: spent.get(key, 0.0) + value for key, value in self.watch.cost().items()}
        write_json(self.path, {**known, self.name: cost, "provenance": provenance()})
