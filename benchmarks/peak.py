"""The share of the machine's peak of matrix products: ``python -m benchmarks.peak PRESET STRUCTURE FRAMES SECONDS``.

Counted FLOPs (contractions, `sapis.model.cost`) of a training step and of energies and forces, divided by CPU time on one thread,
as a share of what a large matrix product reaches at that moment: it is measured before and after, because other work on the
machine slows both. A process of its own for each case. Weights are random: it does not change the arithmetic.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from sapis.core.memory import keep_freed_memory
from sapis.data.batch import collate, prepare
from sapis.data.formats import read_systems
from sapis.model.backend import backend_of
from sapis.model.config import preset
from sapis.model.cost import counted_flops
from sapis.model.potential import TransformerPotential
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss

MIN_CALLS = 3
PEAK_SIZE = 1024  # rows of the square matrices whose product is the peak


def yardstick(repeats: int = 20) -> dict[str, float]:
    """How fast this machine is at this moment: best and median GFLOP/s of a 1024^3 float32 matrix product on one core."""
    torch.set_num_threads(1)
    matrix, seconds = torch.randn(PEAK_SIZE, PEAK_SIZE), []
    for _ in range(repeats):
        start = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - start)
    flops = 2 * PEAK_SIZE**3 / 1e9
    return {"best_gflops": flops / min(seconds), "median_gflops": flops / float(np.median(seconds))}


def measure(name: str, source: Path, n_frames: int, seconds: float) -> dict[str, Any]:
    """Counted GFLOP, CPU milliseconds, GFLOP/s and share of the peak, of a training step and of energies and forces."""
    torch.set_num_threads(1)
    keep_freed_memory()
    systems = read_systems(source)[:n_frames]
    elements = sorted({int(number) for system in systems for number in system.numbers})
    potential = TransformerPotential(preset(name), elements=elements, reference_energies=[0.0] * len(elements), scale=1.0,
                                     average_neighbors=20.0)
    batch = collate([prepare(system, elements=elements, cutoff=potential.cutoff) for system in systems],
                    cutoff=potential.cutoff, dtype=potential.dtype)
    weights, settings, chosen = list(potential.parameters()), TrainingConfig(epochs=1), backend_of(batch)
    n_atoms, n_edges = len(batch.species), int(batch.counts.sum())

    def step() -> None:
        value = loss(batch, *potential(batch, create_graph=True), settings, potential.scale)
        torch.autograd.grad(value, weights, allow_unused=True)

    counted = {"training": counted_flops(potential.transformer)(batch, chosen),
               "inference": counted_flops(potential.transformer, "forces")(batch, chosen)}
    found: dict[str, Any] = {"preset": name, "n_atoms": n_atoms, "neighbors_per_atom": n_edges / n_atoms, "backend": chosen,
                             "n_parameters": potential.n_parameters}
    for kind, call in {"training": step, "inference": lambda: potential(batch)}.items():
        found |= {f"{kind}_{key}": value for key, value in _rate(call, counted[kind], seconds).items()}
    return found


def _rate(call: Callable[[], Any], flops: float, seconds: float) -> dict[str, float]:
    """Median over calls for ``seconds``, between two measurements of the peak."""
    call()  # may compile
    before, times, start = yardstick(10)["best_gflops"], [], time.monotonic()
    while len(times) < MIN_CALLS or time.monotonic() - start < seconds:
        clock = time.process_time()
        call()
        times.append(time.process_time() - clock)
    peak, median = max(before, yardstick(10)["best_gflops"]), float(np.median(times))
    gflops = flops / median / 1e9
    return {"gflop": flops / 1e9, "cpu_ms": median * 1e3, "calls": len(times), "gflops": gflops, "peak_gflops": peak,
            "share_of_peak": gflops / peak}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
