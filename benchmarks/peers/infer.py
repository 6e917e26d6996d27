"""CPU time and memory of energy and forces: ``python -m benchmarks.peers.infer JOB.json``, in the peer's own environment.

A process for each case, so that the peak of memory is that of the case. Positions move before each call and neighbours are found
anew, as in dynamics; weights are random.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.peers.checks import check_peer
from benchmarks.peers.memory import keep_freed_memory
from benchmarks.peers.protocol import load_peer, read_problem
from benchmarks.peers.train import write_result

SECONDS = 10.0  # of measuring
N_WARM_UP, MIN_CALLS = 3, 3
MEMORY = 16 << 30  # bytes of addresses: a case that needs more fails, and takes nothing else with it


def run_job(path: Path) -> dict[str, Any]:
    """Milliseconds of CPU of a call, in all and per atom; peak resident memory in MB."""
    job = json.loads(path.read_text(encoding="utf-8"))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    keep_freed_memory()
    problem = read_problem(Path(job["problem"]))
    frame = problem.parts["train"][0]
    peer = load_peer(job["driver"], problem, seed=0, **job["options"])
    if job["is_checked"]:
        check_peer(peer, frame, problem.cutoff)
    peer.module.eval()
    random, seconds, start = np.random.default_rng(0), [], time.monotonic()
    while len(seconds) < N_WARM_UP + MIN_CALLS or time.monotonic() - start < SECONDS:
        moved = replace(frame, positions=frame.positions + random.normal(scale=0.001, size=frame.positions.shape))
        before = time.process_time()
        energies, forces = peer.predict(peer.collate([peer.prepare(moved)]), create_graph=False)
        energies.detach().numpy(), forces.detach().numpy()
        seconds.append(time.process_time() - before)
    median = 1e3 * float(np.median(seconds[N_WARM_UP:]))
    return {"n_atoms": len(frame.numbers), "calls": len(seconds) - N_WARM_UP, "cpu_ms": median,
            "cpu_ms_per_atom": median / len(frame.numbers),
            "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    own_job = Path(sys.argv[1])
    write_result(own_job.parent / "result.json", run_job(own_job))
