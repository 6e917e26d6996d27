"""Fits of scaling laws: robust, from many starts, with intervals, and with what physics says of the floor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from sapis.core.errors import DataError
from sapis.core.seeds import generator
from sapis.scaling.forms import Form, Points

EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)  # of the first search
MAX_EXPONENT = 4.0
SMALLEST = 1e-6  # floor or amplitude at least, of the smallest error: zero has no logarithm
N_STARTS = 3  # of the first search that are followed
LARGE_FLOOR = 0.7  # of the smallest error: where a floor in quadrature is looked for, too, for a small one has no slope
HUBER = 1.5  # standard deviations of the noise from which on a residual counts linearly
TINY = 1e-9  # noise at least, relative: data without any would have no scale
INTERVAL = (0.05, 0.95)
WEBB = np.sqrt([1.5, 1.0, 0.5]).tolist() + (-np.sqrt([1.5, 1.0, 0.5])).tolist()
FAR = 3.0  # standard deviations of the noise: what is beyond is an outlier
DISAGREE = 2.0  # standard deviations by which a fitted floor is below the measured one from which on they disagree


@dataclass(frozen=True)
class Floor:
    """A floor that was measured, not fitted: label noise, what atoms beyond the cutoff do, the error of a teacher. No model gets
    below it; that of a study may stay above, for what its size, degree or cutoff cannot represent.

    Attributes:
        mean: in the unit of the loss.
        std: its standard deviation.
    """

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    Attributes:
        form: which.
        points: what it was fitted to.
        centers: geometric means of the x_i, ``(terms,)``: where the amplitudes are meant.
        values: parameters in the order of ``form.parameters``.
        samples: of the bootstrap, ``(samples, parameters)``.
        noise: standard deviation of the logarithm of the loss about the law.
        aic, bic: of the fit without a measured floor; residuals beyond `FAR` of its noise count as much as those there.
        disagreement: by how much the floor that the data alone ask for is above the measured one, in standard deviations; None
            without a measured one.
    """

    form: Form
    points: Points
    centers: np.ndarray
    values: np.ndarray
    samples: np.ndarray
    noise: float
    aic: float
    bic: float
    disagreement: float | None = None

    @property
    def floor(self) -> float:
        """eps."""
        return float(np.exp(self.values[0])) if self.form.has_floor else 0.0

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """Value and 90 % interval of each parameter, the floor as it is and not its logarithm."""
        found = {}
        for number, name in enumerate(self.form.parameters):
            values = np.concatenate([self.values[number : number + 1], self.samples[:, number]])
            if name == "log_floor":
                name, values = "floor", np.exp(values)
            low, high = np.quantile(values[1:], INTERVAL)
            found[name] = float(values[0]), float(low), float(high)
        return found

    def curves(self, points: Points) -> np.ndarray:
        """The loss by the fitted law and by each of the bootstrap's, ``(1 + samples, points)``."""
        return np.stack([_loss(self.form, values, self.centers, points) for values in (self.values, *self.samples)])

    def predict(self, points: Points) -> np.ndarray:
        """The loss, and the 90 % interval of a new training's, ``(3, points)``."""
        best, *samples = self.curves(points)
        scatter = np.exp(self.noise * generator(0, "predict").standard_normal((len(samples), len(points))))
        return np.stack([best, *np.quantile(np.array(samples) * scatter, INTERVAL, axis=0)])

    @property
    def is_in_conflict(self) -> bool:
        """Whether the data ask for errors below the measured floor."""
        return self.disagreement is not None and self.disagreement < -DISAGREE

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "form": self.form.name, "n_points": len(self.points), "noise": self.noise, "aic": self.aic, "bic": self.bic,
            "parameters": {name: dict(zip(("value", "low", "high"), interval, strict=True))
                           for name, interval in self.intervals.items()},
            "centers": dict(zip(self.form.terms, self.centers.tolist(), strict=True)), "disagreement": self.disagreement,
            "is_in_conflict": self.is_in_conflict,
        }


def fit(points: Points, form: Form, *, floor: Floor | None = None, n_samples: int = 200, seed: int = 0) -> Fit:
    """Fit ``form`` to ``points``: least squares of the logarithm of the loss, outliers counted linearly (Huber).

    Exponents are searched on a grid, where floor and amplitudes follow by non-negative linear least squares; the best are
    followed to the minimum. The intervals are those of a bootstrap of the residuals, widened for the parameters that were fitted.

    Args:
        floor: one that was measured; it enters as one more observation, of a bound from below.
        n_samples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: not more points than parameters.
    """
    n_parameters = len(form.parameters)
    if len(points) <= n_parameters:
        raise DataError(expected=f"more than {n_parameters} trainings for the law {form.name!r}", received=str(len(points)),
                        where="scaling law", todo="run more, or fit a law with fewer parameters")
    start = [0.5 * (low + high) for _, low, high in form.extras]
    centers = np.exp(np.log(form.inputs(points, start)).mean(axis=1))
    free = _best(form, centers, points, None, TINY, _starts(form, centers, points))
    residuals = np.log(points.loss) - np.log(_loss(form, free, centers, points))
    free_noise = _spread(residuals, n_parameters)
    free = _best(form, centers, points, None, free_noise, _from(form, free, points))
    values, noise, disagreement = free, free_noise, None
    free_residuals = np.log(points.loss) - np.log(_loss(form, free, centers, points))
    if floor is not None and form.has_floor:
        values = _best(form, centers, points, floor, free_noise, [free, _with_floor(free, floor)])
    residuals = np.log(points.loss) - np.log(_loss(form, values, centers, points))
    noise = _spread(residuals, n_parameters)
    samples = _bootstrap(form, centers, points, values, floor, noise, residuals, n_samples, seed)
    if floor is not None and form.has_floor:
        alone = _bootstrap(form, centers, points, free, None, free_noise, free_residuals, max(20, n_samples // 4), seed)
        spread = float(np.hypot(np.exp(alone[:, 0]).std(), floor.std))
        disagreement = (float(np.exp(free[0])) - floor.mean) / max(spread, TINY)
    # As robust as the fit: one spoiled training must not choose the form.
    n, square = len(points), float(np.mean(np.clip(free_residuals, -FAR * free_noise, FAR * free_noise) ** 2))
    information = n * np.log(max(square, TINY**2))
    return Fit(form, points, centers, values, samples, noise, float(information + 2 * n_parameters),
               float(information + np.log(n) * n_parameters), disagreement)


def _loss(form: Form, values: np.ndarray, centers: np.ndarray, points: Points) -> np.ndarray:
    loss, _ = _loss_and_slopes(form, values, centers, points, need_slopes=False)
    return loss


def _loss_and_slopes(form: Form, values: np.ndarray, centers: np.ndarray, points: Points, *, need_slopes: bool,
                     ) -> tuple[np.ndarray, np.ndarray | None]:
    """The loss, and its derivatives by the parameters, ``(points, parameters)``; those by extras are left at zero."""
    first, n_terms = int(form.has_floor), len(form.terms)
    extras = values[first + 2 * n_terms :]
    logs = np.log(form.inputs(points, extras)) - np.log(centers)[:, None]
    amplitudes, exponents = values[first : first + 2 * n_terms : 2], values[first + 1 : first + 2 * n_terms : 2]
    powers = np.exp(amplitudes[:, None] - exponents[:, None] * logs)
    floor = np.exp(values[0]) if form.has_floor else 0.0
    rest = powers.sum(axis=0)
    loss = np.hypot(floor, rest) if form.is_quadratic else floor + rest
    if not need_slopes:
        return loss, None
    of_floor, of_rest = (floor / loss, rest / loss) if form.is_quadratic else (np.ones(len(loss)), np.ones(len(loss)))
    slopes = np.zeros((len(loss), len(values)))
    if form.has_floor:
        slopes[:, 0] = of_floor * floor
    slopes[:, first : first + 2 * n_terms : 2] = (of_rest * powers).T
    slopes[:, first + 1 : first + 2 * n_terms : 2] = -(of_rest * powers * logs).T
    return loss, slopes


def _starts(form: Form, centers: np.ndarray, points: Points) -> list[np.ndarray]:
    """Parameters from which to go down: the best of a grid of exponents, in each of which the rest is linear."""
    smallest = SMALLEST * points.loss.min()
    found: list[tuple[float, np.ndarray]] = []
    for extras in itertools.product(*(np.linspace(low, high, 5) for _, low, high in form.extras)):
        logs = np.log(form.inputs(points, extras)) - np.log(centers)[:, None]
        for exponents in itertools.product(EXPONENTS, repeat=len(form.terms)):
            columns = [*([np.ones(len(points))] if form.has_floor else []), *np.exp(-np.array(exponents)[:, None] * logs)]
            factors, misfit = nnls(np.stack(columns, axis=1) / points.loss[:, None], np.ones(len(points)))
            factors = np.log(np.maximum(factors, smallest))
            first = int(form.has_floor)
            pairs = [value for pair in zip(factors[first:], exponents, strict=True) for value in pair]
            found.append((misfit, np.array([*factors[:first], *pairs, *extras])))
    found.sort(key=lambda each: each[0])
    return [start for _, values in found[:N_STARTS] for start in _from(form, values, points)]


def _from(form: Form, values: np.ndarray, points: Points) -> list[np.ndarray]:
    """``values`` as a place to start from, and what else a form needs beside it."""
    if not form.is_quadratic:
        return [values]
    return [values, np.concatenate([[np.log(LARGE_FLOOR * points.loss.min())], values[1:]])]


def _best(form: Form, centers: np.ndarray, points: Points, floor: Floor | None, noise: float, starts: list[np.ndarray],
          ) -> np.ndarray:
    """The parameters of the least sum of squares that is reached from ``starts``.

    Of the floor it looks for itself, in units of the smallest error: by its logarithm a small one has no slope.
    """
    log_loss, n_terms, first, unit = np.log(points.loss), len(form.terms), int(form.has_floor), points.loss.min()
    low = np.log(SMALLEST * unit)
    lower = np.array([*([SMALLEST / 2] if first else []), *[low - 1, 0.0] * n_terms, *(each[1] for each in form.extras)])
    upper = np.array([*([1.0] if first else []), *[log_loss.max() + 5, MAX_EXPONENT] * n_terms,
                      *(each[2] for each in form.extras)])
    scale = max(noise, TINY)

    def outside(inner: np.ndarray) -> np.ndarray:
        return np.concatenate([np.log(inner[:first] * unit), inner[first:]])

    def inside(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.exp(values[:first]) / unit, values[first:]])

    def residuals(inner: np.ndarray) -> np.ndarray:
        found = (np.log(_loss(form, outside(inner), centers, points)) - log_loss) / scale
        return found if floor is None else np.append(found, min(inner[0] * unit - floor.mean, 0.0) / floor.std)

    def slopes(inner: np.ndarray) -> np.ndarray:
        loss, by_values = _loss_and_slopes(form, outside(inner), centers, points, need_slopes=True)
        assert by_values is not None
        found = by_values / loss[:, None] / scale
        found[:, :first] /= inner[:first]
        if floor is not None:
            row = np.zeros(len(inner))
            row[0] = unit / floor.std if inner[0] * unit < floor.mean else 0.0
            found = np.vstack([found, row])
        return found

    is_robust = noise > TINY
    ends = [
        least_squares(residuals, np.clip(inside(start), lower + 1e-9, upper - 1e-9), jac="2-point" if form.extras else slopes,
                      bounds=(lower, upper), loss=_huber(len(points)) if is_robust else "linear", f_scale=HUBER, max_nfev=200)
        for start in starts
    ]
    return outside(min(ends, key=lambda end: end.cost).x)


def _huber(n_points: int) -> Callable[[np.ndarray], np.ndarray]:
    """Huber's loss of the first residuals, those of points; squares of what else there is: a measured floor is no outlier."""

    def rho(squares: np.ndarray) -> np.ndarray:
        far = squares > 1
        far[n_points:] = False
        root = np.sqrt(np.where(far, squares, 1.0))
        return np.stack([np.where(far, 2 * root - 1, squares), 1 / root, np.where(far, -0.5 / root**3, 0.0)])

    return rho


def _spread(residuals: np.ndarray, n_parameters: int) -> float:
    """Standard deviation of the noise, from the median so that outliers do not widen it, and at least from the squares of the
    residuals within three of these.
    """
    scale = 1.4826 * float(np.median(np.abs(residuals)))
    inner = residuals[np.abs(residuals) <= FAR * scale] if scale > 0 else residuals
    factor = len(residuals) / max(len(residuals) - n_parameters, 1)
    return max(float(np.sqrt(np.mean(inner**2) * factor)), TINY)


def _bootstrap(form: Form, centers: np.ndarray, points: Points, values: np.ndarray, floor: Floor | None, noise: float,
               residuals: np.ndarray, n_samples: int, seed: int) -> np.ndarray:
    """Parameters fitted to the law with residuals drawn anew, ``(samples, parameters)``; the measured floor is drawn, too.

    Where trainings share their frames, their residuals go together: each group's then keep their places and are multiplied by
    one number (the wild bootstrap of clusters with the six weights of Webb, Can. J. Econ. 56, 839, 2023).
    """
    rng = generator(seed, "bootstrap")
    law = _loss(form, values, centers, points)
    groups, group_of = np.unique(points.groups, return_inverse=True)
    widened = (residuals - residuals.mean()) * np.sqrt(len(groups) / max(len(groups) - len(values), 1))
    samples = []
    for _ in range(n_samples):
        is_shared = len(groups) < len(points)
        noise_drawn = widened * rng.choice(WEBB, len(groups))[group_of] if is_shared else rng.choice(widened, len(points))
        drawn = points.with_loss(law * np.exp(noise_drawn))
        other = None if floor is None else Floor(max(floor.mean + floor.std * rng.standard_normal(), 0.0), floor.std)
        samples.append(_best(form, centers, drawn, other, noise, _from(form, values, drawn)))
    return np.array(samples).reshape(n_samples, len(values))


def _with_floor(values: np.ndarray, floor: Floor) -> np.ndarray:
    return np.concatenate([[np.log(max(floor.mean, TINY))], values[1:]])
