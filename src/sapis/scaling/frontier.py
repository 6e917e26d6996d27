"""The best that a budget buys: how many weights and frames, and what error is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapis.scaling.fit import INTERVAL, Fit
from sapis.scaling.forms import Points
from sapis.scaling.plan import Size

N_GRID = 400  # numbers of weights that are tried
REACH = 8.0  # beyond the smallest and the largest that were measured


@dataclass(frozen=True, eq=False)
class Allocation:
    """For budgets of training, ``(budgets,)`` each, or with the 90 % interval ``(3, budgets)``: value, low, high.

    Attributes:
        flops: budgets.
        n_parameters: of the best model, with interval.
        n_frames: that it is trained on, with interval.
        loss: that it then has, with interval (of the law, not of one training).
    """

    flops: np.ndarray
    n_parameters: np.ndarray
    n_frames: np.ndarray
    loss: np.ndarray


def best(points: Points, levels: np.ndarray) -> np.ndarray:
    """The trainings with the number of weights and frames that did best at their level of compute, on average over seeds: where
    their ``levels``, ``(points,)``, agree. A mask, ``(points,)``.
    """
    mask = np.zeros(len(points), dtype=bool)
    for level in np.unique(levels):
        at_level = levels == level
        kinds = {(points.n_parameters[i], points.n_frames[i]) for i in np.flatnonzero(at_level)}
        same = [at_level & (points.n_parameters == n) & (points.n_frames == frames) for n, frames in sorted(kinds)]
        mask |= min(same, key=lambda members: float(np.log(points.loss[members]).mean()))
    return mask


def allocate(law: Fit, sizes: Sequence[Size], flops: np.ndarray, *, n_available: int | None = None) -> Allocation:
    """The best use of budgets by a law of weights and frames: the number of weights at which its loss is least.

    Args:
        sizes: of the model, whose costs say what a frame costs at any size.
        flops: ``(budgets,)``.
        n_available: frames that there are; where a budget sees more it sees them again. None: as many as are wanted.
    """
    n_known = np.array([size.n_parameters for size in sizes], dtype=float)
    n = np.geomspace(n_known.min() / REACH, n_known.max() * REACH, N_GRID)
    per_frame = flops_per_frame(sizes, n)
    rows = []
    for budget in flops:
        seen = np.maximum(budget / per_frame, 1.0)
        frames = seen if n_available is None else np.minimum(seen, n_available)
        losses = law.curves(Points(np.full_like(n, budget), n, frames, seen / frames, np.ones_like(n)))
        place = losses.argmin(axis=1)
        each = np.stack([n[place], frames[place], losses[np.arange(len(losses)), place]])
        low, high = np.quantile(each[:, 1:], INTERVAL, axis=1)
        rows.append(np.stack([each[:, 0], low, high]))
    found = np.array(rows)
    return Allocation(np.asarray(flops, dtype=float), found[:, :, 0].T, found[:, :, 1].T, found[:, :, 2].T)


def flops_per_frame(sizes: Sequence[Size], n_parameters: np.ndarray) -> np.ndarray:
    """Of a training step, at any number of weights: between the sizes that are known, and beyond them with the mean slope."""
    known = sorted(sizes, key=lambda size: size.n_parameters)
    x, y = np.log([size.n_parameters for size in known]), np.log([size.flops for size in known])
    wanted = np.log(n_parameters)
    slope = (y[-1] - y[0]) / (x[-1] - x[0]) if len(known) > 1 else 1.0
    beyond = slope * (np.minimum(wanted - x[0], 0.0) + np.maximum(wanted - x[-1], 0.0))
    return np.asarray(np.exp(np.interp(wanted, x, y) + beyond))
