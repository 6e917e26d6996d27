"""Neighbours against a brute-force search over image shifts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule

from conftest import apart, cluster, crystal
from sapis.core.errors import DataError
from sapis.core.seeds import generator
from sapis.data.neighbors import PADDING_DISTANCE, Neighbors, edge_list, neighbors
from sapis.data.system import System

CUTOFF = 4.0


def brute_force(system: System, cutoff: float) -> list[tuple[int, int, np.ndarray]]:
    """Receiver, sender and vector of every pair closer than ``cutoff``, over more images than can matter."""
    # A plane of the lattice lies 1/|reciprocal vector| from the next; only periodic rows count.
    rows = system.cell[system.pbc]
    reach = [0, 0, 0]
    if len(rows):
        spread = np.ptp(system.positions @ np.linalg.pinv(rows), axis=0)
        heights = 1 / np.linalg.norm(np.linalg.pinv(rows), axis=0)
        for axis, extent, height in zip(np.flatnonzero(system.pbc), spread, heights, strict=True):
            reach[axis] = int(np.ceil(cutoff / height + extent)) + 1
    found = []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        moved = system.positions + np.asarray(shift) @ system.cell
        vectors = moved[None] - system.positions[:, None]
        distances = np.linalg.norm(vectors, axis=-1)
        for i, j in np.argwhere(distances < cutoff):
            if i != j or any(shift):
                found.append((int(i), int(j), vectors[i, j]))
    return found


def as_rows(edges: list[tuple[int, int, np.ndarray]]) -> np.ndarray:
    """Edges as rows in an order that does not depend on the search."""
    rows = np.array([(i, j, *vector) for i, j, vector in edges]).reshape(-1, 5)
    return rows[np.lexsort(np.round(rows, 6).T[::-1])]


def used(result: Neighbors, cutoff: float) -> np.ndarray:
    return np.linalg.norm(result.vectors, axis=-1) < cutoff


def edges_of(result: Neighbors, cutoff: float) -> np.ndarray:
    return as_rows([(i, int(result.senders[i, s]), result.vectors[i, s]) for i, s in np.argwhere(used(result, cutoff))])


def periodic(cell: np.ndarray, n_atoms: int = 5, pbc: object = True, seed: int = 0) -> System:
    """Atoms in the box of ``cell``, whose zero rows stand for 4 Å of room."""
    cell = np.asarray(cell, dtype=float)
    room = np.where(cell.any(axis=1, keepdims=True), cell, 4.0 * np.eye(3))
    return System(numbers=np.ones(n_atoms, dtype=int), cell=cell, pbc=np.asarray(pbc),
                  positions=apart(generator(seed, "box"), n_atoms, room, 0.5, pbc=True))


SKEWED = np.array([[5.0, 0.0, 0.0], [3.5, 4.0, 0.0], [-2.0, 1.5, 4.5]])
SYSTEMS = {
    "molecule": System.from_atoms(molecule("CH3CH2OH")),
    "cluster": cluster(20),
    "single atom": System(numbers=[1], positions=np.zeros((1, 3))),
    "single atom in a cell": periodic(3.0 * np.eye(3), 1),
    "cubic": periodic(9.0 * np.eye(3), 20),
    "skewed": periodic(SKEWED),
    "left-handed": periodic(SKEWED[::-1]),
    "thin": periodic(np.diag([1.7, 2.9, 9.0]), 3),
    "thin and skewed": periodic([[1.9, 0.3, 0.0], [1.5, 1.6, 0.1], [0.2, -0.4, 8.0]], 2),
    "wire with zero vectors": periodic([[2.5, 0.5, 0.2], [0, 0, 0], [0, 0, 0]], pbc=[True, False, False]),
    "wire along z": periodic([[0, 0, 0], [0, 0, 0], [0, 0, 2.5]], pbc=[False, False, True]),
    "slab with a zero vector": periodic([[3.0, 0, 0.3], [0, 0, 0], [1.0, 0.2, 3.5]], pbc=[True, False, True]),
    "slab in a cell with vacuum": periodic(np.diag([3.0, 3.5, 30.0]), pbc=[True, True, False]),
    "molecule in a cell that is not periodic": periodic(np.diag([3.0, 3.5, 4.0]), pbc=False),
    "cell with parallel vectors where not periodic": periodic(
        [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 4.0]], 1, pbc=[True, False, False]),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_edges_are_those_of_brute_force(name: str) -> None:
    system = SYSTEMS[name]
    expected = as_rows(brute_force(system, CUTOFF))
    result = neighbors(system, CUTOFF)
    got = edges_of(result, CUTOFF)
    assert result.counts.sum() == len(expected)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_edge_list_gives_the_same_vectors(name: str) -> None:
    system = SYSTEMS[name]
    receivers, senders, shifts = edge_list(system, CUTOFF)
    cell = np.where(system.pbc[:, None], system.cell, 0.0)
    assert not shifts[:, ~system.pbc].any(), "no image in a direction that is not periodic"
    vectors = system.positions[senders] - system.positions[receivers] + shifts @ cell
    got = as_rows(list(zip(receivers, senders, vectors, strict=True)))
    np.testing.assert_allclose(got, as_rows(brute_force(system, CUTOFF)), atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_reverse_index_is_an_involution_and_turns_vectors_round(name: str) -> None:
    result = neighbors(SYSTEMS[name], CUTOFF)
    reverse, is_used = result.reverse.ravel(), used(result, CUTOFF).ravel()
    slots = np.arange(reverse.size)
    assert sorted(reverse) == slots.tolist()
    assert (reverse[reverse] == slots).all()
    assert (reverse[~is_used] == slots[~is_used]).all(), "an unused slot is its own reverse"
    assert (reverse[is_used] != slots[is_used]).all(), "an edge is never its own reverse"
    vectors, senders = result.vectors.reshape(-1, 3), result.senders.ravel()
    np.testing.assert_allclose(vectors[reverse[is_used]], -vectors[is_used], atol=1e-10)
    receivers = slots // result.n_slots
    assert (senders[reverse] == receivers).all() and (receivers[reverse] == senders).all()


def test_unused_slots_point_to_their_own_atom_from_far_away() -> None:
    result = neighbors(SYSTEMS["molecule"], 2.0)
    unused = ~used(result, 2.0)
    assert unused.any()
    assert (result.senders[unused] == np.argwhere(unused)[:, 0]).all()
    np.testing.assert_allclose(np.linalg.norm(result.vectors[unused], axis=-1), 2.0 * PADDING_DISTANCE)


def test_isolated_atoms_have_a_slot_and_no_edge() -> None:
    system = System(numbers=[1, 1, 1], positions=[[0, 0, 0], [1, 0, 0], [50, 0, 0]])
    result = neighbors(system, CUTOFF)
    assert result.counts.sum() == 2 and result.n_slots == 1
    assert used(result, CUTOFF).ravel().tolist() == [True, True, False]


def test_there_is_no_cap_on_neighbours() -> None:
    """A dense lattice: every point within the cutoff of the middle is counted."""
    grid = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), axis=-1).reshape(-1, 3) * 1.0
    middle = int(np.flatnonzero(~grid.any(axis=1))[0])
    result = neighbors(System(numbers=np.ones(len(grid), dtype=int), positions=grid), 3.99)
    expected = int((np.linalg.norm(grid, axis=1) < 3.99).sum()) - 1
    assert expected > 200
    assert used(result, 3.99)[middle].sum() == expected == result.n_slots


@pytest.mark.parametrize("shift", [1e4, -317.3])
def test_atoms_outside_the_cell_are_found(shift: float) -> None:
    system = periodic(SKEWED)
    expected = edges_of(neighbors(system, CUTOFF), CUTOFF)
    moved = replace(system, positions=system.positions + shift)
    np.testing.assert_allclose(edges_of(neighbors(moved, CUTOFF), CUTOFF), expected, atol=1e-8)
    # Each atom by itself in another image: the same neighbourhoods, with other shifts.
    images = np.array([[0, 0, 0], [1, 0, -2], [-3, 1, 0], [0, 5, 0], [2, 2, 2]])
    scattered = replace(system, positions=system.positions + images @ system.cell)
    np.testing.assert_allclose(edges_of(neighbors(scattered, CUTOFF), CUTOFF), expected, atol=1e-8)


@pytest.mark.parametrize("system", [
    System(numbers=[1, 8, 6], positions=[[0, 0, 0], [2, 0, 0], [2, 0, 0]], tags={"file": "bad.xyz", "frame": 7}),
    System(numbers=[1, 8, 6], positions=[[0, 0, 0], [2, 0, 0], [2, 0, 1e-5]], tags={"file": "bad.xyz", "frame": 7}),
    System(numbers=[8, 1, 6], positions=[[1, 1, 1], [0, 0, 0], [5, 0, 0]], cell=5 * np.eye(3), pbc=True,
           tags={"file": "bad.xyz", "frame": 7}),
], ids=["exactly", "almost", "through the cell"])
def test_coinciding_atoms_are_refused_with_their_place(system: System) -> None:
    with pytest.raises(DataError, match=r"atoms (1 and 2|2 and 1)") as caught:
        neighbors(system, CUTOFF)
    assert "bad.xyz" in str(caught.value) and "frame 7" in str(caught.value)


def test_the_result_does_not_depend_on_the_search_but_on_the_structure() -> None:
    system = crystal()
    one, other = neighbors(system, CUTOFF), neighbors(system, CUTOFF)
    for name in ("senders", "vectors", "reverse"):
        assert (getattr(one, name) == getattr(other, name)).all()
