"""Neighbours for peers that bring no search of their own, and for the plain Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.peers.protocol import Frame, Peer, Problem


@dataclass(frozen=True, eq=False)
class Graph:
    """One frame or several, atoms concatenated.

    Attributes:
        numbers: atomic numbers, ``(atoms,)``.
        positions: Å, ``(atoms, 3)`` float32.
        senders, receivers: ``(edges,)``; each pair in both directions, in the order of the receivers.
        shifts: Å, ``(edges, 3)``: the edge vector is position of the sender less that of the receiver plus shift.
        graph: of each atom, ``(atoms,)``.
        n_graphs: how many.
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    shifts: torch.Tensor
    graph: torch.Tensor
    n_graphs: int

    def vectors(self, positions: torch.Tensor) -> torch.Tensor:
        """Edge vectors, receiver to sender, Å, ``(edges, 3)``."""
        return positions[self.senders] - positions[self.receivers] + self.shifts

    def sums(self, per_atom: torch.Tensor) -> torch.Tensor:
        """``(atoms,)`` -> ``(graphs,)``."""
        return per_atom.new_zeros(self.n_graphs).index_add(0, self.graph, per_atom)


def graph_of(frame: Frame, cutoff: float) -> Graph:
    """The graph of one frame."""
    from vesin import NeighborList

    cell = frame.cell.copy()
    cell[~frame.pbc] = np.eye(3)[~frame.pbc]  # any vector, where there is none
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    receivers, senders, shifts = search.compute(points=frame.positions, box=cell, periodic=frame.pbc, quantities="ijS")
    return Graph(
        numbers=torch.from_numpy(frame.numbers), positions=torch.from_numpy(frame.positions).float(),
        senders=torch.from_numpy(senders.astype(np.int64)), receivers=torch.from_numpy(receivers.astype(np.int64)),
        shifts=torch.from_numpy(shifts @ cell).float(), graph=torch.zeros(len(frame.numbers), dtype=torch.long), n_graphs=1,
    )


def join(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one."""
    counts = [len(graph.numbers) for graph in graphs]
    starts = np.cumsum([0, *counts[:-1]]).tolist()

    def joined(name: str, offsets: Sequence[int] | None = None) -> Any:
        parts = [getattr(graph, name) for graph in graphs]
        return torch.cat(parts if offsets is None else [part + offset for part, offset in zip(parts, offsets, strict=True)])

    return Graph(joined("numbers"), joined("positions"), joined("senders", starts), joined("receivers", starts),
                 joined("shifts"), joined("graph", range(len(graphs))), len(graphs))


class GraphPeer(Peer):
    """A peer whose batches are graphs."""

    def __init__(self, problem: Problem, **_: Any) -> None:
        self.cutoff, self.scale = problem.cutoff, problem.scale

    def prepare(self, frame: Frame) -> Graph:
        return graph_of(frame, self.cutoff)

    def collate(self, items: Sequence[Graph]) -> Graph:
        return join(items)


def forces_of(energies: torch.Tensor, positions: torch.Tensor, *, create_graph: bool) -> torch.Tensor:
    """-dE/dr, eV/Å, ``(atoms, 3)``."""
    (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=create_graph)
    return -gradient
