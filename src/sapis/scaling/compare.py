"""How much more compute one model needs than another for the same error, by the laws of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sapis.core.seeds import generator
from sapis.scaling.fit import INTERVAL, Fit
from sapis.scaling.forms import Points

N_GRID = 2000  # budgets on which a law is turned round
REACH = 1e6  # beyond the budgets that were measured; what a law does not reach by then it does not reach
N_ERRORS = 25


@dataclass(frozen=True, eq=False)
class Comparison:
    """Compute to equal error.

    Attributes:
        losses: errors, falling, ``(errors,)``: from the largest that both began with to the least that either reached.
        flops: what the one and what the other needs for each, by their laws, ``(2, errors)``; infinite where a law never gets
            there.
        ratio: the other's over the one's: value, low, high of the 90 % interval, ``(3, errors)``.
        is_measured: whether both got to this error in a training, so that neither law is extrapolated, ``(errors,)``.
    """

    losses: np.ndarray
    flops: np.ndarray
    ratio: np.ndarray
    is_measured: np.ndarray


def compare(one: Fit, other: Fit) -> Comparison:
    """How many times the compute of ``one`` ``other`` needs; both are laws of compute of one kind of loss."""
    highest = min(float(law.points.loss.max()) for law in (one, other))
    reached = [float(law.points.loss.min()) for law in (one, other)]
    losses = np.geomspace(highest, min(reached), N_ERRORS)
    needed = [_flops_for(law, losses) for law in (one, other)]
    # Each bootstrap of the one goes with another one of the other: their draws are of the same seed.
    n = min(len(flops) for flops in needed) - 1
    mixed = generator(0, "compare").permutation(n) + 1
    ratios = _ratios(needed[1][mixed], needed[0][1 : n + 1])
    low, high = np.quantile(ratios, INTERVAL, axis=0, method="nearest")
    value = _ratios(needed[1][:1], needed[0][:1])[0]
    return Comparison(losses, np.stack([flops[0] for flops in needed]), np.stack([value, low, high]), losses >= max(reached))


def _ratios(other: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Infinite where only the other never gets there, zero where only the one does not; where neither does, nothing tells them
    apart: 1.
    """
    with np.errstate(invalid="ignore"):
        found = other / one
    return np.where(np.isnan(found), 1.0, found)


def _flops_for(law: Fit, losses: np.ndarray) -> np.ndarray:
    """What the law and each of its bootstrap's need for ``losses``, ``(1 + samples, losses)``."""
    known = law.points.flops
    flops = np.geomspace(known.min() / REACH, known.max() * REACH, N_GRID)
    curves = law.curves(Points(flops, *np.ones((4, N_GRID))))
    found = np.stack([np.exp(np.interp(np.log(losses), np.log(curve[::-1]), np.log(flops[::-1]))) for curve in curves])
    return np.where(losses < curves[:, -1:], np.inf, found)
