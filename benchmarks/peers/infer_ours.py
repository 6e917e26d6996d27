"""Our row of the inference table: ``python -m benchmarks.peers.infer_ours JOB.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.inference import measure
from benchmarks.peers.train import write_result

if __name__ == "__main__":
    own_job = Path(sys.argv[1])
    job = json.loads(own_job.read_text(encoding="utf-8"))
    write_result(own_job.parent / "result.json", measure(Path(job["structure"]), job["repeats"], "compiled"))
