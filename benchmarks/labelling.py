"""Labels by a method that kills, hangs and fails: what is lost, what it costs. ``python -m benchmarks.labelling``.

GFN2-xTB labels of rattled molecules, two processes; of every twenty structures one takes its process with it or hangs.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sapis.core.files import hash_json
from sapis.core.records import Record, provenance, write_record
from sapis.data.store import Store
from sapis.data.system import System, hash_systems
from sapis.executors.executor import Executor, LocalExecutor
from sapis.executors.outcome import Limits
from sapis.labelers.evaluation import process_cpu_seconds
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import label_into
from sapis.simulate.structures import load_structure

HERE = Path(__file__).parent
SMILES = ("CC(=O)Oc1ccccc1C(=O)O", "CC(=O)NC(C)C(=O)NC", "OCC1OC(O)C(O)C(O)C1O", "c1ccc2ccccc2c1", "CCCCCCCC")
FAULTS = ("kill", "crash", "hang")
TIMEOUT_S = 2.0


def Unreliable(**arguments: Any) -> Any:
    """tblite's calculator, but a structure that is marked so takes its process with it, or hangs."""
    from tblite.ase import TBLite

    class Calculator(TBLite):  # type: ignore[misc]
        def calculate(self, atoms: Any = None, *rest: Any, **more: Any) -> None:
            fault = atoms.info.get("fault")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while fault == "hang":
                time.sleep(1)
            super().calculate(atoms, *rest, **more)

    return Calculator(method="GFN2-xTB", verbosity=0, **arguments)


def structures(n: int, fraction: float) -> list[System]:
    """``n`` distinct rattled molecules, of which the given fraction is marked."""
    rng = np.random.default_rng(0)
    starts = [load_structure(smiles, None, None, None, n_conformers=1, seed=0)[0] for smiles in SMILES]
    found = []
    for number in range(n):
        start = starts[number % len(starts)]
        moved = replace(start, positions=start.positions + rng.normal(scale=0.03, size=(len(start), 3)))
        marked = {"fault": FAULTS[number // round(1 / fraction) % len(FAULTS)]} if number % round(1 / fraction) == 7 else {}
        found.append(moved.with_tags(number=number, **marked))
    return found


def measure(n: int, executor: Executor, folder: Path, *, fraction: float = 0.05) -> dict[str, Any]:
    """Label ``n`` structures into a store in ``folder`` and compare with what ought to be there."""
    systems = structures(n, fraction)
    config = LabelerConfig(name="ase", calculator="benchmarks.labelling.Unreliable")
    limits = Limits(timeout_s=TIMEOUT_S, retries=1)
    cpu, wall = process_cpu_seconds(), time.monotonic()
    with Store.create(folder) as store:
        found = label_into(store, systems, config, executor, limits=limits)
        cpu, wall = process_cpu_seconds() - cpu, time.monotonic() - wall
        numbers = Counter(int(system.tags["number"]) for system in store)
    good = {int(system.tags["number"]) for system in systems if "fault" not in system.tags}
    return {
        "n": n, "n_marked": n - len(good), "n_labelled": found.n_labelled, "failures": dict(found.failures),
        "n_lost": len(good - set(numbers)), "n_twice": sum(count > 1 for count in numbers.values()),
        "n_of_marked": len(set(numbers) - good), "label_cpu_seconds": found.cpu_seconds, "cpu_seconds": cpu, "wall_seconds": wall,
        "cpu_ratio": cpu / found.cpu_seconds, "data_hash": hash_systems(systems),
    }


def main() -> None:
    """Command line."""
    made_by = provenance()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(2000, LocalExecutor(2), Path(folder) / "labels")
    result |= {"seed": 0, "threads": 1}
    cost = {key: result[key] for key in ("cpu_seconds", "wall_seconds")}
    write_record(HERE / "records" / "labelling.json", Record("labelling", hash_json({"n": 2000}), result, cost, made_by))
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
