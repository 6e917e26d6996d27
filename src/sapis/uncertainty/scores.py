"""How well stated deviations go with errors, by scores that do not depend on the axes.

An error is the norm ``e`` of a vector of ``d`` components (1: an energy, 3: the force on an atom), its deviation ``s`` that of
each of them. If a model is right about itself, and as unsure along each axis, ``e / s`` is distributed as the norm of ``d``
standard normal numbers (chi). Of a covariance that is not the same along all axes, as that of few members is, only the mean
variance is judged: its regions count as balls, and the ceilings are those of a ball, which it may not reach.

| score | what |
|---|---|
| ``nll`` | negative logarithm of the likelihood, for each component |
| ``crps`` | continuous ranked probability score of a component (Gneiting and Raftery, JASA 102, 359, 2007), mean over all axes |
| ``miscalibration_area`` | mean distance of observed from stated coverage (Tran and others, MLST 1, 025006, 2020) |
| ``ence`` | relative distance of root mean square error and root mean variance, in bins of deviation (Levi and others, 2022) |
| ``spearman`` | rank correlation of errors and deviations |
| ``spearman_ceiling`` | the same for errors drawn from the deviations: the most that can be had |
| ``auroc_worst_decile`` | chance that one of the worst tenth of errors has a larger deviation than one of the others |
| ``auroc_ceiling`` | the same for errors drawn from the deviations |
| ``coverage_50`` … | share of errors within the stated region |
| ``risk_coverage_area`` | mean error of the surest, averaged over how many, relative: 1 is chance (Geifman and others, 2019) |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import chi, mannwhitneyu, norm, spearmanr

from sapis.core.errors import DataError
from sapis.core.seeds import generator

N_BINS = 20  # of deviation
N_LEVELS = 99  # stated coverages
N_CEILING = 20  # draws of errors
COVERAGES = (50, 90, 95)  # per cent
WORST = 0.1  # of the errors


def scores(errors: np.ndarray, stds: np.ndarray, d: int, *, seed: int = 0) -> dict[str, float]:
    """All scores of ``errors`` ``(n,)`` with deviations ``stds`` ``(n,)`` of each of their ``d`` components.

    Units are those of the errors. See the head of this module.

    Raises:
        DataError: fewer than two errors, or numbers that are not finite, or deviations that are not positive.
    """
    errors, stds = _checked(errors, stds)
    ratios = errors / stds
    sure = np.argsort(stds, kind="stable")
    running = np.cumsum(errors[sure]) / np.arange(1, len(errors) + 1)
    found = {
        "n": float(len(errors)), "rmse": float(np.sqrt(np.mean(errors**2) / d)), "std": float(np.sqrt(np.mean(stds**2))),
        "nll": nll(errors, stds, d), "crps": crps(errors, stds, d), "miscalibration_area": miscalibration_area(ratios, d),
        "ence": ence(errors, stds, d), "spearman": _rank_correlation(errors, stds),
        "auroc_worst_decile": auroc_worst(errors, stds), **ceilings(stds, d, seed=seed),
        "risk_coverage_area": float(running.mean() / errors.mean()) if errors.any() else 1.0,
    }
    return found | {f"coverage_{level}": float(np.mean(ratios <= chi.ppf(level / 100, d))) for level in COVERAGES}


def nll(errors: np.ndarray, stds: np.ndarray, d: int) -> float:
    """Mean over errors and components."""
    return float(np.mean(np.log(stds) + 0.5 * np.log(2 * np.pi) + (errors / stds) ** 2 / (2 * d)))


def crps(errors: np.ndarray, stds: np.ndarray, d: int) -> float:
    """Mean over errors and, of vectors, over all directions of the axes.

    For one component ``x = s z`` it is ``s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))``. The component of a vector of length
    ``e`` along a random axis in three dimensions is uniform in ``[-e, e]`` (Archimedes), which the integral over z is for.

    Raises:
        DataError: other than one or three components.
    """
    z = np.maximum(errors / stds, 1e-12)
    if d == 1:
        values = z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)
    elif d == 3:
        first = z**2 / 2 * (2 * norm.cdf(z) - 1) - (norm.cdf(z) - 0.5 - z * norm.pdf(z))
        values = (first + 2 * (norm.cdf(z) - 0.5)) / z - 1 / np.sqrt(np.pi)
    else:
        raise DataError(expected="1 or 3 components", received=str(d), where="crps", todo="give energies or forces")
    return float(np.mean(stds * values))


def miscalibration_area(ratios: np.ndarray, d: int) -> float:
    """Of errors over deviations, ``(n,)``."""
    stated = np.arange(1, N_LEVELS + 1) / (N_LEVELS + 1)
    observed = np.searchsorted(np.sort(ratios), chi.ppf(stated, d), side="right") / len(ratios)
    return float(np.mean(np.abs(observed - stated)))


def ence(errors: np.ndarray, stds: np.ndarray, d: int) -> float:
    """In bins of equally many."""
    found, stated = reliability(errors, stds, d)
    return float(np.mean(np.abs(found - stated) / stated))


def reliability(errors: np.ndarray, stds: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a component and deviations, root mean squares in bins of equally many with rising deviation, ``(bins,)`` each."""
    bins = [part for part in np.array_split(np.argsort(stds, kind="stable"), min(N_BINS, len(stds))) if len(part)]
    return (np.array([np.sqrt(np.mean(errors[part] ** 2) / d) for part in bins]),
            np.array([np.sqrt(np.mean(stds[part] ** 2)) for part in bins]))


def ceilings(stds: np.ndarray, d: int, *, seed: int = 0) -> dict[str, float]:
    """Mean ``spearman_ceiling`` and ``auroc_ceiling`` of ``stds`` with errors that are drawn from them."""
    rng = generator(seed, "ceiling")
    drawn = [stds * np.linalg.norm(rng.standard_normal((d, len(stds))), axis=0) for _ in range(N_CEILING)]
    return {"spearman_ceiling": float(np.mean([_rank_correlation(errors, stds) for errors in drawn])),
            "auroc_ceiling": float(np.mean([auroc_worst(errors, stds) for errors in drawn]))}


def auroc_worst(errors: np.ndarray, stds: np.ndarray) -> float:
    """Chance that one of the worst `WORST` of errors has a larger deviation than one of the others."""
    return auroc(stds, errors > np.quantile(errors, 1 - WORST))


def auroc(stds: np.ndarray, is_bad: np.ndarray) -> float:
    """Chance that one of the bad has a larger deviation than one of the others; NaN if there are none of either."""
    if is_bad.all() or not is_bad.any():
        return float("nan")
    bad, other = stds[is_bad], stds[~is_bad]
    return float(mannwhitneyu(bad, other).statistic / (len(bad) * len(other)))


def auroc_shifted(own: np.ndarray, shifted: np.ndarray) -> float:
    """Chance that a deviation from elsewhere is larger than one from where the model is at home; ``(n,)`` each."""
    return auroc(np.concatenate([own, shifted]), np.repeat([False, True], [len(own), len(shifted)]))


def _rank_correlation(errors: np.ndarray, stds: np.ndarray) -> float:
    if np.ptp(errors) == 0 or np.ptp(stds) == 0:
        return 0.0
    return float(spearmanr(errors, stds).statistic)


def _checked(errors: Sequence[float] | np.ndarray, stds: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    errors, stds = np.asarray(errors, dtype=np.float64), np.asarray(stds, dtype=np.float64)
    fine = errors.shape == stds.shape and errors.ndim == 1 and len(errors) > 1 and bool(
        np.isfinite(errors).all() and np.isfinite(stds).all() and (errors >= 0).all() and (stds > 0).all())
    if not fine:
        raise DataError(expected="two or more errors of 0 and more, each with a deviation above 0, all finite",
                        received=f"shapes {errors.shape} and {stds.shape}, least deviation {np.min(stds, initial=np.inf):.3g}",
                        where="scores of uncertainty", todo="calibrate with a floor, or leave out what has no deviation")
    return errors, stds
