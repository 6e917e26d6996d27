"""Is a peer a potential at all? Finite energies, and forces that are the negative gradient of its energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.peers.protocol import Frame, Peer

STEP = 0.01  # Å, of all that move together: beyond float32's rounding, within the reach of a central difference
N_MOVED = 3  # atoms: in a liquid more have always some pair that passes the cutoff
N_DIRECTIONS = 4
N_TRIES = 200  # directions drawn until there are so many
TOLERANCE = 0.02  # of the slope, in float32
SMALL = 0.05  # eV/Å: slopes below it are compared as if they were this large
ROUNDING = 4  # spacings of float32 at the energy, by which energies of large systems are off


def check_peer(peer: Peer, frame: Frame, cutoff: float) -> float:
    """Relative difference between the forces and the slope of the energy along a few directions.

    The first direction is that of the largest forces, the others are random. Directions along which a pair of atoms passes the
    cutoff (Å) are left out: whether forces belong to the energy is asked here, not whether the energy is continuous there
    (GotenNet's is not). Networks whose first output is almost constant show little before their training, hence the same check
    after it.

    Raises:
        ValueError: an energy or force is not finite, or they do not belong together.
    """
    energy, forces = _predict(peer, frame)
    if not np.isfinite(energy) or not np.isfinite(forces).all():
        raise ValueError(f"{type(peer).__module__}: energy {energy} or a force is not finite")
    slopes, projections = [], []
    for step in _steps(frame, forces, cutoff):
        ahead, behind = (_predict(peer, replace(frame, positions=frame.positions + sign * step))[0] for sign in (1, -1))
        slopes.append((behind - ahead) / (2 * STEP))
        projections.append((forces * step).sum() / STEP)
    size = max(float(np.linalg.norm(projections)), SMALL)
    error = float(np.linalg.norm(np.subtract(slopes, projections))) / size
    if not error < TOLERANCE + ROUNDING * float(np.spacing(np.float32(abs(energy)))) / (2 * STEP) / size:
        raise ValueError(f"{type(peer).__module__}: forces are not -dE/dr: slopes of the energy {slopes}, forces {projections}")
    return error


def _steps(frame: Frame, forces: np.ndarray, cutoff: float) -> list[np.ndarray]:
    """Displacements of length `STEP` to either side of which each atom has the same neighbours."""
    random = np.random.default_rng(0)
    steps: list[np.ndarray] = []
    for n in range(N_TRIES):
        is_first = n == 0 and forces.any()
        moved = np.argsort(np.linalg.norm(forces, axis=1))[-N_MOVED:] if is_first else random.permutation(len(forces))[:N_MOVED]
        step = np.zeros_like(forces)
        step[moved] = forces[moved] if is_first else random.normal(size=(len(moved), 3))
        step *= STEP / np.linalg.norm(step)
        if (_is_near(frame, frame.positions + step, cutoff) == _is_near(frame, frame.positions - step, cutoff)).all():
            steps.append(step)
        if len(steps) == N_DIRECTIONS:
            return steps
    raise ValueError(f"no {N_DIRECTIONS} directions of {N_TRIES} along which no pair of atoms passes the cutoff within {STEP} Å")


def _is_near(frame: Frame, positions: np.ndarray, cutoff: float) -> np.ndarray:
    """Which pairs of atoms, nearest images included, are within the cutoff, ``(images, atoms, atoms)``."""
    shifts = np.array(list(np.ndindex(3, 3, 3))) - 1
    images = shifts[(shifts[:, ~frame.pbc] == 0).all(1)] @ frame.cell
    vectors = positions[:, None] - positions
    return np.stack([np.linalg.norm(vectors + image, axis=2) < cutoff for image in images])


def _predict(peer: Peer, frame: Frame) -> tuple[float, np.ndarray]:
    torch.manual_seed(0)  # some peers choose the frame of an edge at random
    energies, forces = peer.predict(peer.collate([peer.prepare(frame)]), create_graph=False)
    return float(energies.detach().double().sum()), forces.detach().double().numpy()
