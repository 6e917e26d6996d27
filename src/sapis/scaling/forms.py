"""Forms of scaling laws: a floor and falling powers of what was spent.

| symbol | here | meaning |
|---|---|---|
| L | `Points.loss` | error of the trained model, in any unit |
| C | `Points.flops` | arithmetic of the training |
| N | `Points.n_parameters` | weights |
| D | `Points.n_frames` | different training frames |
| S/D | `Points.epochs` | how often each was seen |
| eps | floor | error that no budget removes |

Each form is ``L = eps + sum_i A_i x_i^-alpha_i`` with the x_i it names, or ``L^2 = eps^2 + (sum_i A_i x_i^-alpha_i)^2``, as is
right for root mean square errors against labels with noise of their own: squares of independent errors add. Its parameters are
``log eps``, then ``log A_i`` and ``alpha_i`` of each term, then what is its own. A_i is at the geometric mean of the x_i that
were fitted, so that amplitudes and exponents are nearly independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sapis.core.errors import DataError

INNER = (0.15, 0.85)  # quantiles of compute between which a law may break
SHARPNESS = 0.3  # f: the exponent changes within a factor of two of compute
NAMES = ("flops", "n_parameters", "n_frames", "epochs", "loss")


@dataclass(frozen=True, eq=False)
class Points:
    """Finished trainings, one a row; each ``(points,)`` float64.

    Attributes:
        groups: a number for each, the same for trainings on the same frames; by default each is on its own, ``(points,)``.
    """

    flops: np.ndarray
    n_parameters: np.ndarray
    n_frames: np.ndarray
    epochs: np.ndarray
    loss: np.ndarray
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))

    def __post_init__(self) -> None:
        if len(self.groups) == 0:
            object.__setattr__(self, "groups", np.arange(len(self.loss)))
        for name in NAMES:
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (len(self.loss),) or not (np.isfinite(values).all() and (values > 0).all()):
                raise DataError(expected=f"{len(self.loss)} positive numbers", received=f"{values}"[:80], where=f"Points.{name}",
                                todo="leave out trainings that did not end with a finite error")

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, chosen: np.ndarray | slice) -> Points:
        return Points(*(getattr(self, name)[chosen] for name in (*NAMES, "groups")))

    def with_loss(self, loss: np.ndarray) -> Points:
        """The same trainings with other errors."""
        return replace(self, loss=loss)


@dataclass(frozen=True)
class Form:
    """A form of law.

    Attributes:
        name: for records.
        terms: of `Points`, what each falling power is a power of.
        has_floor: whether there is an eps.
        is_quadratic: whether its square is added to that of the other terms' sum.
        extras: own parameters beside those of the floor and the terms, with their ranges.
        adapt: ``(points, extras) -> (terms, points)``, the x_i; by default the terms as they are.
    """

    name: str
    terms: tuple[str, ...]
    has_floor: bool = True
    is_quadratic: bool = False
    extras: tuple[tuple[str, float, float], ...] = ()
    adapt: Callable[[Points, Sequence[float] | np.ndarray], np.ndarray] | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in their order."""
        powers = [name for term in self.terms for name in (f"log_amplitude_{term}", f"exponent_{term}")]
        return (*(("log_floor",) if self.has_floor else ()), *powers, *(name for name, _, _ in self.extras))

    def inputs(self, points: Points, extras: Sequence[float] | np.ndarray) -> np.ndarray:
        """The x_i, ``(terms, points)``."""
        if self.adapt is not None:
            return self.adapt(points, extras)
        return np.stack([getattr(points, term) for term in self.terms])


def in_quadrature(form: Form) -> Form:
    """``form``, which has a floor, with the squares of floor and terms added."""
    return replace(form, name=f"{form.name}, the floor in quadrature", is_quadratic=True)


def effective_frames(n_frames: np.ndarray, epochs: np.ndarray, repeats: float) -> np.ndarray:
    """Frames seen for the first time that would teach as much: ``D (1 + R (1 - exp(-(epochs - 1) / R)))``.

    After Muennighoff and others, Scaling data-constrained language models (2023), equation 5: the value of seeing a frame again
    decays with the number of times, and ``repeats`` R is after how many it has fallen to 1/e.
    """
    return np.asarray(n_frames * (1 + repeats * -np.expm1(-np.maximum(epochs - 1, 0) / repeats)))


def _repeated(points: Points, extras: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.stack([points.n_parameters, effective_frames(points.n_frames, points.epochs, float(np.exp(extras[0])))])


def _frames_seen(points: Points, extras: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.stack([points.n_parameters, points.n_frames, points.n_frames * points.epochs])


def broken(points: Points) -> Form:
    """A power law of compute whose exponent changes within the range of ``points``, with a floor.

    One smooth break after Caballero and others, Broken neural scaling laws (2023), equation 1: ``C`` is replaced by
    ``C (1 + (C/C_b)^(1/f))^(f (r - 1))``, which goes as C before the break and as C^r after it.
    """
    low, high = np.quantile(np.log(points.flops), INNER)

    def adapt(points: Points, extras: Sequence[float] | np.ndarray) -> np.ndarray:
        logs = np.log(points.flops)
        bend = SHARPNESS * np.logaddexp(0.0, (logs - extras[0]) / SHARPNESS)
        return np.exp(logs + (np.exp(extras[1]) - 1) * bend)[None]

    return Form("broken power law of compute with a floor", ("flops",), adapt=adapt,
                extras=(("log_break", float(low), float(high)), ("log_exponent_ratio", -2.0, 2.0)))


POWER = Form("power law of compute", ("flops",), has_floor=False)
FLOOR = Form("power law of compute with a floor", ("flops",))
JOINT = Form("weights and frames", ("n_parameters", "n_frames"))
REPEATED = Form("weights and effective frames", ("n_parameters", "n_frames"), extras=(("log_repeats", -2.0, 8.0),),
                adapt=_repeated)
STEPS = Form("weights, frames and frames seen", ("n_parameters", "n_frames", "frames_seen"), adapt=_frames_seen)
FORMS = {form.name: form for form in (POWER, FLOOR, JOINT, REPEATED, STEPS,
                                      *(in_quadrature(form) for form in (FLOOR, JOINT, REPEATED, STEPS)))}
