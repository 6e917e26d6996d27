"""Deviations made right on frames that were held out: a factor for each group, and what most errors stay below.

A factor ``a`` is that of the greatest likelihood: ``a^2`` is the mean of ``e^2 / (d s^2)``. A conformal quantile ``q`` (split
conformal: Lei and others, JASA 113, 1094, 2018) makes no assumption on the distribution: of errors exchangeable with those that
it was set on, a share of at least ``level`` lies below ``q a s``. Errors of one frame go together, so what is few are frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapis.core.errors import DataError

MIN_ERRORS = 5  # to calibrate on
MIN_OF_GROUP = 30  # errors; groups with fewer share one factor
LEVELS = (0.5, 0.9, 0.95)
TINY = 1e-12


@dataclass(frozen=True)
class Calibration:
    """What turns stated deviations into ones that can be trusted.

    Attributes:
        d: components of an error: 1 of an energy, 3 of a force.
        factors: by group (the atomic number for forces); ``None`` is for all others.
        quantiles: by level, in units of corrected deviations, of those levels that so many errors suffice for.
        n: errors that it was set on.
    """

    d: int
    factors: Mapping[int | None, float]
    quantiles: Mapping[float, float]
    n: int

    @classmethod
    def of(cls, errors: np.ndarray, stds: np.ndarray, d: int, *, groups: Sequence[int] | np.ndarray | None = None,
           n_frames: int | None = None) -> Calibration:
        """Set on ``errors`` ``(n,)`` with ``stds`` ``(n,)``, each of a group ``(n,)``, of ``n_frames`` frames (default: as many).

        Raises:
            DataError: too few errors.
        """
        errors, stds = np.asarray(errors, dtype=float), np.asarray(stds, dtype=float)
        if len(errors) < MIN_ERRORS:
            raise DataError(expected=f"at least {MIN_ERRORS} errors to calibrate on", received=str(len(errors)),
                            where="calibration", todo="hold out more frames")
        squares = errors**2 / (d * np.maximum(stds, TINY) ** 2)
        factors: dict[int | None, float] = {None: float(np.sqrt(squares.mean()))}
        if groups is not None:
            for group in np.unique(groups):
                own = squares[np.asarray(groups) == group]
                if len(own) >= MIN_OF_GROUP:
                    factors[int(group)] = float(np.sqrt(own.mean()))
        ratios = np.sort(errors / (_factors(factors, groups, len(errors)) * np.maximum(stds, TINY)))
        # The (n + 1) level-th of n, rounded up: so that the level holds for the next one. Few frames bound no high level.
        n, n_frames = len(ratios), n_frames or len(ratios)
        places = {level: int(np.ceil(n * (n_frames + 1) / n_frames * level - TINY)) - 1 for level in LEVELS}
        quantiles = {level: float(ratios[place]) for level, place in places.items() if place < n}
        return cls(d, factors, quantiles, len(errors))

    def corrected(self, stds: np.ndarray, groups: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Deviations ``(n,)`` that can be trusted, for ``stds`` of ``groups``."""
        return _factors(self.factors, groups, len(stds)) * np.asarray(stds, dtype=float)

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
                "quantiles": {f"{key:g}": value for key, value in self.quantiles.items()}, "n": self.n}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        return cls(values["d"], {int(key) if key else None: value for key, value in values["factors"].items()},
                   {float(key): value for key, value in values["quantiles"].items()}, values["n"])


def _factors(factors: Mapping[int | None, float], groups: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    if groups is None:
        return np.full(n, factors[None])
    return np.array([factors.get(int(group), factors[None]) for group in groups])
