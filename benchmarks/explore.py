"""A model that explores, against as many labels from plain dynamics: ``python -m benchmarks.explore``.

1,3-Propanediol at GFN2-xTB, a chain with many minima. One arm is `sapis active`: dynamics of the model from six conformers and
from 300 to 1,500 K, drawn to what it does not know, and displaced structures. The others label frames of dynamics by GFN2-xTB
itself, as many, and train as long: of one trajectory at 300 K, and of several from the conformers and at the temperatures of the
active arm. All are tested on a broad set that none has seen (dynamics from 300 to 2,000 K, vibrations, turned and stretched
bonds), and by dynamics at 600 K until something breaks: the structure, or the forces, by `LIMIT` against the truth, which is
asked every 0.1 ps; velocities are drawn anew then. What is judged was settled beforehand, in trials with other seeds: the arm of
one trajectory, what one does without a thought, and `LIMIT`; the other arm and lower limits stand beside it. Writes
``benchmarks/records/explore.json`` after each arm; the same command goes on after a stop, and does none again that it has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.stats import beta

from benchmarks.run import HERE, WORK, known_runs
from sapis.api import load, save
from sapis.core.config import parse_config
from sapis.core.files import hash_json, read_json, write_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import derive_seed, generator
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import LocalExecutor
from sapis.generate.displacements import displaced
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import Label, LabelerConfig
from sapis.labelers.labelling import isolated_atom_energies, label_at
from sapis.model.potential import TransformerPotential
from sapis.pipeline.active import active
from sapis.pipeline.active_config import ActiveRecipe
from sapis.potential.bundle import hash_tensors
from sapis.potential.calculator import SapisCalculator
from sapis.simulate.candidates import make_candidates
from sapis.simulate.md import run_nvt
from sapis.simulate.sampling import CandidatesConfig
from sapis.simulate.structures import load_structure
from sapis.training.fit import new_potential
from sapis.training.loop import Training
from sapis.uncertainty.uncertain import Uncertain

Trained = TransformerPotential | Uncertain
SMILES = "OCCCO"
SETTINGS: dict[str, Any] = {
    "system": {"smiles": SMILES}, "labeler": {"name": "gfn2", "max_force_eV_A": 30.0}, "n_start": 40, "rounds": 4,
    "n_per_round": 20, "n_candidates": 200, "temperatures_K": [300, 600, 1000, 1500], "displaced_fraction": 0.25,
    "candidates": {"n_conformers": 6, "n_replicas": 3, "decorrelation_fs": 20, "rattle_fraction": 0, "bias": 0.2},
    "training": {"epochs": 80}, "energy_window_eV_atom": 0.7, "workers": 1,
}
PLAIN: dict[str, tuple[list[float], int]] = {  # temperatures, and trajectories at each, from one conformer after another
    "plain, 300 K": ([300.0], 1), "plain, 300 to 1,500 K": (SETTINGS["temperatures_K"], 6)}
ACTIVE = "active"
BROAD_K, N_BROAD = (300.0, 600.0, 1000.0, 1500.0, 2000.0), 1000
BOND = 1.4  # wide enough for what 600 K do to a bond
MD_K, MD_PS, N_MD, PIECE_PS, LIMIT = 600.0, 10.0, 6, 0.1, 1.0  # LIMIT in eV/Å, on the force on an atom
LOWER_LIMITS = (0.3, 0.4, 0.5, 0.75)  # told, too: where nothing breaks, they say which arm errs sooner


def labelled(systems: list[System], folder: Path) -> list[System]:
    """Those whose label did not fail."""
    _, outcomes = label_at(folder / "labels.store", systems, LabelerConfig(**SETTINGS["labeler"]), LocalExecutor(None))
    return [replace(each, level="") for each in outcomes if isinstance(each, System)]


def broad(folder: Path) -> list[System]:
    """The test frames."""
    starts = load_structure(SMILES, n_conformers=10, seed=1)
    how = CandidatesConfig(n_replicas=5, decorrelation_fs=50.0, rattle_fraction=0.0)
    found, _ = make_candidates(starts, LabelerConfig(), BROAD_K, N_BROAD * 3 // 4, how, 20261126, folder)
    return labelled(found + displaced(SMILES, starts, N_BROAD // 4, BROAD_K[:3], generator(20261126, "broad")), folder)


def asked(seed: int, folder: Path) -> tuple[Trained, dict[str, float]]:
    """The model that explores, and what its training took."""
    recipe = parse_config(ActiveRecipe, {**SETTINGS, "output": str(folder), "seed": seed}, where="benchmarks.explore")
    outcome = active(recipe)
    last = outcome.rounds[-1].result
    costs = [record.cost for record in outcome.rounds]
    spent = {key: sum(each[key] for each in costs) for key in ("cpu_seconds", "flops")}
    potential = load(outcome.model).potential
    assert isinstance(potential, Uncertain)
    return potential, {"n_labels": last["n_train"] + last["n_held"], **spent}


def plain(temperatures_K: Sequence[float], n_replicas: int, seed: int, n_labels: int, flops: float, folder: Path,
          ) -> tuple[Trained, dict[str, float]]:
    """A model of frames from dynamics by the truth."""
    starts = load_structure(SMILES, n_conformers=n_replicas, seed=seed)
    how = CandidatesConfig(n_replicas=n_replicas, decorrelation_fs=100.0, rattle_fraction=0.0)
    chosen, _ = make_candidates(starts, LabelerConfig(), temperatures_K, n_labels, how, derive_seed(seed, "plain"), folder)
    frames = labelled(chosen, folder)
    train, held = [frame for k, frame in enumerate(frames) if k % 5], frames[::5]
    recipe = parse_config(ActiveRecipe, {**SETTINGS, "output": str(folder)}, where="benchmarks.explore")
    isolated = isolated_atom_energies(recipe.labeler, {int(z) for frame in frames for z in frame.numbers}, LocalExecutor(None))
    settings = recipe.training.model_copy(update={"epochs": None, "flops": flops, "seed": seed})
    potential, _ = new_potential(train, {"": isolated}, recipe.model, precision=settings.precision, seed=seed)
    run = Training(potential, train, held, settings, folder / "training")
    spent = run.run()
    save(folder / "model.sapis", run.potential, {})
    return run.potential, {"n_labels": len(frames), "cpu_seconds": spent.cpu_seconds, "flops": spent.flops}


def failures(potential: Trained, folder: Path) -> dict[str, Any]:
    """Dynamics at `MD_K` from several conformers: the time that each ran, and why it ended."""
    what = hash_json({"model": hash_tensors(dict(potential.state_dict())), "K": MD_K, "ps": MD_PS, "piece_ps": PIECE_PS,
                      "limit": LIMIT})
    path, found = folder / f"md-{what[:16]}.json", list[dict[str, Any]]()
    if path.exists():
        found = read_json(path)
    truth = build_labeler(LabelerConfig())
    starts = load_structure(SMILES, n_conformers=N_MD, seed=2)
    for number in range(len(found), N_MD):
        start, level = starts[number % len(starts)], next(iter(potential.conditions.levels), "")
        atoms, time_ps, reason, worst = start.to_atoms(), 0.0, "", list[float]()
        while not reason and time_ps < MD_PS - 1e-9:
            atoms.calc = SapisCalculator(potential, level=level)
            seed = derive_seed(number, "md", round(1000 * time_ps))
            trace = run_nvt(atoms, temperature_K=MD_K, time_ps=PIECE_PS, timestep_fs=0.5, seed=seed, sample_every_fs=10.0)
            assert trace.final is not None
            time_ps += float(trace.time_ps[-1])
            reason = trace.reason if "temperature is" not in trace.reason else ""
            atoms = trace.final.copy()
            if not reason and _bonds(atoms) != _bonds(start.to_atoms()):  # a piece sees those that break within it
                reason = "a bond is another one than at the start"
            if not reason:
                worst.append(_force_error(potential, truth, System.from_atoms(atoms), level))
                reason = "" if worst[-1] < LIMIT else f"a force is wrong by {worst[-1]:.2f} eV/Å"
        found.append({"time_ps": time_ps, "reason": reason, "worst_eV_A": worst})
        write_json(path, found)
    n_failed = sum(bool(each["reason"]) for each in found)
    total = sum(each["time_ps"] for each in found)
    return {"runs": found, "n_failed": n_failed, "total_ps": total}


def _bonds(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs of atoms nearer than `BOND` times the sum of their covalent radii."""
    return set(zip(*neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND)), strict=True))


def _force_error(potential: Trained, truth: Any, system: System, level: str) -> float:
    """The largest of an atom, eV/Å; infinite where the truth fails."""
    (found,) = potential.predict([replace(system, level=level)])
    label = truth.label(system)
    if not isinstance(label, Label):
        return float("inf")
    return float(np.linalg.norm(found.forces - label.forces, axis=1).max())


def one_arm(name: str, seed: int, done: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Errors, dynamics and costs of an arm; others have as many labels and FLOPs as the active one, which is ``done``."""
    test, place = broad(folder / "broad"), folder / f"{name.replace(' ', '-')}-{seed}"
    if name == ACTIVE:
        potential, cost = asked(seed, place)
    else:
        potential, cost = plain(*PLAIN[name], seed, int(done[ACTIVE]["n_labels"]), done[ACTIVE]["flops"], place)
    return _judged(potential, test) | {"md": failures(potential, place), "test": hash_systems(test), "n_test": len(test)} | cost


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    made_by, watch, path = provenance(), Stopwatch(), HERE / "records" / "explore.json"
    settings = {**SETTINGS, "plain": PLAIN, "broad_K": BROAD_K, "n_broad": N_BROAD,
                "md": {"temperature_K": MD_K, "time_ps": MD_PS, "n": N_MD, "piece_ps": PIECE_PS, "limit_eV_A": LIMIT}}
    seeds = known_runs(path, hash_json(settings))
    for seed in map(str, options.seeds):
        for name in (ACTIVE, *PLAIN):
            if name not in seeds.get(seed, {}):
                made = one_arm(name, int(seed), seeds.get(seed, {}), WORK / "explore") | {"made_by": made_by}
                seeds = known_runs(path, hash_json(settings))  # others may have been made meanwhile
                seeds.setdefault(seed, {})[name] = made
                result = {"seeds": seeds, "active_over": _ratios(seeds), "settings": settings, "threads": 1}
                cost = watch.cost_with([arm for each in seeds.values() for arm in each.values()])
                write_record(path, Record("explore", hash_json(settings), result, cost, made_by))
            arm = seeds[seed][name]
            print(f"seed {seed}, {name}: {arm['broad']['force_rmse_meV_A']:.1f} meV/Å; {arm['md']['n_failed']} of {N_MD} runs "
                  f"failed in {arm['md']['total_ps']:.1f} ps", flush=True)
    for name, found in _ratios(seeds).items():
        print(f"active over {name}: {found}")


def _judged(potential: Trained, test: list[System]) -> dict[str, Any]:
    level = next(iter(potential.conditions.levels), "")
    frames = [replace(system, level=level) for system in test]
    dynamics = [frame for frame in frames if frame.tags["source"] == "md"]
    displacements = [frame for frame in frames if frame.tags["source"] != "md"]
    found = {name: evaluate(potential, part) for name, part in (
        ("broad", frames), ("dynamics", dynamics), ("displacements", displacements))}
    return {name: {key: errors[key] for key in ("n", "force_rmse_meV_A", "energy_rmse_meV_atom", "by_temperature")}
            for name, errors in found.items()}


def _ratios(seeds: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """By other arm: errors of the active one over its own, the geometric mean over the seeds that have both, and times to
    failure.
    """
    found = dict[str, Any]()
    for name in PLAIN:
        both = [arms for arms in seeds.values() if ACTIVE in arms and name in arms]
        if both:
            errors = [[arms[each]["broad"]["force_rmse_meV_A"] for arms in both] for each in (ACTIVE, name)]
            found[name] = {"error": float(np.exp(np.log(errors[0]).mean() - np.log(errors[1]).mean())), "n_seeds": len(both),
                           **_times_to_failure(both, name, LIMIT),
                           "at_lower_limits": {f"{limit:g}": _times_to_failure(both, name, limit) for limit in LOWER_LIMITS}}
    return found


def _until(run: dict[str, Any], limit: float) -> tuple[float, bool]:
    """How long dynamics lasted until a force was wrong by more than ``limit``, ps, and whether that came, or another end."""
    for n_before, worst in enumerate(run["worst_eV_A"]):
        if not worst < limit:
            return PIECE_PS * (n_before + 1), True
    return run["time_ps"], bool(run["reason"])


def _times_to_failure(seeds: Sequence[dict[str, Any]], name: str, limit: float) -> dict[str, float | None]:
    """How many times longer the active arm lasts than ``name``, over all seeds, by failures per ps, with the exact interval of
    90 % of the ratio of two Poisson rates (Clopper and Pearson's, of the share of one in all failures). Without a failure of the
    active arm the ratio has a lower bound only, without one of the other no lower bound: None.
    """
    ends = {each: np.array([_until(run, limit) for arms in seeds for run in arms[each]["md"]["runs"]]) for each in (ACTIVE, name)}
    (ps, own), (other_ps, other) = ends[ACTIVE].sum(axis=0), ends[name].sum(axis=0)
    low, high = beta.ppf(0.05, other, own + 1), beta.ppf(0.95, other + 1, own)  # of the share of ``name``
    return {"time_to_failure": float(other / other_ps / (own / ps)) if own else None,
            "time_to_failure_low": float(low / (1 - low) * ps / other_ps) if other else None,
            "time_to_failure_high": float(high / (1 - high) * ps / other_ps) if own else None}


if __name__ == "__main__":
    main()
