"""Time and memory of energy and forces of one structure: ``python -m benchmarks.inference STRUCTURE REPEATS BACKEND``.

A process of its own for each case, so that the peak of memory is that of the case; `benchmarks.run` starts them. Positions move
before each call, the neighbour list is made anew, weights are random: none of it changes the arithmetic.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from sapis.core.memory import keep_freed_memory
from sapis.data.formats import read_systems
from sapis.data.neighbors import edge_list
from sapis.data.system import System
from sapis.model.backend import backend
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential

SECONDS = 10.0  # of measuring
MIN_CALLS = 3


def measure(source: Path, repeats: int, name: str) -> dict[str, float]:
    """Milliseconds of CPU of a call, milliseconds per atom, neighbours per atom, peak resident memory in MB."""
    torch.set_num_threads(1)
    keep_freed_memory()
    atoms = read_systems(source)[0].without_labels().to_atoms()
    atoms = atoms.repeat(repeats) if repeats > 1 else atoms
    elements = sorted(set(atoms.numbers.tolist()))
    potential = TransformerPotential(ModelConfig(), elements=elements, reference_energies=[0.0] * len(elements), scale=1.0,
                                     average_neighbors=20.0)
    random, seconds, start = np.random.default_rng(0), [], time.monotonic()
    with backend(name):
        while len(seconds) < MIN_CALLS + 1 or time.monotonic() - start < SECONDS:
            atoms.positions += random.normal(scale=0.001, size=atoms.positions.shape)
            system, before = System.from_atoms(atoms), time.process_time()
            potential.predict([system])
            seconds.append(time.process_time() - before)
    median = float(np.median(seconds[1:])) * 1e3  # the first call may compile
    return {
        "n_atoms": len(atoms), "calls": len(seconds) - 1, "cpu_ms": median, "cpu_ms_per_atom": median / len(atoms),
        "neighbors_per_atom": len(edge_list(system, potential.cutoff)[0]) / len(atoms),
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
