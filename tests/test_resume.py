"""Killed anywhere, the same command goes on and ends at the same model, bit for bit."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from command import PROGRAM, Ending, Sapis, contents, hear_interrupts
from conftest import labelled_frames, small_config
from sapis.core.errors import TrainingError
from sapis.core.seeds import generator
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.executor import LocalExecutor
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import label_into
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

N_KILLS = 10
RECIPE = """
system: {smiles: O}
output: out
temperatures_K: [300]
hot_temperature_K: 600
budget: {labels: 40, cpu_seconds: 1.0e+9}
candidates: {equilibration_fs: 20, decorrelation_fs: 5, n_replicas: 1}
model: {n_channels: 16, n_heads: 2, n_channels_carried: 16, l_max: 1, n_radial: 4, n_hidden_readout: 8}
training: {epochs: 3, warmup_steps: 5, checkpoint_seconds: 0.2, validations: 3, threads: 1}
dynamics: {nve_ps: 0.05, order_ps: 0.02, nvt_ps: 0.05}
workers: 2
"""


@dataclass(frozen=True)
class Finished:
    """A run that nothing disturbed: its folder, its time, what it printed, the bytes of its model."""

    folder: Path
    seconds: float
    ending: Ending
    model: str


@pytest.fixture(scope="module")
def program() -> Sapis:
    return Sapis()


@pytest.fixture(scope="module")
def undisturbed(program: Sapis, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    pytest.importorskip("tblite", reason="tblite is not installed")
    pytest.importorskip("rdkit", reason="rdkit is not installed")
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "water.yaml").write_text(RECIPE)
    program.run("--version", log=folder / "log")  # the first start imports torch
    start = time.monotonic()
    ending = program.run("run", folder / "water.yaml", log=folder / "log")
    assert ending.code == 0, ending.text
    return Finished(folder, time.monotonic() - start, ending, file_hash(folder / "out" / "model.sapis"))


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_hash(ending: Ending) -> str:
    found = re.search(r"^hash: +(\w+)$", ending.text, re.MULTILINE)
    assert found, ending.text
    return found[1]


@pytest.mark.slow
def test_a_run_killed_ten_times_gives_the_same_model(program: Sapis, undisturbed: Finished, tmp_path: Path) -> None:
    """Each life is as long as the time between two of ten moments drawn over the undisturbed duration."""
    lives = np.diff(np.sort(generator(0, "kills").uniform(0, undisturbed.seconds, N_KILLS)), prepend=0).tolist()
    log, n_finished = tmp_path / "log", 0
    while lives:
        recipe = tmp_path / str(n_finished) / "water.yaml"
        recipe.parent.mkdir(exist_ok=True)
        recipe.write_text(RECIPE)
        # Two threads where the undisturbed run had one: a resumed run must not take over what it finds in its process.
        process = program.start("run", recipe, log=log, n_threads=2)
        process.join(lives[0])
        if process.exitcode is None:
            process.kill()
            process.join()
            del lives[0]
        else:  # over before its time: the machine was busier with the undisturbed run
            assert process.exitcode == 0, log.read_text()
            lives[0] *= 0.8
            n_finished += 1
    endings = [program.run("run", recipe, log=log, n_threads=2) for recipe in tmp_path.glob("*/water.yaml")]
    assert len(endings) == n_finished + 1 and all(ending.code == 0 for ending in endings), endings
    assert {model_hash(ending) for ending in endings} == {model_hash(undisturbed.ending)}
    assert {file_hash(path) for path in tmp_path.glob("*/out/model.sapis")} == {undisturbed.model}
    assert not list(tmp_path.rglob("*.part")), "half-written files were left"


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_goes_on(program: Sapis, tmp_path: Path) -> None:
    (tmp_path / "water.yaml").write_text(RECIPE)
    process = subprocess.Popen([*PROGRAM, "run", str(tmp_path / "water.yaml")], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts)
    wait_for(tmp_path / "out" / "labels.store")
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "goes on from here" in text and "Traceback" not in text
    records = tmp_path / "out" / "records"
    assert [path.name for path in records.iterdir()] == ["candidates.json"], "interrupted in the step after the candidates"
    again = program.start("run", tmp_path / "water.yaml", log=tmp_path / "log")
    wait_for(records / "labels.json")
    again.kill()
    again.join()
    text = (tmp_path / "log").read_text()
    assert "candidates: done before" in text and "▶ 2. labels" in text


def test_a_worker_without_a_parent_ends_and_does_not_report_a_failure() -> None:
    """Else a killed run leaves a trajectory cut short, with a record that vouches for it."""
    script = ("import os\n"
              "from multiprocessing.connection import Pipe\n"
              "from sapis.executors import worker\n"
              "os.setsid()\n"
              "ours, worker._parent = Pipe()\n"
              "ours.close()\n"
              "try:\n    worker.report_progress(1)\n"
              "except Exception as error:\n    print('went on after', error)\n"
              "print('went on')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


DOOMED = """
import os, signal
from pathlib import Path
from ase.calculators.emt import EMT

class Doomed(EMT):
    def calculate(self, *arguments, **keywords):
        if not Path(__file__).with_name("spared").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(*arguments, **keywords)
"""


def test_a_worker_that_somebody_killed_is_no_failure_of_the_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who kills everything may kill a worker first: what its parent sees in its last moment must not be kept."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    monkeypatch.syspath_prepend(tmp_path)
    system = System(np.array([29, 29]), np.array([[0, 0, 0], [0, 0, 2.3]]))
    config = LabelerConfig(name="ase", calculator="doomed.Doomed")
    with Store.create(tmp_path / "store") as store:
        assert label_into(store, [system], config, LocalExecutor(1)).failures == {"killed": 1}
        (tmp_path / "spared").touch()
        assert label_into(store, [system], config, LocalExecutor(1)).n_labelled == 1


def wait_for(path: Path, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(program: Sapis, undisturbed: Finished) -> None:
    before = contents(undisturbed.folder / "out")
    start = time.monotonic()
    ending = program.run("run", undisturbed.folder / "water.yaml", log=undisturbed.folder / "log")
    assert time.monotonic() - start < max(2.0, undisturbed.seconds / 5)
    assert ending.text.count("done before") == 9 and "▶" not in ending.text
    assert contents(undisturbed.folder / "out") == before
    assert model_hash(ending) == model_hash(undisturbed.ending)


@pytest.mark.slow
def test_what_is_damaged_is_made_again(program: Sapis, undisturbed: Finished) -> None:
    """Only that, and the report, which holds what it cost."""
    for damaged in ("labels.extxyz", "training/model.sapis", "records/test.json", "model.sapis"):
        path = undisturbed.folder / "out" / damaged
        path.write_bytes(path.read_bytes()[:-10])
    ending = program.run("run", undisturbed.folder / "water.yaml", log=undisturbed.folder / "log")
    assert ending.code == 0 and re.findall(r"▶ \d\. (\w+)", ending.text) == ["labels", "train", "test", "bundle", "report"]
    assert file_hash(undisturbed.folder / "out" / "model.sapis") == undisturbed.model


# The training loop


class Killed(Exception):
    """In place of a signal, to stop a training at an exact step."""


class Mortal(Training):
    """Dies when it is about to make a given step; saves whenever it may."""

    last_step: int | None = None

    def _step(self, indices: np.ndarray) -> None:
        if self.progress.step == self.last_step:
            raise Killed
        super()._step(indices)


def training(frames: list[System], folder: Path, last_step: int | None = None, seed: int = 0) -> Training:
    config = TrainingConfig(epochs=4, batch_size=3, warmup_steps=3, validations=5, checkpoint_seconds=1e-9, precision="float64",
                            seed=seed)
    potential, _ = new_potential(frames, {}, small_config(l_max=1), precision=config.precision, seed=config.seed)
    made = Mortal(potential, frames[:10], frames[10:], config, folder)
    made.last_step = last_step
    return made


def state(made: Training) -> dict[str, torch.Tensor]:
    weights = {f"weights.{name}": value.detach().clone() for name, value in made.parameters.items()}
    moments = {f"{index}.{name}": value for index, each in made.optimizer.state_dict()["state"].items()
               for name, value in each.items()}
    return {**weights, **{f"mean.{name}": value for name, value in made.mean.values.items()}, **moments}


def losses(made: Training) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in made.progress.history]


@pytest.fixture(scope="module")
def frames() -> list[System]:
    return labelled_frames(14)


@pytest.fixture(scope="module")
def whole(frames: list[System], tmp_path_factory: pytest.TempPathFactory) -> Training:
    made = training(frames, tmp_path_factory.mktemp("whole"))
    made.run()
    return made


@pytest.mark.parametrize("stops", [[1], [7], [15], [2, 3, 9, 14]])
def test_a_resumed_training_equals_an_undisturbed_one(
    frames: list[System], whole: Training, tmp_path: Path, stops: list[int]
) -> None:
    for stop in stops:
        with pytest.raises(Killed):
            training(frames, tmp_path, stop).run()
    last = training(frames, tmp_path)
    last.run()
    assert last.progress.step == whole.progress.step == 16
    assert losses(last) == losses(whole) and len(losses(whole)) == 5
    expected, found = state(whole), state(last)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_lost_moment_would_be_noticed(frames: list[System], whole: Training, tmp_path: Path) -> None:
    """The comparison above can fail: forget the optimiser's state at one restart and the weights differ."""
    with pytest.raises(Killed):
        training(frames, tmp_path, 7).run()
    forgetful = training(frames, tmp_path)
    load = forgetful.optimizer.load_state_dict
    forgetful.optimizer.load_state_dict = lambda values: load({**values, "state": {}})  # type: ignore[method-assign]
    forgetful.run()
    expected, found = state(whole), state(forgetful)
    assert not all(torch.equal(expected[name], found[name]) for name in expected if name.startswith("weights"))


def test_a_finished_training_makes_no_step(frames: list[System], tmp_path: Path) -> None:
    training(frames, tmp_path).run()
    before = (tmp_path / "best.safetensors").read_bytes()
    again = training(frames, tmp_path, last_step=16)  # a step would raise Killed
    again.run()
    assert again.progress.step == 16 and (tmp_path / "best.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_training_is_refused(frames: list[System], tmp_path: Path) -> None:
    training(frames, tmp_path).run()
    before = contents(tmp_path)
    with pytest.raises(TrainingError, match="another training"):
        training(frames, tmp_path, seed=1).run()
    assert contents(tmp_path) == before
