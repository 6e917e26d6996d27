"""Is a peer a potential at all? Finite energies, and forces that are the negative gradient of its energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.peers.protocol import Frame, Peer

STEP = 0.01  # Å, of all atoms together: beyond float32's rounding, within the reach of a central difference
N_DIRECTIONS = 4
TOLERANCE = 0.02  # of the slope, in float32
SMALL = 0.05  # eV/Å: slopes below it drown in the rounding of the energy, and are compared as if they were this large


def check_peer(peer: Peer, frame: Frame) -> float:
    """Relative difference between the forces and the slope of the energy along a few directions.

    The first direction is that of the forces themselves, where the slope is largest; the others are random. Networks whose first
    output is almost constant show little before their training, hence the same check after it.

    Raises:
        ValueError: an energy or force is not finite, or they do not belong together.
    """
    energy, forces = _predict(peer, frame)
    if not np.isfinite(energy) or not np.isfinite(forces).all():
        raise ValueError(f"{type(peer).__module__}: energy {energy} or a force is not finite")
    random = np.random.default_rng(0)
    directions = [forces, *random.normal(size=(N_DIRECTIONS - 1, *forces.shape))]
    slopes, projections = [], []
    for direction in directions:
        step = STEP * direction / np.linalg.norm(direction)
        ahead, behind = (_predict(peer, replace(frame, positions=frame.positions + sign * step))[0] for sign in (1, -1))
        slopes.append((behind - ahead) / (2 * STEP))
        projections.append((forces * step).sum() / STEP)
    error = float(np.linalg.norm(np.subtract(slopes, projections)) / max(np.linalg.norm(projections), SMALL))
    if not error < TOLERANCE:
        raise ValueError(f"{type(peer).__module__}: forces are not -dE/dr: slopes of the energy {slopes}, forces {projections}")
    return error


def _predict(peer: Peer, frame: Frame) -> tuple[float, np.ndarray]:
    torch.manual_seed(0)  # some peers choose the frame of an edge at random
    energies, forces = peer.predict(peer.collate([peer.prepare(frame)]), create_graph=False)
    return float(energies.detach().double().sum()), forces.detach().double().numpy()
