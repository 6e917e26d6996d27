"""A store of a million frames: speed, space, memory; and what 200 kills leave. ``python -m benchmarks.store [FRAMES] [KILLS]``.

Frames of about twenty atoms with energies and forces, random numbers, positions and forces kept in single precision. Seconds are
CPU seconds of one process; making the frames is not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.peak import yardstick
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data.store import Store
from sapis.data.system import System

HERE = Path(__file__).parent
CHUNK, ATOMS, READS = 2_000, (16, 25), 100_000
SHUFFLE = """
import resource, sys
import numpy as np
from sapis.data.store import Store
store = Store(sys.argv[1])
order = np.random.default_rng(0).permutation(len(store))
total = sum(len(store[int(number)]) for number in order[: int(sys.argv[2])])
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
print(*(int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")))
"""


def frames(n: int, rng: np.random.Generator) -> list[System]:
    """Random ones."""
    found = []
    for _ in range(n):
        atoms = int(rng.integers(*ATOMS))
        found.append(System(rng.choice([1, 6, 7, 8], atoms), rng.normal(size=(atoms, 3)), energy=float(rng.normal()),
                            forces=rng.normal(size=(atoms, 3))))
    return found


def measure(n_frames: int, folder: Path) -> dict[str, Any]:
    """Write, read at random, shuffle in a process of its own."""
    rng, writing = np.random.default_rng(0), 0.0
    with Store.create(folder, is_single=True) as store:
        for _ in range(n_frames // CHUNK):
            chunk = frames(CHUNK, rng)
            start = time.process_time()
            store.append(chunk)
            writing += time.process_time() - start
        order = rng.integers(0, n_frames, READS).tolist()
        found = {}
        for name, read in (("read", store.__getitem__), ("read_packed", store.packed)):
            start = time.process_time()
            for number in order:
                read(number)
            found[f"{name}_per_s"] = READS / (time.process_time() - start)
    size = sum(path.stat().st_size for path in folder.glob("*.mdb"))
    memory = subprocess.run([sys.executable, "-c", SHUFFLE, str(folder), str(min(n_frames, 10 * READS))], check=True,
                            capture_output=True, text=True).stdout.split()
    return {"n_frames": n_frames, "write_per_s": n_frames / writing, **found, "bytes_per_frame": size / n_frames,
            "memory_MB": float(memory[0]), "mapped_MB": float(memory[1])}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("frames", nargs="?", type=int, default=1_000_000)
    parser.add_argument("kills", nargs="?", type=int, default=200)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    from test_store import after_kills

    made_by, watch, before = provenance(), Stopwatch(), yardstick()
    found: dict[str, Any] = {}
    for n_frames in sorted({min(100_000, options.frames), options.frames}):
        folder = Path(tempfile.mkdtemp(prefix="sapis-store-"))
        try:
            found[str(n_frames)] = measure(n_frames, folder / "store")
        finally:
            shutil.rmtree(folder)
        print(n_frames, found[str(n_frames)], flush=True)
    with tempfile.TemporaryDirectory() as folder_name:
        found["kills"] = {"n": options.kills, **after_kills(Path(folder_name) / "store", options.kills)}
    print(found["kills"])
    result = {"cases": found, "seed": 0, "threads": 1, "yardstick": {"before": before, "after": yardstick()}}
    write_record(HERE / "records" / "store.json", Record("store", hash_json(vars(options)), result, watch.cost(), made_by))


if __name__ == "__main__":
    main()
