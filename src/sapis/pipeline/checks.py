"""What is checked of a model before anybody uses it: dynamics, and the laws of physics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sapis.api import load
from sapis.data.system import System
from sapis.pipeline.recipe import DynamicsConfig
from sapis.potential.prediction import Potential
from sapis.simulate.md import order_test, run_nve, run_nvt
from sapis.testing import tolerances
from sapis.testing.laws import Check, check_potential


def dynamics(model: Path, start: System, config: DynamicsConfig, seed: int) -> dict[str, Any]:
    """NVE drift, order of the integrator, NVT stability, in float64."""
    calculator = load(model).calculator("float64")

    atoms = partial(_atoms, start, calculator)
    nve = run_nve(atoms(), temperature_K=config.temperature_K, timestep_fs=config.timestep_fs, time_ps=config.nve_ps, seed=seed)
    order = order_test(atoms(), temperature_K=config.temperature_K, time_ps=config.order_ps, seed=seed)
    nvt = run_nvt(atoms(), temperature_K=config.temperature_K, timestep_fs=config.timestep_fs, time_ps=config.nvt_ps, seed=seed)
    return {"nve": {**nve.to_record(), "precision": "float64"}, "order": order.to_record(), "nvt": nvt.to_record()}


def checks(model: Path, systems: Sequence[System], md: dict[str, Any] | None = None) -> dict[str, Any]:
    """The physics laws, in float64; with the record of the dynamics also those that need it."""
    return checks_of(load(model, precision="float64").potential, systems, md)


def checks_of(potential: Potential, systems: Sequence[System], md: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same of a model in float64 that is in no file yet."""
    found = check_potential(potential, systems)
    if md is not None:
        found += nve_checks(md["nve"], md["order"])
    return {"checks": [asdict(check) for check in found], "all_passed": all(check.passed for check in found)}


def dynamics_checks(calculator: Any, system: System, *, temperature_K: float = 300.0, time_ps: float = 0.5, seed: int = 0,
                    ) -> list[Check]:
    """NVE drift and the order of its energy error, as checks."""
    atoms = partial(_atoms, system, calculator)
    nve = run_nve(atoms(), temperature_K=temperature_K, timestep_fs=0.5, time_ps=time_ps, seed=seed).to_record()
    order = order_test(atoms(), temperature_K=temperature_K, time_ps=time_ps / 5, seed=seed).to_record()
    return nve_checks(nve, order)


def nve_checks(nve: dict[str, Any], order: dict[str, Any]) -> list[Check]:
    """The checks that the records of NVE dynamics make."""
    drift, slope = nve["drift_meV_atom_ps"], order["slope"]
    # Verlet conserves a neighbouring energy, so the energy error is bounded and wanders within its fluctuation as the modes
    # exchange energy: over a short run that looks like a slope of this size.
    wander = 2 * _or_nan(nve["fluctuation_meV_atom"]) / nve["time_ps"] if nve["time_ps"] else 0.0  # it exploded at once
    allowed = max(tolerances.NVE_DRIFT_MEV_ATOM_PS.at("float64"), wander)
    return [
        Check("nve drift", _or_nan(drift), allowed, "meV/atom/ps", drift is not None and abs(drift) <= allowed,
              f"linear drift of the total energy over {nve['time_ps']:g} ps; a short run allows the integrator's bounded error"),
        Check("nve order", abs(_or_nan(slope) - tolerances.ORDER_SLOPE), tolerances.ORDER_SLOPE_DEVIATION, "",
              slope is not None and abs(slope - tolerances.ORDER_SLOPE) <= tolerances.ORDER_SLOPE_DEVIATION,
              "deviation from 2 of the exponent with which the energy fluctuation falls with the timestep"),
    ]


def _atoms(system: System, calculator: Any) -> Any:
    """Fresh ASE atoms: dynamics move the ones they get."""
    atoms = system.to_atoms()
    atoms.calc = calculator
    return atoms


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def smallest(systems: Sequence[System]) -> list[System]:
    """The physics laws hold or fail alike in small and large systems; small ones are quick. A lone atom shows none of them."""
    chosen = [system for system in systems if len(system) > 1] or list(systems)
    return [min(chosen, key=len).without_labels()]
