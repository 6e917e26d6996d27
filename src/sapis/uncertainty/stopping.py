"""When a model has asked enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from sapis.core.config import Config
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior

LEVEL = 0.95  # share of force errors that a target is for
SHARE = 0.01  # of fresh candidates that may be uncertain at the end
MIN_FOR_LAW = 4  # models that say what the next one brings


class StopRules(Config):
    """Rules of which the first that holds ends a run of active learning."""

    target_meV_A: float | None = Field(
        None, gt=0, description="the model bounds 95 % of its force errors on fresh candidates by this")
    below_eV_A: float | None = Field(
        None, gt=0, description="99 % of fresh candidates have no force that is less certain than this")
    min_gain: float | None = Field(
        None, gt=0, lt=1, description="by the law of the rounds so far, the next one takes less than this share off the error")


def enough(rules: StopRules, n_labels: Sequence[int], errors: Sequence[float], fresh: Callable[[], Sequence[Posterior]],
           forces: Calibration) -> str:
    """Why no more labels are needed, or an empty string.

    Args:
        n_labels: that each model so far has learned from.
        errors: of each on frames held out.
        fresh: posteriors of the last model for candidates; asked for where a rule needs them.
        forces: its calibration.
    """
    if rules.min_gain is not None and len(errors) >= MIN_FOR_LAW:
        gain = expected_gain(np.array(n_labels, dtype=float), np.array(errors))
        if gain < rules.min_gain:
            return f"by the law of the rounds so far, the next one would take {100 * gain:.2g} % off the error"
    if rules.target_meV_A is None and rules.below_eV_A is None:
        return ""
    posteriors = fresh()
    if not posteriors:
        return ""
    if rules.below_eV_A is not None:
        share = float(np.mean([not one.force_std.max() <= rules.below_eV_A for one in posteriors]))
        if share < SHARE:
            return f"of {100 * share:.2g} % of fresh candidates a force is less certain than {rules.below_eV_A:g} eV/Å"
    if rules.target_meV_A is not None:
        stds = np.concatenate([one.force_std for one in posteriors])
        bound = 1e3 * forces.quantiles.get(LEVEL, np.inf) * float(np.quantile(stds, LEVEL))
        if bound < rules.target_meV_A:
            return f"on fresh candidates the model bounds {100 * LEVEL:g} % of its force errors by {bound:.3g} meV/Å"
    return ""


def expected_gain(n_labels: np.ndarray, errors: np.ndarray) -> float:
    """Share by which the next round, as large as the last, lowers the error, if errors go as a power of the labels
    ``(rounds,)``.
    """
    slope = float(np.polyfit(np.log(n_labels), np.log(errors), 1)[0])
    return 1 - float((2 - n_labels[-2] / n_labels[-1]) ** slope)
