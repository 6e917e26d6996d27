"""Errors of a potential against reference labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import DataError
from sapis.core.progress import progress_bar
from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.potential.prediction import Potential, Prediction

MAX_PARITY_POINTS = 4000
Pair = tuple[System, Prediction]

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx yy zz yz xz xy


def evaluate(potential: Potential, systems: Sequence[System], *, batch_size: int = 64) -> dict[str, Any]:
    """Compare predictions with whatever labels the systems carry.

    With E, F, S prediction minus reference of energy, force and stress, n_s atoms in system s, and means over
    systems s, force components c = x, y, z of all atoms, or the six Voigt components v of all stresses::

        energy_mae_meV_atom   = 1000 mean_s |E_s / n_s|
        energy_rmse_meV_atom  = 1000 sqrt(mean_s (E_s / n_s)^2)
        energy_mae_meV        = 1000 mean_s |E_s|
        energy_rmse_meV       = 1000 sqrt(mean_s E_s^2)
        force_mae_meV_A       = 1000 mean_c |F_c|
        force_rmse_meV_A      = 1000 sqrt(mean_c F_c^2)
        stress_rmse_meV_A3    = 1000 sqrt(mean_v S_v^2)

    No constant is fitted to the energies. A figure without labels is None.

    Args:
        batch_size: systems predicted in one call.

    Returns:
        JSON values: the figures above; ``n``, ``n_energy``, ``n_forces``, ``n_stress`` (systems in all and
        with each label); ``by_element`` {symbol: n (atoms), mae, rmse} of force components in meV/Å;
        ``by_temperature`` {"300": n, force_rmse_meV_A, energy_rmse_meV_atom} by the tag ``temperature_K``;
        ``parity``: ``force`` [[reference], [prediction]] in meV/Å and ``energy`` likewise in meV/atom less
        the reference's mean, each of at most `MAX_PARITY_POINTS` points, the same ones every time.

    Raises:
        DataError: no system, or none with a label.
    """
    if not any(s.energy is not None or s.forces is not None or s.stress is not None for s in systems):
        raise DataError(expected="systems with energies, forces or stresses",
                        received=f"{len(systems)} systems without a label", where="evaluate",
                        todo="label them, or name the keys under which the file holds its labels")
    pairs = list(zip(systems, _predicted(potential, systems, batch_size), strict=True))
    totals, per_atom, components = _energy_errors(pairs), _energy_errors_per_atom(pairs), _force_errors(pairs)
    stresses = [(p.stress - s.stress)[VOIGT] for s, p in pairs
                if s.stress is not None and p.stress is not None]
    return {
        "n": len(pairs), "n_energy": len(totals), "n_forces": sum(s.forces is not None for s in systems),
        "n_stress": len(stresses),
        "energy_mae_meV_atom": _mae(per_atom), "energy_rmse_meV_atom": _rmse(per_atom),
        "energy_mae_meV": _mae(totals), "energy_rmse_meV": _rmse(totals),
        "force_mae_meV_A": _mae(components), "force_rmse_meV_A": _rmse(components),
        "stress_rmse_meV_A3": _rmse(1000 * np.array(stresses)),
        "by_element": _by_element(pairs), "by_temperature": _by_temperature(pairs),
        "parity": {"force": _force_parity(pairs), "energy": _energy_parity(pairs)},
    }


def _predicted(potential: Potential, systems: Sequence[System], batch_size: int) -> list[Prediction]:
    predictions: list[Prediction] = []
    with progress_bar(is_transient=True) as bar:
        task = bar.add_task("evaluate", total=len(systems), note="")
        for start in range(0, len(systems), batch_size):
            predictions += potential.predict([s.without_labels() for s in systems[start:start + batch_size]])
            bar.update(task, completed=len(predictions))
    return predictions


def _energy_errors(pairs: Sequence[Pair]) -> np.ndarray:
    """meV, ``(systems with an energy,)``."""
    return 1000 * np.array([p.energy - s.energy for s, p in pairs if s.energy is not None])


def _energy_errors_per_atom(pairs: Sequence[Pair]) -> np.ndarray:
    """meV/atom, ``(systems with an energy,)``."""
    return _energy_errors(pairs) / np.array([len(s) for s, _ in pairs if s.energy is not None])


def _force_errors(pairs: Sequence[Pair]) -> np.ndarray:
    """meV/Å, ``(atoms of all systems with forces, 3)``."""
    errors = [p.forces - s.forces for s, p in pairs if s.forces is not None]
    return 1000 * np.concatenate(errors or [np.empty((0, 3))])


def _by_element(pairs: Sequence[Pair]) -> dict[str, dict[str, float | int | None]]:
    errors = _force_errors(pairs)
    numbers = np.array([z for s, _ in pairs if s.forces is not None for z in s.numbers], dtype=np.int64)
    chosen = {chemical_symbols[number]: errors[numbers == number] for number in np.unique(numbers)}
    return {symbol: {"n": len(own), "mae": _mae(own), "rmse": _rmse(own)} for symbol, own in chosen.items()}


def _by_temperature(pairs: Sequence[Pair]) -> dict[str, dict[str, float | int | None]]:
    groups: dict[float, list[Pair]] = defaultdict(list)
    for system, prediction in pairs:
        temperature = system.tags.get("temperature_K")
        if isinstance(temperature, int | float) and np.isfinite(temperature):  # a foreign file may hold a word here
            groups[float(temperature)].append((system, prediction))
    return {
        f"{temperature:g}": {
            "n": len(group), "force_rmse_meV_A": _rmse(_force_errors(group)),
            "energy_rmse_meV_atom": _rmse(_energy_errors_per_atom(group)),
        }
        for temperature, group in sorted(groups.items())
    }


def _force_parity(pairs: Sequence[Pair]) -> list[list[float]]:
    labelled = [(s.forces, p.forces) for s, p in pairs if s.forces is not None]
    reference = np.concatenate([forces.ravel() for forces, _ in labelled] or [np.empty(0)])
    prediction = np.concatenate([forces.ravel() for _, forces in labelled] or [np.empty(0)])
    return _thinned(1000 * reference, 1000 * prediction)


def _energy_parity(pairs: Sequence[Pair]) -> list[list[float]]:
    labelled = [(s.energy / len(s), p.energy / len(s)) for s, p in pairs if s.energy is not None]
    reference, prediction = np.array(labelled).reshape(-1, 2).T
    mean = reference.mean() if len(reference) else 0.0
    return _thinned(1000 * (reference - mean), 1000 * (prediction - mean))


def _thinned(reference: np.ndarray, prediction: np.ndarray) -> list[list[float]]:
    if len(reference) > MAX_PARITY_POINTS:
        # At random, since every k-th force component would show one axis only.
        kept = np.sort(generator(0, "parity").choice(len(reference), MAX_PARITY_POINTS, replace=False))
        reference, prediction = reference[kept], prediction[kept]
    return [reference.tolist(), prediction.tolist()]


def _mae(errors: np.ndarray) -> float | None:
    return float(np.abs(errors).mean()) if errors.size else None


def _rmse(errors: np.ndarray) -> float | None:
    return float(np.sqrt(np.mean(errors**2))) if errors.size else None
