"""Batches: all frames once an epoch, within the budget, the same by any number of processes and from any step on."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from command import TINY_MODEL, sapis
from conftest import cluster, labelled_frames, small_potential
from sapis.core.errors import TrainingError
from sapis.core.files import read_json
from sapis.data import loader as loading
from sapis.data.batch import Batch
from sapis.data.loader import Loader
from sapis.data.splits import random_split
from sapis.data.store import Selection, Store
from sapis.data.system import System

POTENTIAL = small_potential()
SYSTEMS = [cluster(3 + number % 9, seed=number) for number in range(40)]


def loader(systems=SYSTEMS, **options) -> Loader:  # type: ignore[no-untyped-def]
    return Loader(systems, POTENTIAL.sample, cutoff=POTENTIAL.cutoff, dtype=torch.float64, **options)


def is_same(one: Batch, other: Batch) -> bool:
    pairs = [[torch.nan_to_num(getattr(batch, item.name).double()) for batch in (one, other)] for item in fields(Batch)]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"max_atoms": 24}, {"max_atoms": 2}])
def test_every_system_once_an_epoch_and_within_the_budget(options: dict[str, int]) -> None:
    found = loader(**options)
    plans = [found.plan(epoch) for epoch in range(3)]
    for plan in plans:
        assert sorted(np.concatenate(plan).tolist()) == list(range(40)) and len(plan) == found.n_batches
        if "max_atoms" in options:
            assert all(sum(len(SYSTEMS[k]) for k in batch) <= options["max_atoms"] or len(batch) == 1 for batch in plan)
    assert not all(np.array_equal(one, other) for one, other in zip(plans[0], plans[1], strict=True))
    again = loader(**options).plan(1)
    assert all(np.array_equal(one, other) for one, other in zip(plans[1], again, strict=True))


def test_batches_go_on_from_any_step_and_by_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(islice(loader(max_atoms=24).batches(0), 25))
    later = list(islice(loader(max_atoms=24).batches(10), 15))
    assert all(map(is_same, alone[10:], later))
    monkeypatch.setattr(loading, "MAX_KEPT_ATOMS", 0)  # as for a large set: neighbours are searched for in the processes
    helped = loader(max_atoms=24, n_workers=2)
    assert helped._samples is None
    assert all(map(is_same, alone, islice(helped.batches(0), 25)))


def test_weights_say_how_often_a_level_comes() -> None:
    systems = [replace(system, level="dft" if number % 4 == 0 else "xtb") for number, system in enumerate(SYSTEMS)]
    found = loader(systems, max_atoms=24, weights={"dft": 2.5, "xtb": 0.4})
    counts: Counter[int] = Counter()
    for epoch in range(20):
        plan = found.plan(epoch)
        assert len(plan) == found.n_batches
        counts.update(int(k) for batch in plan for k in batch)
    by_level = {level: [counts[k] for k, system in enumerate(systems) if system.level == level] for level in ("dft", "xtb")}
    # Round numbers of draws within each class of sizes; all systems of a class take turns.
    assert sum(by_level["dft"]) == pytest.approx(20 * 2.5 * 10, rel=0.25) and min(by_level["dft"]) > 30
    assert sum(by_level["xtb"]) == pytest.approx(20 * 0.4 * 30, rel=0.25) and min(by_level["xtb"]) >= 4
    with pytest.raises(TrainingError, match="ccsd"):
        loader(systems, weights={"ccsd": 1.0})


def test_ranks_share_an_epoch() -> None:
    parts = [loader(batch_size=3, rank=rank, n_ranks=4) for rank in range(4)]
    counts = Counter(int(k) for part in parts for batch in part.plan(5) for k in batch)
    assert {part.n_batches for part in parts} == {len(part.plan(5)) for part in parts} == {4}
    assert set(counts) == set(range(40)) and sum(counts.values()) <= 40 + 3 * 3


def test_a_store_is_not_read_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_KEPT_ATOMS", 0)
    with Store.create(tmp_path / "store") as store:
        store.append(SYSTEMS)
        split = random_split(store, 30, 10, 0)
        assert isinstance(split.train, Selection) and len(split.train) == 30
        reads: list[int] = []
        packed = Store.packed

        def counted(self: Store, index: int) -> bytes:
            reads.append(index)
            return packed(self, index)

        monkeypatch.setattr(Store, "packed", counted)
        found = loader(split.train, max_atoms=24)
        assert not reads
        next(found.batches(0))
        assert 0 < len(reads) <= 8
        listed = random_split(SYSTEMS, 30, 10, 0)
        assert [one.structure_hash() for one in split.train] == [other.structure_hash() for other in listed.train]


@pytest.mark.slow
def test_a_training_from_a_store_is_that_from_a_file(tmp_path: Path) -> None:
    import yaml

    from sapis.data.formats import write_systems

    frames: list[System] = labelled_frames(60)
    write_systems(tmp_path / "data.extxyz", frames)
    assert sapis("data", "convert", tmp_path / "data.extxyz", tmp_path / "data.store").code == 0
    training = {"epochs": 3, "warmup_steps": 5, "validations": 2, "max_atoms": 40}
    settings = {"model": TINY_MODEL, "training": training, "level_of_theory": "of the tests"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    errors = []
    for source in ("data.extxyz", "data.store"):
        output = tmp_path / f"out-{source}"
        ending = sapis("train", tmp_path / source, "--output", output, "--config", tmp_path / "settings.yaml",
                       "--n-validation", "10")
        assert ending.code == 0, ending.text
        errors.append(read_json(output / "records" / "test.json")["result"]["sets"]["validation"])
    assert errors[0] == errors[1]
