"""The committed records and models: whole, loadable, and saying the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sapis.api import load
from sapis.core.records import read_record
from sapis.data.system import System

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODELS = sorted((BENCHMARKS / "models").glob("*.sapis"))
RECORDS = sorted((BENCHMARKS / "records").glob("*.json"))
MAX_BYTES = 5_000_000


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_whole_and_says_where_it_comes_from(path: Path) -> None:
    record = read_record(path)
    assert record.name == path.stem and record.provenance["commit"] and record.cost["cpu_seconds"] > 0


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_loads_computes_and_is_the_one_of_its_record(path: Path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    model = load(path)
    record = read_record(BENCHMARKS / "records" / f"{path.stem}.json")
    assert model.card["training"]["model_hash"] == record.result["model_hash"]
    first, second = model.potential.elements[:2]
    (prediction,) = model.predict([System(numbers=np.array([first, second]), positions=np.array([[0.0, 0, 0], [0, 0, 1.1]]))])
    assert np.isfinite(prediction.energy) and np.isfinite(prediction.forces).all()
