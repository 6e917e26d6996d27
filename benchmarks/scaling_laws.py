"""Planted scaling laws: how often they lie in the intervals of their fits. ``python -m benchmarks.scaling_laws [STUDIES]``.

Each study has noise of 3 % (log-normal) and two seeds of each point. Of weights and frames, five sizes of each: once the law is
``L = 8 + A N^-0.35 + B D^-0.45`` in all studies, once each has a floor, exponents and amplitudes of its own, and once trainings
on the same frames share two thirds of the variance of their noise. Of compute, eight levels a factor of three apart:
``L = eps + A C^-alpha`` with a floor and an exponent of its own.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.scaling.fit import fit
from sapis.scaling.forms import FLOOR, JOINT, Form, Points

HERE = Path(__file__).parent
SIZES, FRAMES, EPOCHS, N_SEEDS = (1e4, 3e4, 1e5, 3e5, 1e6), (1e2, 3e2, 1e3, 3e3, 1e4), 10.0, 2
LEVELS, SPACING = 8, 3.0
NOISE, SHARED = 0.03, 2 / 3
TRUTH = {"floor": 8.0, "exponent_n_parameters": 0.35, "exponent_n_frames": 0.45}
AMPLITUDES = (120.0, 180.0)
Truth = Mapping[str, float]


def study(seed: int, *, noise: float = NOISE, truth: Truth = TRUTH, amplitudes: tuple[float, float] = AMPLITUDES) -> Points:
    """The trainings of one study of weights and frames."""
    n_parameters, n_frames, _ = (each.ravel() for each in np.meshgrid(SIZES, FRAMES, range(N_SEEDS), indexing="ij"))
    loss = (truth["floor"] + amplitudes[0] * (n_parameters / SIZES[0]) ** -truth["exponent_n_parameters"]
            + amplitudes[1] * (n_frames / FRAMES[0]) ** -truth["exponent_n_frames"])
    loss = loss * np.exp(noise * generator(seed, "study").standard_normal(len(loss)))
    return Points(120.0 * n_parameters * n_frames * EPOCHS, n_parameters, n_frames, np.full(len(loss), EPOCHS), loss)


def fixed(seed: int, noise: float) -> tuple[Points, Truth]:
    """The same law in all studies."""
    return study(seed, noise=noise), TRUTH


def drawn(seed: int, noise: float) -> tuple[Points, Truth]:
    """A law of its own."""
    rng = generator(seed, "truth")
    truth = {"floor": rng.uniform(4, 15), "exponent_n_parameters": rng.uniform(0.25, 0.6),
             "exponent_n_frames": rng.uniform(0.25, 0.7)}
    amplitudes = (float(rng.uniform(60, 240)), float(rng.uniform(60, 240)))
    return study(seed, noise=noise, truth=truth, amplitudes=amplitudes), truth


def shared(seed: int, noise: float) -> tuple[Points, Truth]:
    """The same law in all studies; trainings on the same frames share most of their noise."""
    points = study(seed, noise=noise * (1 - SHARED) ** 0.5)
    sets = np.stack([points.n_frames, np.arange(len(points)) % N_SEEDS])
    groups = np.unique(sets, axis=1, return_inverse=True)[1].ravel()
    common = generator(seed, "shared").standard_normal(groups.max() + 1)[groups]
    return replace(points, loss=points.loss * np.exp(noise * SHARED**0.5 * common), groups=groups), TRUTH


def of_compute(seed: int, noise: float) -> tuple[Points, Truth]:
    """A law of compute of its own."""
    rng = generator(seed, "truth of compute")
    truth = {"floor": rng.uniform(4, 15), "exponent_flops": rng.uniform(0.25, 0.6)}
    flops = np.repeat(1e10 * SPACING ** np.arange(LEVELS), N_SEEDS)
    loss = truth["floor"] + 200.0 * (flops / flops[0]) ** -truth["exponent_flops"]
    loss = loss * np.exp(noise * generator(seed, "study of compute").standard_normal(len(loss)))
    return Points(flops, *np.ones((3, len(flops))), loss), truth


CASES: dict[str, tuple[Form, Callable[[int, float], tuple[Points, Truth]]]] = {
    "weights and frames, one law": (JOINT, fixed), "weights and frames": (JOINT, drawn),
    "weights and frames, noise in common": (JOINT, shared), "compute": (FLOOR, of_compute)}


def coverage(case: str, n_studies: int, *, noise: float = NOISE, n_samples: int = 200) -> dict[str, dict[str, float]]:
    """For each planted number: how many of the 90 % intervals hold it, and the median relative error of the fitted one."""
    form, make = CASES[case]
    inside, errors = dict[str, int](), dict[str, list[float]]()
    for seed in range(n_studies):
        points, truth = make(seed, noise)
        intervals = fit(points, form, n_samples=n_samples, seed=seed).intervals
        for name, planted in truth.items():
            value, low, high = intervals[name]
            inside[name] = inside.get(name, 0) + int(low <= planted <= high)
            errors.setdefault(name, []).append(abs(value / planted - 1))
    return {name: {"inside": count / n_studies, "median_relative_error": float(np.median(errors[name]))}
            for name, count in inside.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("studies", nargs="?", type=int, default=200)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    found: dict[str, Any] = {}
    for case in CASES:
        found[case] = coverage(case, options.studies)
        for name, figures in found[case].items():
            print(f"{case}: {name}: inside {figures['inside']:.3f}, median relative error {figures['median_relative_error']:.3f}",
                  flush=True)
    result = {"cases": found, "n_studies": options.studies, "noise": NOISE, "seed": 0, "threads": 1}
    write_record(HERE / "records" / "scaling-laws.json",
                 Record("scaling-laws", hash_json(vars(options)), result, watch.cost(), made_by))


if __name__ == "__main__":
    main()
