"""Planted scaling laws: how often they lie in the intervals of their fits. ``python -m benchmarks.scaling_laws [STUDIES]``.

A study has five sizes of model, five of data and two seeds, with noise of 3 % (log-normal) on ``L = 8 + A N^-0.35 + B D^-0.45``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.scaling.fit import fit
from sapis.scaling.forms import JOINT, Points

HERE = Path(__file__).parent
SIZES, FRAMES, EPOCHS, N_SEEDS = (1e4, 3e4, 1e5, 3e5, 1e6), (1e2, 3e2, 1e3, 3e3, 1e4), 10.0, 2
TRUTH = {"floor": 8.0, "exponent_n_parameters": 0.35, "exponent_n_frames": 0.45}


def study(seed: int, *, noise: float = 0.03) -> Points:
    """The trainings of one study."""
    n_parameters, n_frames, _ = (each.ravel() for each in np.meshgrid(SIZES, FRAMES, range(N_SEEDS), indexing="ij"))
    loss = (TRUTH["floor"] + 120.0 * (n_parameters / SIZES[0]) ** -TRUTH["exponent_n_parameters"]
            + 180.0 * (n_frames / FRAMES[0]) ** -TRUTH["exponent_n_frames"])
    loss = loss * np.exp(noise * generator(seed, "study").standard_normal(len(loss)))
    return Points(120.0 * n_parameters * n_frames * EPOCHS, n_parameters, n_frames, np.full(len(loss), EPOCHS), loss)


def coverage(n_studies: int, *, noise: float = 0.03, n_samples: int = 200) -> dict[str, dict[str, float]]:
    """For each planted number: how many of the 90 % intervals hold it, and the median relative error of the fitted one."""
    inside, errors = dict.fromkeys(TRUTH, 0), {name: list[float]() for name in TRUTH}
    for seed in range(n_studies):
        intervals = fit(study(seed, noise=noise), JOINT, n_samples=n_samples, seed=seed).intervals
        for name, truth in TRUTH.items():
            value, low, high = intervals[name]
            inside[name] += low <= truth <= high
            errors[name].append(abs(value / truth - 1))
    return {name: {"inside": inside[name] / n_studies, "median_relative_error": float(np.median(errors[name]))} for name in TRUTH}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("studies", nargs="?", type=int, default=200)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    found: dict[str, Any] = coverage(options.studies)
    for name, figures in found.items():
        print(f"{name}: inside {figures['inside']:.3f}, median relative error {figures['median_relative_error']:.3f}")
    result = {"cases": found, "n_studies": options.studies, "noise": 0.03, "seed": 0, "threads": 1}
    write_record(HERE / "records" / "scaling-laws.json",
                 Record("scaling-laws", hash_json(vars(options)), result, watch.cost(), made_by))


if __name__ == "__main__":
    main()
