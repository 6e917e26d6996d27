"""What the bench and a peer say to each other: frames, recipes, and the small class that each peer defines.

Runs in every peer's environment: numpy and torch only.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled structure.

    Attributes:
        numbers: atomic numbers, ``(atoms,)``.
        positions: Å, ``(atoms, 3)`` float64.
        cell: rows, Å, ``(3, 3)``; zeros where not periodic.
        pbc: ``(3,)`` bool.
        energy: eV less the reference energies of the atoms.
        forces: eV/Å, ``(atoms, 3)``.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float
    forces: np.ndarray


@dataclass(frozen=True, eq=False)
class Problem:
    """What every peer is given.

    Attributes:
        elements: atomic numbers, ascending.
        scale: root mean square force component of the training frames, eV/Å.
        average_neighbors: mean number of neighbours of an atom within ``cutoff``.
        cutoff: Å.
        parts: frames by name: ``train``, ``validation`` and the tests.
    """

    elements: tuple[int, ...]
    scale: float
    average_neighbors: float
    cutoff: float
    parts: dict[str, list[Frame]]

    @property
    def tests(self) -> list[str]:
        """Names of the parts to test on."""
        return [name for name in self.parts if name not in ("train", "validation")]


def write_problem(path: Path, problem: Problem) -> None:
    """Write an npz file without any pickled object."""
    arrays: dict[str, Any] = {
        "elements": np.array(problem.elements), "scale": problem.scale, "average_neighbors": problem.average_neighbors,
        "cutoff": problem.cutoff, "parts": np.array(list(problem.parts)),
    }
    for name, frames in problem.parts.items():
        arrays |= {
            f"{name}/counts": np.array([len(frame.numbers) for frame in frames]),
            f"{name}/numbers": np.concatenate([frame.numbers for frame in frames]),
            f"{name}/positions": np.concatenate([frame.positions for frame in frames]),
            f"{name}/cell": np.stack([frame.cell for frame in frames]), f"{name}/pbc": np.stack([frame.pbc for frame in frames]),
            f"{name}/energy": np.array([frame.energy for frame in frames]),
            f"{name}/forces": np.concatenate([frame.forces for frame in frames]),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def read_problem(path: Path) -> Problem:
    """The inverse of `write_problem`."""
    with np.load(path, allow_pickle=False) as file:
        parts = {str(name): list(_frames({key: file[f"{name}/{key}"] for key in (
            "counts", "numbers", "positions", "cell", "pbc", "energy", "forces")})) for name in file["parts"]}
        return Problem(tuple(file["elements"].tolist()), float(file["scale"]), float(file["average_neighbors"]),
                       float(file["cutoff"]), parts)


def _frames(arrays: dict[str, np.ndarray]) -> Iterator[Frame]:
    ends = np.cumsum(arrays["counts"])
    for k, (start, end) in enumerate(zip(ends - arrays["counts"], ends, strict=True)):
        rows = slice(start, end)
        yield Frame(arrays["numbers"][rows], arrays["positions"][rows], arrays["cell"][k], arrays["pbc"][k],
                    float(arrays["energy"][k]), arrays["forces"][rows])


@dataclass(frozen=True)
class Recipe:
    """How a peer is trained; the defaults are the common protocol.

    Attributes:
        learning_rate: of Adam with AMSGrad; the peer's usual value.
        batch_size: frames per step.
        weight_decay: of the parameters that the peer's `Peer.decayed` names.
        ema_decay: of the running mean of the weights, which is what is tested.
        clip: largest norm of the gradient, in units of its running mean; with ``is_clip_absolute`` as it is.
        warmup_steps: of linear warm-up.
        schedule: ``cosine`` to zero over the budget, or ``plateau``: times ``factor`` after ``patience`` epochs in which the
            validation loss did not fall by the fraction ``threshold``.
        energy_weight, force_weight: of the two terms of the loss.
        energy_power: the squared energy error is divided by n_atoms to this power: 1 is the common loss, 2 the squared error per
            atom that other codes use.
        second: fraction of the budget, learning rate, energy weight and force weight of a second stage; empty for none.
    """

    learning_rate: float = 0.005
    batch_size: int = 5
    weight_decay: float = 0.0
    ema_decay: float = 0.99
    clip: float = 3.0
    is_clip_absolute: bool = False
    warmup_steps: int = 100
    schedule: str = "cosine"
    factor: float = 0.8
    patience: int = 50
    threshold: float = 1e-4
    energy_weight: float = 1.0
    force_weight: float = 1.0
    energy_power: int = 1
    second: dict[str, float] = field(default_factory=dict)


class Peer(ABC):
    """A potential in the bench. Its energies are totals less the reference energies.

    Args:
        problem: elements, scale, mean number of neighbours and cutoff; peers do not look at its frames.
        options: of the architecture.
    """

    package: ClassVar[str]  # the distribution whose version is recorded
    is_augmented: ClassVar[bool] = False  # train on frames in random orientations
    module: torch.nn.Module

    @abstractmethod
    def __init__(self, problem: Problem, **options: Any) -> None: ...

    @abstractmethod
    def prepare(self, frame: Frame) -> Any:
        """What can be done once for each frame (neighbours)."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Any:
        """A batch of prepared frames."""

    @abstractmethod
    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies ``(graphs,)`` eV and forces ``(atoms, 3)`` eV/Å; with ``create_graph`` for a loss on both."""

    def decayed(self) -> list[torch.nn.Parameter]:
        """Parameters with weight decay, where the recipe has any."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


def load_peer(driver: str, problem: Problem, *, seed: int, **options: Any) -> Peer:
    """The peer whose class is ``Driver`` in module ``driver`` of this package, with weights from ``seed``."""
    torch.manual_seed(seed)
    peer: Peer = importlib.import_module(f"benchmarks.peers.{driver}").Driver(problem, **options)
    return peer
