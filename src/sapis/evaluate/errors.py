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
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx yy zz yz xz xy


def evaluate(potential: Potential, systems: Sequence[System], *, batch_size: int = 64) -> dict[str, Any]:
    """Compare predictions with whatever labels the systems carry.

    With E, F, S prediction minus reference of energy, force and stress, n_s atoms in system s, and means over
    systems s, force components c = x, y, z of all atoms, or the six Voigt components v of all stresses::

        energy_mae_meV_atom   = 1000 mean_s |E_s / n_s|
        energy_rmse_meV_atom  = 1000 sqrt(mean_s (E_s / n_s)^2)
        energy_rmse_meV       = 1000 sqrt(mean_s E_s^2)
        force_mae_meV_A       = 1000 mean_c |F_c|
        force_rmse_meV_A      = 1000 sqrt(mean_c F_c^2)
        stress_rmse_meV_A3    = 1000 sqrt(mean_v S_v^2)

    No constant is fitted to the energies. A figure without labels is None.

    Args:
        batch_size: systems predicted in one call.

    Returns:
        JSON values: the figures above; ``n``, ``n_energy``, ``n_forces``, ``n_stress`` (systems in all and with
        each label); ``by_element`` {symbol: n (atoms), mae, rmse} of force components in meV/Å;
        ``by_temperature`` {"300": n, force_rmse_meV_A, energy_rmse_meV_atom} by the tag ``temperature_K``;
        ``parity``: ``force`` [[reference], [prediction]] in meV/Å and ``energy`` likewise in meV/atom, both
        relative to the reference's mean, each of at most `MAX_PARITY_POINTS` points, the same ones every time.

    Raises:
        DataError: no system, or none with a label.
    """
    if not any(s.energy is not None or s.forces is not None or s.stress is not None for s in systems):
        raise DataError(expected="systems with energies, forces or stresses", where="evaluate",
                        received=f"{len(systems)} systems without a label", todo="label them, or name the keys")
    pairs = list(zip(systems, _predicted(potential, systems, batch_size), strict=True))
    with_energy = [(s, p) for s, p in pairs if s.energy is not None]
    with_forces = [(s, p) for s, p in pairs if s.forces is not None]
    stresses = [(p.stress - s.stress)[VOIGT] for s, p in pairs if s.stress is not None and p.stress is not None]
    per_system, per_atom, components = _energy_errors(pairs), _energy_errors(pairs, is_per_atom=True), _force_errors(pairs)
    return {
        "n": len(systems), "n_energy": len(with_energy), "n_forces": len(with_forces), "n_stress": len(stresses),
        "energy_mae_meV_atom": _mae(per_atom), "energy_rmse_meV_atom": _rmse(per_atom),
        "energy_rmse_meV": _rmse(per_system),
        "force_mae_meV_A": _mae(components), "force_rmse_meV_A": _rmse(components),
        "stress_rmse_meV_A3": _rmse(1000 * np.array(stresses)),
        "by_element": _by_element(with_forces), "by_temperature": _by_temperature(pairs),
        "parity": {"force": _force_parity(with_forces), "energy": _energy_parity(with_energy)},
    }
