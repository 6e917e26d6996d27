"""Deviations made right on frames that were held out: a factor for each group, and what most errors stay below.

A factor ``a`` is that of the greatest likelihood: ``a^2`` is the mean of ``e^2 / (d s^2)``. Errors may grow faster than what is
stated: ``s`` is then ``t (s/t)^p``, with the root mean square ``t`` and a power ``p`` of the greatest likelihood, too. It is not
less than 1: noise in what is stated would flatten it, and a model that leaves what it knows would be too sure. A conformal
quantile ``q`` (split conformal: Lei and others, JASA 113, 1094, 2018) makes no assumption on the distribution: of errors like
those that it was set on, a share of ``level`` lies below ``q a s``. That is no strict guarantee here: factors and power are set
on the same errors, and a training may have chosen its weights by these frames. Errors of one frame go together, so what is few
are frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from sapis.core.errors import DataError

MIN_ERRORS = 5  # to calibrate on
MIN_OF_GROUP = 30  # errors, of `MIN_ERRORS` frames; groups with fewer share one factor
LEVELS = (0.5, 0.9, 0.95)
POWERS = (1.0, 3.0)
POWER_SPREAD = 0.5  # of a Gaussian around 1 that holds the power where frames are few
TINY = 1e-12
LEAST, LARGE = 1e-3, 0.95  # see `least_stated`


@dataclass(frozen=True)
class Calibration:
    """What turns stated deviations into ones that can be trusted.

    Attributes:
        d: components of an error: 1 of an energy, 3 of a force.
        factors: by group (the atomic number for forces); ``None`` is for all others.
        quantiles: by level, in units of corrected deviations, of those levels that so many errors suffice for.
        n: errors that it was set on.
        power, typical: ``p`` and ``t``.
    """

    d: int
    factors: Mapping[int | None, float]
    quantiles: Mapping[float, float]
    n: int
    power: float = 1.0
    typical: float = 1.0

    @classmethod
    def of(cls, errors: np.ndarray, stds: np.ndarray, d: int, *, groups: Sequence[int] | np.ndarray | None = None,
           frames: Sequence[int] | np.ndarray | None = None, with_power: bool = False) -> Calibration:
        """Set on ``errors`` ``(n,)`` with ``stds`` ``(n,)``, each of a group ``(n,)``.

        Args:
            frames: the number of each error's frame, ``(n,)``; default: each of its own.
            with_power: find a power; it is 1 otherwise.

        Raises:
            DataError: too few errors, or too few that a deviation is stated for.
        """
        errors, stds = np.asarray(errors, dtype=float), np.asarray(stds, dtype=float)
        if len(errors) < MIN_ERRORS:
            raise DataError(expected=f"at least {MIN_ERRORS} errors to calibrate on", received=str(len(errors)),
                            where="calibration", todo="hold out more frames")
        stds, frames = np.maximum(stds, TINY), np.arange(len(errors)) if frames is None else np.asarray(frames)
        typical, n_frames = float(np.sqrt(np.mean(stds**2))), len(np.unique(frames))
        is_stated = stds >= least_stated(stds)
        if is_stated.sum() < MIN_ERRORS:
            raise DataError(expected=f"at least {MIN_ERRORS} errors with a deviation to calibrate on",
                            received=str(is_stated.sum()), where="calibration", todo="hold out more frames")

        def most_likely(power: float) -> tuple[dict[int | None, float], np.ndarray]:
            now = _raised(stds, typical, power)
            of_stated = None if groups is None else np.asarray(groups)[is_stated]
            factors = _most_likely(errors[is_stated], now[is_stated], d, of_stated, frames[is_stated])
            return factors, _factors(factors, groups, len(errors)) * now

        def minus_log_likelihood(power: float) -> float:
            _, now = most_likely(power)
            # Of as many independent errors as there are frames.
            return n_frames * d * float(np.log(np.maximum(now[is_stated], TINY)).mean()) + 0.5 * ((power - 1) / POWER_SPREAD) ** 2

        power = float(minimize_scalar(minus_log_likelihood, bounds=POWERS, method="bounded").x) if with_power else 1.0
        factors, corrected = most_likely(power)
        ratios = np.sort(errors[is_stated] / np.maximum(corrected[is_stated], TINY))
        # The (n + 1) level-th of n, rounded up: so that the level holds for the next one. Few frames bound no high level.
        n = len(ratios)
        places = {level: int(np.ceil(n * (n_frames + 1) / n_frames * level - TINY)) - 1 for level in LEVELS}
        quantiles = {level: float(ratios[place]) for level, place in places.items() if place < n}
        return cls(d, factors, quantiles, len(errors), power, typical)

    def corrected(self, stds: np.ndarray, groups: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Deviations ``(n,)`` that can be trusted, for ``stds`` of ``groups``."""
        return _factors(self.factors, groups, len(stds)) * _raised(np.asarray(stds, dtype=float), self.typical, self.power)

    def bounds(self, stds: np.ndarray, level: float) -> np.ndarray:
        """What a share of ``level`` of the errors stays below, ``(n,)``, for corrected ``stds``.

        Raises:
            DataError: a level that was not calibrated.
        """
        if level not in self.quantiles:
            known = ", ".join(f"{each:g}" for each in self.quantiles)
            raise DataError(expected=f"a level among {known}", received=f"{level:g}", where="calibration",
                            todo="take one of these, or hold out more frames")
        return self.quantiles[level] * np.asarray(stds, dtype=float)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"d": self.d, "factors": {"" if key is None else str(key): value for key, value in self.factors.items()},
                "quantiles": {f"{key:g}": value for key, value in self.quantiles.items()}, "n": self.n, "power": self.power,
                "typical": self.typical}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        return cls(values["d"], {int(key) if key else None: value for key, value in values["factors"].items()},
                   {float(key): value for key, value in values["quantiles"].items()}, values["n"], values.get("power", 1.0),
                   values.get("typical", 1.0))


def least_stated(stds: np.ndarray) -> float:
    """Smaller ones of ``stds`` ``(n,)`` are of what has no force in any member, an atom without neighbours or at a place of
    symmetry: `LEAST` of the median of those that are not much smaller than the `LARGE` quantile. They tell no factor. (Not than
    the largest: one atom that something went wrong with would make all others small.)
    """
    return LEAST * float(np.median(stds[stds >= LEAST * np.quantile(stds, LARGE, method="lower")]))


def _raised(stds: np.ndarray, typical: float, power: float) -> np.ndarray:
    return stds * (stds / typical) ** (power - 1)


def _most_likely(errors: np.ndarray, stds: np.ndarray, d: int, groups: Sequence[int] | np.ndarray | None, frames: np.ndarray,
                 ) -> dict[int | None, float]:
    """The factor of all, and of each group with errors and frames enough."""
    squares = errors**2 / (d * stds**2)
    factors: dict[int | None, float] = {None: float(np.sqrt(squares.mean()))}
    for group in np.unique(groups) if groups is not None else ():
        is_own = np.asarray(groups) == group
        if is_own.sum() >= MIN_OF_GROUP and len(np.unique(frames[is_own])) >= MIN_ERRORS:
            factors[int(group)] = float(np.sqrt(squares[is_own].mean()))
    return factors


def _factors(factors: Mapping[int | None, float], groups: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    if groups is None:
        return np.full(n, factors[None])
    return np.array([factors.get(int(group), factors[None]) for group in groups])
