"""Which of many candidates to label: the uncertain ones, but not all alike.

Candidates are points in a feature space in which distances say how differently the model could err: sums over atoms of what its
last linear maps read, in units of their spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sapis.core.errors import DataError
from sapis.data.system import System
from sapis.model.last_layer import LastLayer
from sapis.model.potential import TransformerPotential
from sapis.uncertainty.one_model import sums_over_atoms

Strategy = Literal["random", "largest", "diverse", "largest and diverse", "information"]
RIDGE = 1e-3  # of the mean curvature of what is known, added to all of it
SHORTLIST = 5  # times as many as wanted, the most uncertain, of which "largest and diverse" takes the most diverse


def select(n: int, strategy: Strategy, *, stds: np.ndarray, points: np.ndarray, known: np.ndarray, rng: np.random.Generator,
           ) -> np.ndarray:
    """Numbers of ``n`` candidates, in the order of choice; all of them if there are no more.

    Args:
        stds: the largest deviation of a force in each candidate, ``(candidates,)``.
        points: of the candidates, ``(candidates, features)``.
        known: of what is labelled already, ``(labelled, features)``.
        rng: of ties and of random choice.

    Raises:
        DataError: arrays that do not fit.
    """
    if not len(stds) == len(points) or points.ndim != 2 or known.shape[1:] != points.shape[1:]:
        raise DataError(expected="a deviation and a point for each candidate, and points of the same features for what is known",
                        received=f"{stds.shape}, {points.shape}, {known.shape}", where="select", todo="mend the arrays")
    n = min(n, len(stds))
    if strategy == "random":
        return rng.permutation(len(stds))[:n]
    if strategy == "largest":
        return np.argsort(-stds, kind="stable")[:n]
    if strategy == "information":
        return _most_informative(n, points, known)
    chosen = np.arange(len(stds)) if strategy == "diverse" else np.argsort(-stds, kind="stable")[: SHORTLIST * n]
    return chosen[_largest_cluster(n, points[chosen], known)]


def _most_informative(n: int, points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The greatest expected information gain about the weights of a linear model of the points, one after the other: by
    ``log(1 + x C x)``, with the covariance C of the weights given all before (D-optimality; MacKay, Neural Computation 4, 590,
    1992).
    """
    curvature = known.T @ known if len(known) else points.T @ points / len(points)
    ridge = RIDGE * max(float(np.trace(curvature)) / len(curvature), 1e-30)
    covariance = np.linalg.inv(curvature + ridge * np.eye(len(curvature)))
    gains, found = np.einsum("ip,pq,iq->i", points, covariance, points), list[int]()
    for _ in range(n):
        gains[found] = -np.inf
        best = int(gains.argmax())
        found.append(best)
        along = covariance @ points[best]
        size = 1 + points[best] @ along
        covariance -= np.outer(along, along) / size
        gains = gains - (points @ along) ** 2 / size
    return np.array(found, dtype=np.int64)


def _largest_cluster(n: int, points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Largest-cluster maximum-distance selection (Holzmüller and others, JMLR 24, 164, 2023): every point belongs to the nearest
    centre, known or chosen; the next is the farthest point of the cluster with the largest sum of squared distances.
    """
    if len(known):
        squares = ((points**2).sum(1)[:, None] - 2 * points @ known.T + (known**2).sum(1)[None])
        owner, nearest = squares.argmin(1), np.maximum(squares.min(1), 0.0)
    else:
        owner, nearest = np.zeros(len(points), dtype=np.int64), ((points - points.mean(0)) ** 2).sum(1)
    n_centres, found = max(len(known), 1), list[int]()
    for _ in range(n):
        sizes = np.bincount(owner, weights=nearest, minlength=n_centres)
        inside = np.flatnonzero((owner == sizes.argmax()) & ~np.isin(np.arange(len(points)), found))
        if len(inside) == 0:  # all that is left lies on centres
            inside = np.setdiff1d(np.arange(len(points)), found)
        best = int(inside[nearest[inside].argmax()])
        found.append(best)
        squares_to = ((points - points[best]) ** 2).sum(1)
        closer = squares_to < nearest
        owner[closer], nearest = n_centres, np.minimum(nearest, squares_to)
        owner[best], nearest[best] = n_centres, 0.0
        n_centres += 1
    return np.array(found, dtype=np.int64)


def points_of(potential: TransformerPotential, systems: Sequence[System]) -> np.ndarray:
    """Sums over atoms of what the last linear maps read, ``(systems, features)``."""
    rows = []
    for part in potential.batches(systems):
        features = LastLayer(potential, part.batch).features.double()
        rows.append(sums_over_atoms(part, features).cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 1))


def in_common_units(*points: np.ndarray) -> list[np.ndarray]:
    """Each feature in units of its spread over all of them."""
    everything = np.concatenate(points)
    spread = everything.std(axis=0)
    spread[spread == 0] = 1.0
    return [each / spread for each in points]
