"""Neighbours within a cutoff, padded so that edge work becomes matrix products without scatter.

Row i lists the senders around receiver i. A slot that is not used points from an atom to itself along a vector
far beyond the cutoff: every radial function and its derivatives are exactly zero there, so no mask is needed.
Each slot knows the slot of the reverse edge, which turns every scatter of a backward pass into a gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell

from sapis.data.system import System

# In units of the cutoff: where the far end of an unused slot lies.
PADDING_DISTANCE = 2.0
# Å; below this, two atoms are on top of each other and no potential has a meaning.
COINCIDENCE_DISTANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Padded neighbours of one system.

    Attributes:
        senders: index of the neighbour, ``(atoms, slots)`` int64.
        vectors: from receiver to sender, image shift included, Å, ``(atoms, slots, 3)`` float64.
        reverse: flat index (``receiver * slots + slot``) of the reverse edge, ``(atoms, slots)`` int64.
        counts: used slots of each atom, which come first, ``(atoms,)`` int64.
    """

    senders: np.ndarray
    vectors: np.ndarray
    reverse: np.ndarray
    counts: np.ndarray

    @property
    def n_slots(self) -> int:
        """Slots per atom: the largest number of neighbours, at least one."""
        return int(self.senders.shape[1])


def edge_list(system: System, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers ``(edges,)``, senders ``(edges,)`` and image shifts ``(edges, 3)`` of all pairs closer than ``cutoff`` Å.

    Both directions of each pair are listed; an atom's own periodic images are neighbours.

    Raises:
        DataError: two atoms coincide.
    """
    from vesin import NeighborList

    # Non-periodic directions may have zero cell vectors, for which there are no fractional coordinates.
    cell = complete_cell(system.cell)
    search = NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    receivers, senders, shifts, distances = search.compute(
        points=system.positions, box=cell, periodic=system.pbc, quantities="ijSd"
    )
    if len(distances) and distances.min() < COINCIDENCE_DISTANCE:
        edge = int(distances.argmin())
        raise system.error(
            expected="atoms apart from each other",
            received=f"atoms {receivers[edge]} and {senders[edge]} at {distances[edge]:.1e} Å", key="positions",
            todo="remove the duplicate atom or the broken frame",
        )
    return receivers.astype(np.int64), senders.astype(np.int64), shifts.astype(np.int64)


def neighbors(system: System, cutoff: float) -> Neighbors:
    """The padded `Neighbors` of ``system`` within ``cutoff`` Å. There is no cap on their number."""
    receivers, senders, shifts = edge_list(system, cutoff)
    atoms, edges = len(system), len(receivers)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], senders, receivers))
    receivers, senders, shifts = receivers[order], senders[order], shifts[order]
    counts = np.bincount(receivers, minlength=atoms)
    slots = max(1, int(counts.max(initial=0)))
    flat = receivers * slots + np.arange(edges) - np.repeat(np.cumsum(counts) - counts, counts)

    own = np.arange(atoms)
    padded_senders = np.repeat(own, slots)
    padded_senders[flat] = senders
    vectors = np.zeros((atoms * slots, 3))
    vectors[:, 0] = PADDING_DISTANCE * cutoff
    cell = complete_cell(system.cell)
    vectors[flat] = system.positions[senders] - system.positions[receivers] + shifts @ cell
    reverse = np.arange(atoms * slots)
    reverse[flat] = flat[_reverse_edges(receivers, senders, shifts)]
    return Neighbors(
        senders=padded_senders.reshape(atoms, slots), vectors=vectors.reshape(atoms, slots, 3),
        reverse=reverse.reshape(atoms, slots), counts=counts,
    )


def _reverse_edges(receivers: np.ndarray, senders: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """For edges sorted by (receiver, sender, shift): the index of each edge's reverse."""
    mirrored = np.lexsort((-shifts[:, 2], -shifts[:, 1], -shifts[:, 0], receivers, senders))
    result = np.empty(len(receivers), dtype=np.int64)
    result[mirrored] = np.arange(len(receivers))
    return result
