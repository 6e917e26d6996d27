"""Labelling into a store: what is there once, what is set aside, what a kill loses, here and through Parsl."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from benchmarks.labelling import measure

from command import PARTS, sapis
from sapis.core.errors import FileError
from sapis.core.files import read_json
from sapis.core.records import read_record
from sapis.data.formats import write_systems
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.cluster import ClusterConfig, ClusterExecutor
from sapis.executors.executor import LocalExecutor
from sapis.executors.outcome import Failure, Limits
from sapis.executors.pool import Pool
from sapis.labelers import labelling
from sapis.labelers.journal import Journal
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import all_labelled, label_at, label_into, labels_in

LJ = LabelerConfig(name="lj")


def pair(distance: float, **tags: Any) -> System:
    return System([18, 18], [[0, 0, 0], [0, 0, distance]], tags=tags)


def pairs(n: int, first: float = 1.2) -> list[System]:
    return [pair(first + 0.001 * k, number=k) for k in range(n)]


# Processes


def _tasks(marks: Path) -> Callable[[str], str]:
    """A function whose task says what becomes of it; leaves a mark for each attempt."""

    def do(task: str) -> str:
        (marks / f"{task}-{time.monotonic_ns()}").touch()
        if task.startswith("die"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if task.startswith("once") and len(list(marks.glob(f"{task}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.startswith("eat"):
            block = np.ones(80_000_000)
            time.sleep(30)
            return str(block.sum())
        if task.startswith("hang"):
            time.sleep(60)
        if task.startswith("raise"):
            raise ValueError(task)
        return task.upper()

    return do


def test_deaths_are_retried_a_few_times_and_limits_hold(tmp_path: Path) -> None:
    tasks = ["a", "die", "b", "once", "eat", "hang", "raise", "c"]
    limits = Limits(timeout_s=2.0, memory_MB=400, retries=2)
    with Pool(partial(_tasks, tmp_path), n_workers=2, limits=limits) as pool:
        found = {tasks[number]: outcome for number, outcome in pool.outcomes(tasks)}
        assert dict(pool.outcomes(["again"])) == {0: "AGAIN"}, "the same processes take more tasks"
    assert [found[task] for task in ("a", "b", "once", "c")] == ["A", "B", "ONCE", "C"]
    kinds = {task: outcome.kind for task, outcome in found.items() if isinstance(outcome, Failure)}
    assert kinds == {"die": "crashed", "eat": "memory", "hang": "timeout", "raise": "error"}
    attempts = {task: len(list(tmp_path.glob(f"{task}-*"))) for task in tasks}
    assert attempts == {"a": 1, "b": 1, "c": 1, "die": 3, "once": 2, "eat": 1, "hang": 1, "raise": 1}
    assert "(3 times)" in found["die"].reason and "400 MB" in found["eat"].reason


def test_temporary_files_of_a_killed_process_do_not_stay() -> None:
    with Pool(_leave, n_workers=1, limits=Limits(timeout_s=1.0, retries=0)) as pool:
        found = dict(pool.outcomes(["stay", "hang"]))
    assert isinstance(found[1], Failure) and found[1].kind == "timeout"
    left = Path(found[0])
    assert left.parent.parent == Path(tempfile.gettempdir()) and not left.parent.exists()


def _leave() -> Callable[[str], str]:
    def do(task: str) -> str:
        folder = tempfile.mkdtemp()
        Path(folder, "large").write_bytes(bytes(1000))
        if task == "hang":
            time.sleep(60)
        return folder

    return do


def test_a_process_that_dies_while_idle_mixes_up_no_answers(tmp_path: Path) -> None:
    for n_rounds in range(5):
        with Pool(partial(_tasks, tmp_path), n_workers=1) as pool:
            assert dict(pool.outcomes(["first"])) == {0: "FIRST"}
            os.kill(pool._workers[0]._process_id, signal.SIGKILL)
            time.sleep(0.01 * n_rounds)
            tasks = [f"t{k}" for k in range(6)]
            assert dict(pool.outcomes(tasks)) == {k: task.upper() for k, task in enumerate(tasks)}


def test_an_answer_that_crosses_with_its_time_limit_costs_no_other_task(tmp_path: Path) -> None:
    """Every second task ends within a few milliseconds of the limit, the others at once."""
    with Pool(_almost_late, n_workers=1, limits=Limits(timeout_s=0.1, retries=0)) as pool:
        found = dict(pool.outcomes(range(60)))
    assert all(found[number] == number for number in range(0, 60, 2))
    others = [found[number] for number in range(1, 60, 2)]
    assert {outcome.kind for outcome in others if isinstance(outcome, Failure)} == {"timeout"}
    assert all(isinstance(outcome, Failure) or outcome == 2 * k + 1 for k, outcome in enumerate(others))


def _almost_late() -> Callable[[int], int]:
    def do(number: int) -> int:
        time.sleep((0.09 + 0.0004 * number) * (number % 2))
        return number

    return do


def test_tasks_are_taken_as_they_can_be_done(tmp_path: Path) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        for number in range(10**9):
            taken.append(number)
            yield f"t{number}"

    with Pool(partial(_tasks, tmp_path), n_workers=2) as pool:
        for n_done, _ in enumerate(pool.outcomes(endless()), start=1):
            assert len(taken) <= n_done + 2
            if n_done == 20:
                break


# Labels


def test_labels_land_once_and_in_order(tmp_path: Path) -> None:
    systems = pairs(50)
    with Store.create(tmp_path / "store") as store:
        found = label_into(store, [*systems, systems[3], systems[7].with_tags(copy=True)], LJ, LocalExecutor(2))
        assert (found.n_read, found.n_known, found.n_labelled, found.failures.total()) == (52, 2, 50, 0)
        assert [system.tags["number"] for system in store] == list(range(50))
        assert {system.level for system in store} == {"Lennard-Jones"}
        reference = 4 * (1.205**-12 - 1.205**-6) - 4 * (3**-12 - 3**-6)  # shifted to zero at the cutoff
        assert store[5].energy == pytest.approx(reference, abs=1e-4) and store[5].forces is not None
        again = label_into(store, [*systems, pair(4.0)], LJ, LocalExecutor(2))
        assert (again.n_known, again.n_labelled, len(store)) == (50, 1, 51)
        assert again.total_cpu_seconds == pytest.approx(found.cpu_seconds + again.cpu_seconds)
        another = LJ.model_copy(update={"arguments": {"sigma": 2.0}, "level": "LJ 2"})
        other = label_into(store, systems[:5], another, LocalExecutor(1))
        assert other.n_labelled == 5 and len(store) == 56, "another method has labels of its own"
        assert other.total_cpu_seconds == pytest.approx(other.cpu_seconds), "and a cost"


def test_failures_are_kept_with_reasons_and_tried_again_when_asked(tmp_path: Path) -> None:
    metals = LabelerConfig(name="emt")
    systems = [pair(3.0), System([29, 29], [[0, 0, 0], [0, 0, 2.5]], tags={"file": "copper.xyz", "frame": 0})]
    with Store.create(tmp_path / "store") as store:
        found = label_into(store, systems, metals, LocalExecutor(1))
        assert found.n_labelled == 1 and found.failures == {"unsupported": 1}
        assert label_into(store, systems, metals, LocalExecutor(1)).n_known == 2
        assert label_into(store, systems, metals, LocalExecutor(1), retry_failures=True).failures == {"unsupported": 1}
        with Journal(store, {}, "") as journal:
            (kept,) = journal.failures()
    assert kept["where"] == "Ar2" and "Ar" in kept["reason"] and kept["kind"] == "unsupported"


def test_forces_beyond_the_limit_are_failures(tmp_path: Path) -> None:
    config = LJ.model_copy(update={"max_force_eV_A": 5.0})
    systems = [pair(1.2), pair(0.9)]
    with Store.create(tmp_path / "store") as store:
        assert label_into(store, systems, config, LocalExecutor(1)).failures == {"too_large": 1}
        kept, refused = labels_in(store, systems, config)
        assert not isinstance(kept, Failure) and isinstance(refused, Failure) and refused.kind == "too_large"
        assert label_into(store, systems, config, LocalExecutor(1)).n_known == 2, "the same limit: nothing to do"
        wide, narrow = (config.model_copy(update={"max_force_eV_A": limit}) for limit in (1e3, 1e-3))
        assert label_into(store, systems, wide, LocalExecutor(1)).n_labelled == 1, "another limit: what it refused is tried again"
        assert label_into(store, systems, narrow, LocalExecutor(1)).n_known == 2
        assert all(isinstance(each, Failure) and each.kind == "too_large" for each in labels_in(store, systems, narrow))
    label_at(tmp_path / "other", systems, config, LocalExecutor(1))
    assert all_labelled(tmp_path / "other", systems, config)
    assert not all_labelled(tmp_path / "other", systems, wide), "it would be tried again"


@pytest.mark.parametrize("limits", [{"WINDOW": 8}, {"DEAR_S": 0.0, "UNSAVED_S": 0.0}], ids=["many", "dear"])
def test_one_that_hangs_does_not_hold_up_what_others_have(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(labelling, name, value)
    config = LabelerConfig(name="ase", calculator="benchmarks.labelling.Unreliable")
    water = System([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
    systems = [replace(water, positions=water.positions * (1 + 0.001 * k), tags={"number": k}) for k in range(40)]
    systems[2] = systems[2].with_tags(fault="hang")
    written: list[list[int]] = []
    append = Store.append

    def noted(self: Store, batch: list[System]) -> np.ndarray:
        written.append([int(system.tags["number"]) for system in batch])
        return append(self, batch)

    monkeypatch.setattr(Store, "append", noted)
    with Store.create(tmp_path / "store") as store:
        found = label_into(store, systems, config, LocalExecutor(2), limits=Limits(timeout_s=4.0, retries=0))
    assert found.failures == {"timeout": 1} and found.n_labelled == 39
    assert sorted(chain.from_iterable(written)) == [number for number in range(40) if number != 2]
    assert len(written) >= 3, "others were written while it hung"


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_labelling import *
labelling.CHUNK, labelling.WRITE_S = 8, 0.0
with Store(Path(sys.argv[1])) as store:
    label_into(store, pairs(400), LJ, LocalExecutor(2))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    folder, rng = tmp_path / "store", np.random.default_rng(0)
    Store.create(folder).close()
    n_kills, lengths = 0, [0]
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(6):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 60
        while len(Store(folder)) == lengths[-1] and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.1)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            n_kills += 1
        process.wait()
        lengths.append(len(Store(folder)))
    assert n_kills >= 2 and lengths == sorted(lengths)
    with Store(folder) as store:
        label_into(store, pairs(400), LJ, LocalExecutor(2))
        assert sorted(int(system.tags["number"]) for system in store) == list(range(400))
        assert not list(store.verify())


def test_a_label_that_was_stored_but_not_noted_is_not_computed_again(tmp_path: Path) -> None:
    systems = pairs(10)
    with Store.create(tmp_path / "store") as store:
        label_into(store, systems, LJ, LocalExecutor(1))
        (tmp_path / "store" / "labels.mdb").unlink()  # as if none had been noted
        again = label_into(store, systems, LJ, LocalExecutor(1))
        assert again.n_known == 10 and len(store) == 10


def test_what_was_not_noted_is_counted_for_the_method_that_made_it(tmp_path: Path) -> None:
    """Two methods of one level: the same program with other settings."""
    systems, another = pairs(10), LJ.model_copy(update={"arguments": {"sigma": 2.0}})
    with Store.create(tmp_path / "store") as store:
        label_into(store, systems[:5], LJ, LocalExecutor(1))
        with patch.object(Journal, "note"):  # killed between the store and the journal
            label_into(store, systems[5:], LJ, LocalExecutor(1))
        assert label_into(store, systems, another, LocalExecutor(1)).n_labelled == 10
        assert label_into(store, systems, LJ, LocalExecutor(1)).n_known == 10
        first, second = labels_in(store, systems, LJ), labels_in(store, systems, another)
    assert all(a.energy != b.energy and a.tags == b.tags for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_workers_that_die_and_hang_lose_nothing_else(tmp_path: Path) -> None:
    found = measure(120, LocalExecutor(2), tmp_path / "store", fraction=0.05)
    assert (found["n_lost"], found["n_twice"], found["n_of_marked"]) == (0, 0, 0)
    assert found["failures"] == {"killed": 2, "crashed": 2, "timeout": 2}


@pytest.mark.slow
def test_the_same_through_parsl(tmp_path: Path) -> None:
    pytest.importorskip("parsl", reason="Parsl is not installed")
    executor = ClusterExecutor(ClusterConfig(tasks_per_job=10, folder=tmp_path / "parsl"))
    found = measure(60, executor, tmp_path / "store", fraction=0.05)
    assert (found["n_lost"], found["n_twice"], found["n_of_marked"]) == (0, 0, 0)
    assert found["n_labelled"] == 57 and sum(found["failures"].values()) == 3


# The command


def test_the_command(tmp_path: Path) -> None:
    source, store = tmp_path / "pairs.extxyz", tmp_path / "labels.store"
    write_systems(source, [*pairs(5), System([1], [[0, 0, 0]])])
    arguments = ("label", source, "-o", store, "--method", "lj", "--argument", "sigma=3.4", "--argument", "epsilon=0.0104",
                 "--workers", "1")
    ending = sapis(*arguments)
    assert ending.code == 0 and "6 labelled" in ending.text, ending.text
    with Store(store) as opened:
        assert opened.level == "Lennard-Jones" and opened.isolated["Lennard-Jones"] == {1: 0.0, 18: 0.0}
        assert opened.manifest["sources"][0]["method"]["arguments"] == {"sigma": 3.4, "epsilon": 0.0104}
    with Store.at(store) as opened:  # as a kill after the last label leaves it
        opened.set_isolated("Lennard-Jones", {})
    again = sapis(*arguments)
    assert again.code == 0 and "6 known, 0 labelled" in again.text
    with Store(store) as opened:
        assert opened.isolated["Lennard-Jones"] == {1: 0.0, 18: 0.0}
    records = sorted((store / "records").glob("*.json"))
    assert [read_record(path).result["n_labelled"] for path in records] == [6, 0]
    assert read_json(store / "failures.json") == []

    settings = tmp_path / "settings.yaml"
    settings.write_text("labeler: {name: emt}\nlimits: {retries: 0}\n")
    failed = sapis("label", source, "-o", tmp_path / "emt.store", "--config", settings, "--workers", "1")
    assert failed.code == 0 and "unsupported 5" in failed.text, failed.text
    assert len(read_json(tmp_path / "emt.store" / "failures.json")) == 5


@pytest.mark.parametrize(("arguments", "hint"), [
    (("--method", "gfn3"), "gfn2"), (("--argument", "accuracy"), "name=value"), (("--timeout-s", "-1"), "greater than 0"),
    (("--method", "dft", "--argument", "grid=11"), "9"),
])
def test_what_the_command_refuses(tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    source = tmp_path / "pairs.extxyz"
    write_systems(source, pairs(2))
    ending = sapis("label", source, "-o", tmp_path / "labels.store", *arguments)
    assert ending.code == 2 and hint in ending.text and all(part in ending.text for part in PARTS), ending.text
    assert not (tmp_path / "labels.store").exists()
    inside = sapis("label", source, "-o", source, "--method", "lj")
    assert inside.code == 2
    with pytest.raises(FileError):
        Store(source)
