"""`sapis scale floor`: the force error that no model of a study can go below, measured with the method of the labels.

Two things make it. Labels have noise: the same frames labelled with tighter settings differ. And a model is blind to atoms from
which nothing reaches it: an atom's energy knows what lies within as many hops of the cutoff as there are layers, its force twice
as many. Where atoms beyond move, its true force changes and the model's does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sapis.core.errors import DataError
from sapis.core.files import read_json, write_json
from sapis.core.seeds import generator
from sapis.data.neighbors import edge_list
from sapis.data.system import System
from sapis.labelers.labelling import label_at
from sapis.model.config import ModelConfig, dial
from sapis.pipeline.label import LabelRequest, executor_of
from sapis.pipeline.scale import known_pool, read_study
from sapis.scaling.fit import Floor

FLOOR, LABELS = "floor.json", "floor.store"
N_MOVES = 4  # copies in which the atoms beyond have moved
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class MeasuredFloor:
    """What was measured, all in meV/Å, of force components.

    Attributes:
        noise: root mean square difference between the labels of the study and those of the tighter settings.
        blindness: root mean square change of the true force on an atom when the atoms move that a model cannot see.
        mean: of both together.
        std: standard deviation of ``mean``, by a bootstrap over frames.
        n_frames: frames that were labelled.
        n_blind: of these, frames with atoms that the force on some other atom cannot see.
    """

    noise: float
    blindness: float
    mean: float
    std: float
    n_frames: int
    n_blind: int


def measure_floor(folder: Path, request: LabelRequest, *, n_frames: int = 50, displacement: float = 0.1, seed: int = 0,
                  ) -> MeasuredFloor:
    """Measure the floor of the study in ``folder`` on some of its test frames; note it in ``floor.json``, where `fit` finds it.

    Args:
        request: the method of the labels with tighter settings, and where to compute it.
        n_frames: test frames.
        displacement: standard deviation of the moves, Å: as far as atoms wander.
        seed: of the frames, atoms and moves.

    Raises:
        FileError: no study, or its data have changed.
        DataError: no frame could be labelled.
    """
    study = read_study(folder)
    pool = known_pool(study)
    config = dial(max(study.config.widths), study.config.model)
    random = generator(seed, "floor")
    chosen = random.permutation(len(pool.test))[:n_frames]
    cases = [_case(pool.test[int(k)], config, displacement, random) for k in chosen]
    labelled = _labelled(folder / LABELS, [system for case in cases for system in case.systems], request)
    noise, blindness, n_blind = [], [], 0
    for case in cases:
        own, labelled = labelled[: len(case.systems)], labelled[len(case.systems) :]
        first, *moved = own
        if first is None or first.forces is None or case.known.forces is None:
            continue
        noise.append(float(np.mean((first.forces - case.known.forces) ** 2)))
        forces = [system.forces[case.atom] for system in moved if system is not None and system.forces is not None]
        blindness.append(float(np.mean(np.var(forces, axis=0, ddof=1))) if len(forces) > 1 else 0.0)
        n_blind += bool(moved)
    if not noise:
        raise DataError(expected="labels of test frames", received=f"none of {len(cases)}: all have failed",
                        where=str(folder / LABELS), todo="check the method by `sapis label` on one of them")
    squares = 1e6 * np.array([noise, blindness])
    drawn = generator(seed, "bootstrap").integers(0, len(noise), (N_BOOTSTRAP, len(noise)))
    spread = float(np.sqrt(squares.sum(axis=0)[drawn].mean(axis=1)).std())
    parts = np.sqrt(squares.mean(axis=1))
    found = MeasuredFloor(float(parts[0]), float(parts[1]), float(np.hypot(*parts)), spread, len(noise), n_blind)
    write_json(folder / FLOOR, {**asdict(found), "labeler": request.labeler.model_dump(mode="json"), "seed": seed,
                                "displacement_A": displacement})
    return found


@dataclass(frozen=True)
class _Case:
    """A frame of the study; the same without labels, and copies in which atoms have moved; the atom that cannot see these."""

    known: System
    systems: list[System]
    atom: int


def _case(system: System, config: ModelConfig, displacement: float, random: np.random.Generator) -> _Case:
    base, atom = system.without_labels(), int(random.integers(len(system)))
    beyond = ~seen_by_force(system, atom, config.cutoff, config.n_layers)
    moves = displacement * random.standard_normal((N_MOVES, len(system), 3)) * beyond[:, None]
    copies = [replace(base, positions=base.positions + move) for move in moves] if beyond.any() else []
    return _Case(system, [base, *copies], atom)


def seen_by_force(system: System, atom: int, cutoff: float, n_layers: int) -> np.ndarray:
    """Which atoms the force on ``atom`` depends on in a model of ``n_layers``, ``(atoms,)``: those within twice as many hops."""
    receivers, senders, _ = edge_list(system, cutoff)
    seen = np.zeros(len(system), dtype=bool)
    seen[atom] = True
    for _ in range(2 * n_layers):
        seen[receivers[seen[senders]]] = True
    return seen


def _labelled(path: Path, systems: Sequence[System], request: LabelRequest) -> list[System | None]:
    """What came of each; None where it failed."""
    _, outcomes = label_at(path, systems, request.labeler, executor_of(request.cluster, request.workers),
                           limits=request.limits)
    return [found if isinstance(found, System) else None for found in outcomes]


def known_floor(folder: Path) -> Floor | None:
    """What `measure_floor` has noted in ``folder``, if it has."""
    if not (folder / FLOOR).exists():
        return None
    known = read_json(folder / FLOOR)
    return Floor(known["mean"], max(known["std"], 1e-3))
