"""Uncertainty against known labels: calibration on frames held out, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sapis.core.errors import DataError
from sapis.data.system import System
from sapis.potential.calibration import MIN_ERRORS, Calibration, least_stated
from sapis.potential.posterior import Posterior
from sapis.uncertainty.scores import auroc_shifted, reliability, scores

TARGETS = {"energy": 1, "forces": 3}  # and how many components an error of each has
TINY = 1e-9  # eV, eV/Å: no deviation is smaller, for scores divide by them


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors and stated deviations of one target.

    Attributes:
        d: components of an error.
        errors: norms, eV or eV/Å, ``(n,)``.
        stds: of each component, ``(n,)``.
        frames: the number of each one's frame, ``(n,)``.
        groups: atomic numbers, of forces; None otherwise.
    """

    d: int
    errors: np.ndarray
    stds: np.ndarray
    frames: np.ndarray
    groups: np.ndarray | None = None


def errors_of(posteriors: Sequence[Posterior], systems: Sequence[System]) -> dict[str, Errors]:
    """By target, of the labels that ``systems`` have.

    Raises:
        DataError: no labels.
    """
    pairs = list(zip(posteriors, systems, strict=True))
    energies = [(abs(found.mean.energy - system.energy), found.energy_std) for found, system in pairs
                if system.energy is not None]
    forces = [(np.linalg.norm(found.mean.forces - system.forces, axis=1), found.force_std, system.numbers)
              for found, system in pairs if system.forces is not None]
    result = {}
    if energies:
        errors, stds = np.array(energies).T
        result["energy"] = Errors(TARGETS["energy"], errors, np.maximum(stds, TINY), np.arange(len(energies)))
    if forces:
        frames = np.repeat(np.arange(len(forces)), [len(own) for own, _, _ in forces])
        errors, stds, groups = (np.concatenate(parts) for parts in zip(*forces, strict=True))
        result["forces"] = Errors(TARGETS["forces"], errors, np.maximum(stds, TINY), frames, groups)
    if not result:
        raise DataError(expected="frames with energies or forces", received=f"{len(systems)} without", where="uncertainty",
                        todo="label them")
    return result


def calibrate(posteriors: Sequence[Posterior], systems: Sequence[System]) -> dict[str, Calibration]:
    """By target, on frames that no weights were fitted to; ``posteriors`` are not calibrated yet.

    Raises:
        DataError: too few labels.
    """
    # Energies are few, one of a frame; and dynamics that a bias drives needs how the calibrated one changes.
    return {name: Calibration.of(found.errors, found.stds, found.d, groups=found.groups, frames=found.frames,
                                 with_power=name == "forces")
            for name, found in errors_of(posteriors, systems).items()}


def require_enough(systems: Sequence[System]) -> None:
    """Say now, and not after a training, that ``systems`` are too few to calibrate on.

    Raises:
        DataError: too few labels.
    """
    n = sum(system.energy is not None and system.forces is not None for system in systems)
    if n < MIN_ERRORS:
        raise DataError(expected=f"at least {MIN_ERRORS} validation frames with energies and forces, to calibrate an uncertainty "
                        "on", received=str(n), where="validation frames", todo="hold out more frames: an uncertainty that is not "
                        "calibrated has no unit")


def assess(posteriors: Sequence[Posterior], systems: Sequence[System], *, own: Sequence[Posterior] = (),
           calibrations: Mapping[str, Calibration] | None = None) -> dict[str, dict[str, float]]:
    """Scores by target, in meV and meV/Å where they have a unit; of targets with two errors or more. Deviations count as
    `least_stated` at least: a likelihood would else be that of the atoms without neighbours alone.

    Args:
        calibrations: by which ``posteriors`` were corrected; with them, the share of errors within each conformal bound, as
            ``conformal_90`` and so on.
        own: of frames where the model is at home; with them, how well deviations tell ``systems`` from these.
    """
    errors = errors_of(posteriors, systems)
    found = {name: scores(1e3 * each.errors, 1e3 * np.maximum(each.stds, least_stated(each.stds)), each.d)
             for name, each in errors.items() if len(each.errors) > 1}
    for name, calibration in (calibrations or {}).items():
        for level in calibration.quantiles if name in found else ():
            is_within = errors[name].errors <= calibration.bounds(errors[name].stds, level)
            found[name][f"conformal_{100 * level:g}"] = float(np.mean(is_within))
    if own:
        for name, result in found.items():
            result["auroc_shifted"] = auroc_shifted(_deviations(own, name), _deviations(posteriors, name))
    return found


def force_reliability(posteriors: Sequence[Posterior], systems: Sequence[System]) -> dict[str, list[float]]:
    """``std`` and ``rmse`` of force components in bins of rising deviation, meV/Å; empty lists without forces."""
    found = errors_of(posteriors, systems).get("forces")
    rmse, std = reliability(found.errors, found.stds, found.d) if found else (np.empty(0), np.empty(0))
    return {"std": (1e3 * std).tolist(), "rmse": (1e3 * rmse).tolist()}


def _deviations(posteriors: Sequence[Posterior], target: str) -> np.ndarray:
    """Of energies per atom, or of forces."""
    if target == "energy":
        return np.array([found.energy_std / len(found.force_covariance) for found in posteriors])
    return np.concatenate([found.force_std for found in posteriors])
