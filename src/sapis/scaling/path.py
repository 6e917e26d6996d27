"""What one growing training teaches about its law, while it runs.

The law is ``L = eps + A N^-a + B D^-b + K S^-k`` (N weights, D frames, S frames seen). A training that grows goes on from the
error that it had: it counts as one of the larger model, or of the larger set, that has seen as many frames as bring it to that
error, ``K S'^-k = K S^-k + (what the other terms have lost)``, and, where the model grew, a price: its first steps undo some of
what was learned. With few points the exponents are not determined, so each
parameter has a prior; the posterior is normal about its mode (Laplace).

The training error lies below the other one by about what more data would gain: that tells B from A before any data were added.

No training follows one such law from its first steps, or from a handful of frames, on. Looks at errors far above the last one
therefore count less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sapis.core.seeds import generator

PARAMETERS = ("log_floor", "log_model", "exponent_model", "log_data", "exponent_data", "log_steps", "exponent_steps", "log_gap",
              "log_price")
# Means and standard deviations; amplitudes in units of the lowest error. Exponents as in studies of many potentials
# (docs/conventions.md): what is typical is more likely.
PRIOR_MEAN = np.array([np.log(0.15), np.log(0.3), 0.4, np.log(0.3), 0.4, np.log(0.3), 0.5, np.log(1.3), np.log(0.05)])
PRIOR_STD = np.array([1.2, 1.2, 0.15, 1.2, 0.15, 1.2, 0.2, 0.4, 0.7])
LOW = np.array([-9.0, -9.0, 0.02, -9.0, 0.02, -9.0, 0.05, -2.0, -6.0])
HIGH = np.array([0.0, 4.0, 1.5, 4.0, 1.5, 6.0, 2.0, 2.0, 0.0])
AMPLITUDES = [0, 1, 3, 5]
MIN_TRAIN = 0.02  # of the error on other frames: what is left of the training error at least
TRAIN_NOISE = 3.0  # of the training error, in units of the noise: the law is of the other one
LOCAL = 2.0  # a look at this many times the last error counts as one of so much more noise, to this power


@dataclass(frozen=True)
class Look:
    """One look at a training.

    Attributes:
        n_parameters: weights.
        n_frames: different frames.
        seen: frames seen, since the start of the training.
        spent: everything so far, in the currency of the budget.
        loss: error on other frames.
        train_loss: error on the frames that it learns from.
    """

    n_parameters: float
    n_frames: float
    seen: float
    spent: float
    loss: float
    train_loss: float


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known after some looks.

    Attributes:
        samples: parameters in the order of `PARAMETERS`, ``(samples, parameters)``; the first is the mode.
        unit: of the amplitudes.
        origin: N, D and S at which amplitudes are meant.
        effective: of each sample, the frames seen that the present size would have needed for the present error, ``(samples,)``.
        last: the last look.
        noise: standard deviation of the logarithm of an error.
    """

    samples: np.ndarray
    unit: float
    origin: tuple[float, float, float]
    effective: np.ndarray
    last: Look
    noise: float

    @property
    def floor(self) -> float:
        """Most likely eps."""
        return float(self.unit * np.exp(self.samples[0, 0]))

    def mode(self) -> dict[str, float]:
        """The most likely parameters: ``floor`` and amplitudes in the unit of the loss, exponents, ``price``, ``noise``."""
        named = dict(zip(PARAMETERS, self.samples[0].tolist(), strict=True))
        amplitudes = {name: self.unit * float(np.exp(named[f"log_{name}"])) for name in ("floor", "model", "data", "steps")}
        exponents = {name: value for name, value in named.items() if name.startswith("exponent")}
        return {**amplitudes, **exponents, "price": float(np.exp(named["log_price"])), "noise": self.noise}

    @property
    def now(self) -> np.ndarray:
        """The error at the last look, without its noise, ``(samples,)``."""
        return self.loss(np.full(1, self.last.n_parameters), np.full(1, self.last.n_frames), self.effective[:, None])[:, 0]

    def rest(self, n_parameters: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        """The error that is left after any number of steps, ``(samples, cases)`` for ``(cases,)`` of each."""
        theta = self.samples.T[:, :, None]
        return self.unit * _rest(theta, n_parameters / self.origin[0], n_frames / self.origin[1])

    def loss(self, n_parameters: np.ndarray, n_frames: np.ndarray, effective: np.ndarray) -> np.ndarray:
        """The error, ``(samples, cases)``, where ``effective``, ``(samples, cases)``, frames count as seen."""
        theta = self.samples.T[:, :, None]
        steps = np.exp(theta[5]) * (effective / self.origin[2]) ** -theta[6]
        return np.asarray(self.rest(n_parameters, n_frames) + self.unit * steps)

    def grown(self, n_parameters: np.ndarray, n_frames: np.ndarray, effective: np.ndarray) -> np.ndarray:
        """The frames that count as seen, ``(samples, cases)``, when the training grows to these sizes at the same error, after it
        counted as having seen ``effective``, ``(samples, cases)`` or ``(samples, 1)``.
        """
        now = np.full(1, self.last.n_parameters), np.full(1, self.last.n_frames)
        lost = self.rest(*now) - self.rest(n_parameters, n_frames)
        theta = self.samples.T[:, :, None]
        before = self.loss(*now, effective) / self.unit
        price = np.where(n_parameters > self.last.n_parameters, np.exp(theta[8]) * before, 0.0)
        return _regrown(theta, effective / self.origin[2], lost / self.unit + price) * self.origin[2]


def learn(looks: Sequence[Look], *, floor: float = 0.0, noise: float = 0.02, n_samples: int = 32, seed: int = 0) -> Posterior:
    """The posterior of the law after ``looks``, in the order in which they were made.

    Args:
        floor: error that was measured to be in the labels: eps at least.
        noise: of the logarithm of an error, at least; more where the law fits worse.
        n_samples: of the posterior.
        seed: of these.
    """
    table = np.array([[look.n_parameters, look.n_frames, look.seen, look.loss, look.train_loss] for look in looks], dtype=float)
    unit = float(table[:, 3].min())
    origin = tuple(float(value) for value in np.exp(np.log(table[:, :3]).mean(axis=0)))
    low = LOW.copy()
    low[0] = max(low[0], np.log(max(min(floor / unit, 0.99), 1e-9)))
    first = np.clip(PRIOR_MEAN, low + 1e-6, HIGH - 1e-6)
    scaled = table / np.array([*origin, unit, unit])
    starts = np.flatnonzero(np.r_[True, np.any(np.diff(table[:, :2], axis=0) != 0, axis=1)])
    has_train = np.isfinite(table[:, 4])
    weight = np.minimum(1.0, table[-1, 3] / table[:, 3]) ** LOCAL

    def residuals(theta: np.ndarray, noise: float) -> np.ndarray:
        losses, _ = _along(theta, scaled, starts)
        found = weight * (np.log(losses) - np.log(scaled[:, 3])) / noise
        if has_train.any():
            # Repeating frames makes them easier than others; each is new the first time.
            gap = np.exp(theta[7]) * np.exp(theta[3]) * scaled[:, 1] ** -theta[4]
            gap = gap * np.clip(1 - scaled[:, 1] * origin[1] / np.maximum(scaled[:, 2] * origin[2], 1e-9), 0.0, 1.0)
            train = np.maximum(losses - gap, MIN_TRAIN * losses)
            found = np.append(found, (weight * (np.log(train) - np.log(scaled[:, 4])) / (TRAIN_NOISE * noise))[has_train])
        return np.append(np.tanh(found / 20) * 20, (theta - PRIOR_MEAN) / PRIOR_STD)

    best = least_squares(residuals, first, bounds=(low, HIGH), max_nfev=200, args=(noise,))
    scatter = residuals(best.x, noise)[: len(looks)]
    if (scale := float(np.sqrt(np.mean(np.clip(scatter, -3, 3) ** 2)))) > 1:  # the looks say less than was thought, the prior not
        noise *= scale
        best = least_squares(residuals, best.x, bounds=(low, HIGH), max_nfev=200, args=(noise,))
    covariance = np.linalg.inv(best.jac.T @ best.jac)
    # The same numbers after every look, so that decisions do not change by chance.
    drawn = generator(seed, "posterior").standard_normal((n_samples - 1, len(PARAMETERS)))
    samples = np.clip(np.vstack([best.x, best.x + drawn @ np.linalg.cholesky(covariance).T]), low, HIGH)
    ends = [_along(theta, scaled, starts) for theta in samples]
    # What is known best is the present error: laws that are drawn differ in where they lead from it.
    now = np.array([losses[-1] for losses, _ in ends])
    samples[:, AMPLITUDES] += np.log(now[0] / now)[:, None]
    effective = np.array([had for _, had in ends]) * origin[2]
    return Posterior(samples, unit, (origin[0], origin[1], origin[2]), effective, looks[-1], noise)


def _rest(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(theta[0]) + np.exp(theta[1]) * n ** -theta[2] + np.exp(theta[3]) * d ** -theta[4])


def _regrown(theta: np.ndarray, had: np.ndarray, lost: np.ndarray) -> np.ndarray:
    power = np.maximum(had, 1e-9) ** -theta[6] + np.maximum(lost, 0.0) / np.exp(theta[5])
    return np.asarray(np.power(power, -1 / theta[6]))


def _along(theta: np.ndarray, table: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, float]:
    """Errors along the path, and the frames that it counts as having seen at its end."""
    losses, had, before = np.empty(len(table)), 0.0, 0.0
    for place, start in enumerate(starts):
        stop = starts[place + 1] if place + 1 < len(starts) else len(table)
        rest = _rest(theta, table[start, 0], table[start, 1])
        if place:
            lost = _rest(theta, *table[start - 1, :2]) - rest
            if table[start, 0] > table[start - 1, 0]:
                lost += np.exp(theta[8]) * losses[start - 1]
            had = float(_regrown(theta, np.asarray(had), lost))
        effective = had + table[start:stop, 2] - before
        losses[start:stop] = rest + np.exp(theta[5]) * np.maximum(effective, 1e-9) ** -theta[6]
        had, before = float(effective[-1]), float(table[stop - 1, 2])
    return losses, had
