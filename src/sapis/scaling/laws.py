"""The laws of a study: several forms fitted to its trainings, compared, and tested on what was not fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapis.core.errors import DataError
from sapis.scaling.fit import Fit, Floor, fit
from sapis.scaling.forms import FLOOR, JOINT, POWER, REPEATED, STEPS, Form, Points, broken, in_quadrature
from sapis.scaling.frontier import Allocation, allocate, best
from sapis.scaling.plan import Size

OF_COMPUTE, OF_WEIGHTS_AND_FRAMES = (POWER, FLOOR), (JOINT, REPEATED, STEPS)
FACTOR = 4.0  # of compute between what is foretold and what it is foretold from
SAME_LEVEL = 1.3  # trainings whose compute differs by less are of one level
MIN_FOR_BREAK = 12  # trainings from which on a law may break
BREAK_MARGIN = 10.0  # of BIC by which a broken law must be better than the others
SQUARES_MARGIN = 5.0  # of BIC by which a floor must fit better in quadrature: small floors are alike either way
BEYOND = 30.0  # of the largest budget up to which the best use of a budget is worked out
N_BUDGETS = 25
LEAST_CHANGE = 0.02  # of the logarithm of a term, beside the others: less is the rounding of epochs and levels


@dataclass(frozen=True, eq=False)
class Laws:
    """What was fitted.

    Attributes:
        points: trainings that were fitted.
        levels: of compute, of each of these, ``(points,)``.
        compute: laws of compute, of the best training at each level; the one that the data ask for comes first.
        joint: laws of weights and frames; the same.
        allocation: best use of budgets by the first of these.
        extrapolation: see `left_out`, from all smaller trainings and from those with a quarter of the compute at most.
    """

    points: Points
    levels: np.ndarray
    compute: list[Fit]
    joint: list[Fit]
    allocation: Allocation
    extrapolation: dict[str, dict[str, Any]]

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        use = self.allocation
        return {
            "compute": [each.to_record() for each in self.compute], "joint": [each.to_record() for each in self.joint],
            "extrapolation": self.extrapolation,
            "allocation": [{"flops": budget, **{name: dict(zip(("value", "low", "high"), getattr(use, name)[:, i].tolist(),
                                                               strict=True))
                                                for name in ("n_parameters", "n_frames", "loss")}}
                           for i, budget in enumerate(use.flops.tolist())],
        }


def fit_laws(points: Points, levels: np.ndarray, sizes: Sequence[Size], *, floor: Floor | None = None,
             n_available: int | None = None, seed: int = 0) -> Laws:
    """Fit all forms that the trainings suffice for; of each kind the one with the least BIC comes first. Floors add to the rest,
    or their squares do, where the data ask for that.

    Args:
        levels: of compute of each training, ``(points,)``.
        sizes: of the model.
        floor: that was measured.
        n_available: frames that there are.

    Raises:
        DataError: too few trainings for any law.
    """
    frontier = points[best(points, levels)]
    compute = _fitted(frontier, OF_COMPUTE, floor, seed)
    if compute and len(frontier) >= MIN_FOR_BREAK and _is_varied(frontier, broken(frontier)):
        bent = fit(frontier, broken(frontier), floor=floor, seed=seed)
        if bent.bic < compute[0].bic - BREAK_MARGIN:
            compute.insert(0, bent)
    joint = _fitted(points, OF_WEIGHTS_AND_FRAMES, floor, seed)
    if not joint:
        raise DataError(expected=f"more than {len(JOINT.parameters)} finished trainings of several sizes and numbers of frames",
                        received=str(len(points)), where="scaling laws", todo="let more of the study finish")
    extrapolation: dict[str, dict[str, Any]] = {}
    for name, factor in (("the highest level", 1.0), ("the same, from a quarter of its compute", FACTOR)):
        try:
            extrapolation[name] = left_out(points, OF_WEIGHTS_AND_FRAMES, factor=factor, floor=floor, seed=seed)
        except DataError:
            continue
    budgets = np.geomspace(levels.min(), levels.max() * BEYOND, N_BUDGETS)
    return Laws(points, levels, compute, joint, allocate(joint[0], sizes, budgets, n_available=n_available), extrapolation)


def left_out(points: Points, forms: Sequence[Form], *, factor: float = 1.0, floor: Floor | None = None, seed: int = 0,
             ) -> dict[str, Any]:
    """How well the trainings of the highest level are foretold from those with at most ``1 / factor`` of its compute, or from all
    of lower levels, by the one of ``forms`` that those ask for: how many, the mean and root mean square relative error, the
    part that the 90 % intervals hold.

    Raises:
        DataError: too few smaller trainings.
    """
    highest = points.flops > points.flops.max() / SAME_LEVEL
    smaller = points[points.flops < points.flops.max() / max(factor, SAME_LEVEL)]
    candidates = _fitted(smaller, forms, floor, seed, n_samples=0)
    if not candidates:
        raise DataError(expected="smaller trainings that suffice for a law", received=str(len(smaller)), where="scaling law",
                        todo="let more of the study finish")
    found = fit(smaller, candidates[0].form, floor=floor, seed=seed)
    measured = points[highest].loss
    foretold, low, high = found.predict(points[highest])
    errors = foretold / measured - 1
    return {"form": found.form.name, "n_points": len(smaller), "n_foretold": len(measured),
            "mean_relative_error": float(errors.mean()), "rms_relative_error": float(np.sqrt(np.mean(errors**2))),
            "inside": float(np.mean((low <= measured) & (measured <= high)))}


def _fitted(points: Points, forms: Sequence[Form], floor: Floor | None, seed: int, n_samples: int = 200) -> list[Fit]:
    usable = [form for form in forms if len(points) > len(form.parameters) and _is_varied(points, form)]
    chosen = [_as_floors_add(points, form, floor) for form in usable]
    return sorted((fit(points, form, floor=floor, n_samples=n_samples, seed=seed) for form in chosen), key=lambda each: each.bic)


def _as_floors_add(points: Points, form: Form, floor: Floor | None) -> Form:
    """``form``, or the same with its floor in quadrature where the data ask for that."""
    if not form.has_floor:
        return form
    linear, squared = (fit(points, each, floor=floor, n_samples=0) for each in (form, in_quadrature(form)))
    return squared.form if squared.bic < linear.bic - SQUARES_MARGIN else form


def _is_varied(points: Points, form: Form) -> bool:
    """Whether each term changes in a way of its own: otherwise no fit can tell them apart."""
    terms = np.log(form.inputs(points, [0.5 * (low + high) for _, low, high in form.extras]))
    smallest = np.linalg.svd(terms - terms.mean(axis=1, keepdims=True), compute_uv=False).min() / np.sqrt(len(points))
    return bool(smallest > LEAST_CHANGE)
