"""The committed records and models: whole, loadable, and saying the same."""

from __future__ import annotations

import re
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


def _is_in(value: float, row: str) -> bool:
    """Whether ``row`` has ``value``, rounded as it likes."""
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", row)
    return any(abs(abs(value) - abs(float(text.rstrip(",").replace(",", "")))) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])
               for text in numbers)


@pytest.mark.parametrize(("name", "row"), [
    (found[1], line) for line in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    if (found := re.search(r"<!-- figures: (\S+) -->", line))])
def test_figures_in_the_readme_are_those_of_the_record(name: str, row: str) -> None:
    figures = read_record(BENCHMARKS / "records" / f"{name}.json").result["figures"]
    assert figures and all(_is_in(each["value"], row.partition(" |")[2]) for each in figures), row
    assert not _is_in(figures[0]["value"] * 1.2 + 3, row.partition(" |")[2])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_loads_computes_and_is_the_one_of_its_record(path: Path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    model = load(path)
    record = read_record(BENCHMARKS / "records" / f"{path.stem}.json")
    assert model.card["training"]["model_hash"] == record.result["model_hash"]
    first, second = model.potential.elements[:2]
    (prediction,) = model.predict([System(numbers=np.array([first, second]), positions=np.array([[0.0, 0, 0], [0, 0, 1.1]]))])
    assert np.isfinite(prediction.energy) and np.isfinite(prediction.forces).all()
