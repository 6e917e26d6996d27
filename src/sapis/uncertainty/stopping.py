"""When a model has asked enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field
from scipy.optimize import brentq
from scipy.stats import chi, t

from sapis.core.config import Config
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.uncertainty.assess import TINY

LEVEL = 0.95  # share of force errors that a target is for
SHARE = 0.01  # of fresh candidates that may be uncertain at the end
MIN_FOR_LAW = 4  # models that say what the next one brings
SURE = 0.9  # one-sided confidence that it brings too little


class StopRules(Config):
    """Rules of which the first that holds ends a run of active learning."""

    target_meV_A: float | None = Field(
        None, gt=0, description="95 % of the force errors on fresh candidates are below this, as the model says; it takes 19 "
        "frames held out to say so")
    below_eV_A: float | None = Field(
        None, gt=0, description="99 % of fresh candidates have no force that is less certain than this")
    min_gain: float | None = Field(
        None, gt=0, lt=1, description="by the law of the rounds so far, the next one takes less than this share off the error, "
        "with 90 % confidence")
    cpu_seconds: float | None = Field(
        None, gt=0, description="labels, trajectories and trainings of all rounds, and cheap labels before them, have taken "
        "this long; no further round is begun")


def enough(rules: StopRules, n_labels: Sequence[int], errors: Callable[[], Sequence[float]],
           fresh: Callable[[], tuple[Sequence[Posterior], int]], forces: Calibration, n_next: int) -> str:
    """Why no more labels are needed, or an empty string. What was spent (``cpu_seconds``) is for the caller to look at.

    Args:
        n_labels: that each model so far has learned from.
        errors: of each, all on the same frames, to which no weights were fitted; asked for where a rule needs them.
        fresh: posteriors of the last model for candidates, and how many more there were of which it cannot be sure: structures
            that it puts beyond all limits, trajectories that broke off. Asked for likewise.
        forces: its calibration.
        n_next: labels that the next round would add.
    """
    if rules.min_gain is not None and len(set(n_labels)) >= MIN_FOR_LAW:
        gain = expected_gain(np.array(n_labels, dtype=float), np.array(errors()), n_next)
        if gain < rules.min_gain:
            return f"by the law of the rounds so far, the next one would take {100 * gain:.2g} % off the error at most"
    if rules.target_meV_A is None and rules.below_eV_A is None:
        return ""
    posteriors, n_unsure = fresh()
    if not posteriors:
        return ""
    if rules.below_eV_A is not None:
        above = sum(not one.force_std.max() <= rules.below_eV_A for one in posteriors)
        share = (above + n_unsure) / (len(posteriors) + n_unsure)
        if share < SHARE:
            return f"of {100 * share:.2g} % of fresh candidates a force is less certain than {rules.below_eV_A:g} eV/Å"
    if rules.target_meV_A is not None:
        stds = np.concatenate([one.force_std for one in posteriors])
        below = 1e3 * error_below_which(LEVEL, stds, forces, n_unsure / (len(posteriors) + n_unsure))
        if below < rules.target_meV_A:
            return f"{100 * LEVEL:g} % of the force errors on fresh candidates are below {below:.3g} meV/Å, as the model says"
    return ""


def error_below_which(level: float, stds: np.ndarray, forces: Calibration, unsure: float = 0.0) -> float:
    """Below which a share ``level`` of force errors lies, eV/Å, if those with calibrated deviations ``stds`` ``(n,)`` are normal,
    times what the conformal quantile is larger than that of a normal error; infinite where that is not known.

    Args:
        unsure: share of errors that no deviation tells; they count as larger.
    """
    if level not in forces.quantiles:
        return np.inf
    tail = max(1.0, forces.quantiles[level] / chi.ppf(level, forces.d))
    stds = np.maximum(stds, TINY)
    high = float(stds.max()) * chi.ppf(1 - 1e-9, forces.d)

    def more_than_asked(error: float) -> float:
        return (1 - unsure) * float(chi.cdf(error / stds, forces.d).mean()) - level

    return tail * float(brentq(more_than_asked, 0.0, high)) if more_than_asked(high) > 0 else np.inf


def expected_gain(n_labels: np.ndarray, errors: np.ndarray, n_next: int) -> float:
    """Share by which ``n_next`` further labels lower the error, if errors ``(rounds,)`` go as a power of the labels
    ``(rounds,)``: the most that it can be, with the confidence `SURE`.
    """
    x, y, n_free = np.log(n_labels), np.log(errors), len(errors) - 2
    slope, offset = np.polyfit(x, y, 1)
    deviation = np.sqrt(np.sum((y - offset - slope * x) ** 2) / n_free / np.sum((x - x.mean()) ** 2))
    steepest = slope - t.ppf(SURE, n_free) * deviation
    return 1 - float((1 + n_next / n_labels[-1]) ** steepest)
