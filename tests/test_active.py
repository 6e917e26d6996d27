"""Active learning: every label once, the same after kills, and failures that are told."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron

from command import sapis
from sapis.api import load
from sapis.core.errors import ConfigError, DataError, FileError, TrainingError
from sapis.core.files import read_json
from sapis.data.formats import read_systems, write_systems
from sapis.data.splits import is_of_new_kind
from sapis.data.store import Store
from sapis.data.system import System, hash_systems
from sapis.labelers.labeler import LabelerConfig
from sapis.pipeline.active import _known, active
from sapis.pipeline.active_config import OF_DYNAMICS, ActiveRecipe, read_active_recipe
from sapis.pipeline.choice import _apart, explored
from sapis.pipeline.learning import _errors
from sapis.pipeline.rounds import _held_of_known_kind
from sapis.pipeline.steps import errors
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior, UncertainPotential
from sapis.potential.prediction import Prediction
from sapis.uncertainty.dropout import Dropout
from sapis.uncertainty.stopping import StopRules, enough, error_below_which, expected_gain
from sapis.uncertainty.uncertain import Uncertain


class Fragile(EMT):
    """EMT that fails for one structure in five, always the same ones."""

    def calculate(self, atoms: Atoms | None = None, *arguments: Any, **settings: Any) -> None:
        assert atoms is not None
        if int(1e4 * abs(atoms.positions[0, 0])) % 5 == 0:
            raise RuntimeError("this one never works")
        super().calculate(atoms, *arguments, **settings)


class Dear(Fragile):
    """Another level of theory: a thousand eV away."""

    def calculate(self, *arguments: Any, **settings: Any) -> None:
        super().calculate(*arguments, **settings)
        self.results["energy"] += 1000.0
        self.results["free_energy"] = self.results["energy"]


class FailsLater(EMT):
    """Fails for what was chosen in the first round, of some arms."""

    def __init__(self, journal: str, arms: Sequence[str] = ("asked",)) -> None:
        super().__init__()
        self.chosen, self.arms = Path(journal) / "round-01" / "chosen.extxyz", arms

    def calculate(self, atoms: Any = None, *arguments: Any, **settings: Any) -> None:
        if self.chosen.exists():
            asked = [frame for frame in read_systems(self.chosen) if frame.tags["arm"] in self.arms]
            if any(np.allclose(atoms.positions, frame.positions) for frame in asked if len(frame) == len(atoms)):
                raise RuntimeError("does not like it")
        super().calculate(atoms, *arguments, **settings)


class Stiffer(Dear):
    """Another method: a thousand eV away, and with a pull to the centre."""

    def calculate(self, *arguments: Any, **settings: Any) -> None:
        super().calculate(*arguments, **settings)
        assert self.atoms is not None
        out = self.atoms.positions - self.atoms.positions.mean(axis=0)
        self.results["energy"] += 0.05 * float((out**2).sum())
        self.results["free_energy"] = self.results["energy"]
        self.results["forces"] = self.results["forces"] - 0.1 * out


def recipe(folder: Path, **changes: object) -> ActiveRecipe:
    folder.mkdir(exist_ok=True)
    ase.io.write(folder / "cluster.xyz", Icosahedron("Cu", 2))
    values: dict[str, object] = {
        "system": {"file": "cluster.xyz"}, "output": "out", "labeler": {"name": "emt"}, "n_start": 20, "rounds": 2,
        "n_per_round": 10, "n_candidates": 40, "temperatures_K": [300, 900], "strategy": "largest",
        "candidates": {"n_replicas": 2, "equilibration_fs": 20, "rattle_fraction": 0.0}, "workers": 1,
        "model": {"preset": "nano", "n_layers": 1, "cutoff": 4.0}, "training": {"epochs": 5, "validations": 2, "warmup_steps": 5}}
    unused = {"pool": OF_DYNAMICS, "start": {"model"}, "data": {"n_start"}}
    for name in {name for given in unused.keys() & changes.keys() for name in unused[given]}:
        values.pop(name, None)
    (folder / "active.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return read_active_recipe(folder / "active.yaml")


def write_pool(path: Path, n: int = 60) -> None:
    """Rattled clusters."""
    rng, cluster = np.random.default_rng(0), Icosahedron("Cu", 2)
    pool = []
    for _ in range(n):
        pool.append(cluster.copy())
        pool[-1].positions += rng.normal(0, 0.1, cluster.positions.shape)
    path.parent.mkdir(exist_ok=True)
    ase.io.write(path, pool)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("active")
    active(recipe(folder))
    return folder / "out"


@pytest.mark.slow
def test_each_round_asks_labels_and_learns(finished: Path) -> None:
    labels = Store(finished / "labels.store")
    assert len(labels) == 20 + 2 * 10
    for number, n_asked in ((0, 10), (1, 8), (2, 8)):
        frames = read_systems(finished / f"round-{number:02d}" / "labelled.extxyz")
        assert [frame.tags["arm"] for frame in frames].count("asked") == n_asked
        assert all(frame.energy is not None and frame.forces is not None for frame in frames)
        result = read_json(finished / "records" / f"round-{number:02d}-model.json")["result"]
        assert result["n_train"] == 10 + 8 * number and result["n_held"] == 10 + 2 * number
        assert ("old" in result["after"]) == (number > 0) and bool(result["before"]) == (number > 0)
    seen = [frame.structure_hash() for number in range(3)
            for frame in read_systems(finished / f"round-{number:02d}" / "labelled.extxyz")]
    assert len(set(seen)) == len(seen)
    rows = list(csv.DictReader((finished / "round-02" / "training" / "member-0" / "log.csv").open()))
    old, new, both = (np.array([float(row[f"{name}_force_rmse_meV_A"]) for row in rows]) for name in ("old", "new", "validation"))
    np.testing.assert_allclose(np.sqrt((12 * old**2 + 2 * new**2) / 14), both, rtol=1e-5)  # frames of one size, held out
    choice = read_json(finished / "records" / "round-01-choice.json")["result"]
    assert choice["uncertainty_asked_eV_A"] > choice["uncertainty_all_eV_A"]
    dynamics = [read_json(path)["cost"]["cpu_seconds"] for path in (finished / "round-01" / "trajectories").glob("*.json")]
    explored = read_json(finished / "records" / "round-01-candidates.json")["cost"]["cpu_seconds"]
    assert len(dynamics) == 4 and explored == pytest.approx(sum(dynamics)), "also of those that a killed call has made"
    model = load(finished / "model.sapis")
    assert isinstance(model.potential, UncertainPotential) and model.card["uncertainty"]["method"] == "distance"
    assert {"translation", "forces", "batching"} <= {check["name"] for check in model.card["checks"] if check["passed"]}
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg role="img"') == 3 and "What was forgotten" in page
    assert "dynamics by the model at 300, 900 K" in page and "<dd>largest</dd>" in page
    assert "validation       force RMSE" in sapis("info", finished / "model.sapis").text
    expected = labels[0].to_atoms()
    expected.calc = EMT()
    assert labels[0].energy == pytest.approx(expected.get_potential_energy(), abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_moments_change_nothing(finished: Path, tmp_path: Path, seed: int) -> None:
    recipe(tmp_path / "run")
    command = [sys.executable, "-c", "from sapis.cli import main; main()", "active", str(tmp_path / "run" / "active.yaml")]
    rng, n_killed = np.random.default_rng(seed), 0
    for _ in range(4):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(2.0, 9.0)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            n_killed += 1
        process.wait()
    assert n_killed > 0
    ending = sapis("active", tmp_path / "run" / "active.yaml")
    assert ending.code == 0 and "stopped: 2 rounds" in ending.text and "round 2, 26 labels learned" in ending.text
    assert (tmp_path / "run" / "out" / "model.sapis").read_bytes() == (finished / "model.sapis").read_bytes()
    assert len(Store(tmp_path / "run" / "out" / "labels.store")) == 40


@pytest.mark.slow
def test_it_stops_when_the_target_is_reached_and_tells_what_failed(tmp_path: Path) -> None:
    labeler = {"name": "ase", "calculator": "test_active.Fragile"}
    write_pool(tmp_path / "run" / "pool.extxyz")
    found = active(recipe(tmp_path / "run", system=None, pool="pool.extxyz", n_start=40, random_fraction=0.7, labeler=labeler,
                          stop={"target_meV_A": 1e6}))
    assert "as the model says" in found.reason and len(found.rounds) == 1
    result = read_json(tmp_path / "run" / "out" / "records" / "round-00-labels.json")["result"]
    assert result["failures"] and "never works" in result["failures"][0]["reason"]
    assert result["n_labelled"] + len(result["failures"]) == 40


@pytest.mark.slow
def test_what_has_failed_is_not_asked_for_again(tmp_path: Path) -> None:
    write_pool(tmp_path / "run" / "pool.extxyz")
    fragile = {"name": "ase", "calculator": "test_active.Fragile"}
    found = active(recipe(tmp_path / "run", system=None, pool="pool.extxyz", labeler=fragile,
                          uncertainty={"method": "ensemble", "members": 2}))
    chosen = [system.structure_hash() for number in range(3)
              for system in read_systems(tmp_path / "run" / "out" / f"round-{number:02d}" / "chosen.extxyz")]
    assert len(set(chosen)) == len(chosen) == 40
    failed = sum(len(read_json(tmp_path / "run" / "out" / "records" / f"round-{number:02d}-labels.json")["result"]["failures"])
                 for number in range(3))
    last = found.rounds[-1].result
    assert failed > 0 and last["n_train"] + last["n_held"] == 40 - failed
    first, second = load(found.model).potential.members  # type: ignore[union-attr]
    weights = [dict(member.named_parameters())["transformer.embedding"].flatten() for member in (first, second)]
    assert abs(float(np.corrcoef(*(each.detach().numpy() for each in weights))[0, 1])) < 0.9, "each goes on from its own"


def test_labels_of_two_methods_are_not_mixed(finished: Path, tmp_path: Path) -> None:
    frames = read_systems(finished / "round-00" / "labelled.extxyz")
    assert {frame.level for frame in frames} == {"EMT"} and load(finished / "model.sapis").potential.conditions.levels == ("EMT",)
    (tmp_path / "run").mkdir()
    write_systems(tmp_path / "run" / "known.extxyz", [replace(frame, level="PBE") for frame in frames])
    with pytest.raises(ConfigError, match="frames of EMT"):
        active(recipe(tmp_path / "run", data="known.extxyz"))
    with pytest.raises(ConfigError, match="frames of EMT"):
        active(recipe(tmp_path / "run", data="known.extxyz", breadth={}))
    assert not (tmp_path / "run" / "out").exists(), "before cheap labels are made"
    with pytest.raises(ConfigError, match="to_level"):
        active(recipe(tmp_path / "run", start=str(finished / "model.sapis"), labeler={"name": "emt", "level": "PBE"}))


@pytest.mark.slow
def test_what_settles_a_step_is_in_its_record_and_an_empty_pool_ends_the_run(tmp_path: Path) -> None:
    write_pool(tmp_path / "run" / "pool.extxyz", 44)
    settings: dict[str, object] = {"system": None, "pool": "pool.extxyz", "rounds": 4}
    found = active(recipe(tmp_path / "run", **settings))
    assert "nothing to ask for in round 4" in found.reason and len(found.rounds) == 4 and found.model.exists()
    page = (tmp_path / "run" / "out" / "report.html").read_text(encoding="utf-8")
    assert "nothing to ask for" in page and "held out in earlier rounds" in page
    with pytest.raises(TrainingError, match="one of another training"):  # what is there is not taken for that of other settings
        active(recipe(tmp_path / "run", later_learning_rate=1e-4, **settings))


@pytest.mark.slow
def test_labels_of_another_recipe_are_not_bought_for_a_training_that_has_begun(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run" / "out")
    n = len(Store(tmp_path / "run" / "out" / "labels.store"))
    with pytest.raises(ConfigError, match="that asks for other labels"):
        active(recipe(tmp_path / "run", strategy="diverse"))
    assert len(Store(tmp_path / "run" / "out" / "labels.store")) == n


@pytest.mark.slow
def test_a_round_whose_labels_fail_or_that_finds_little_is_not_the_last(tmp_path: Path) -> None:
    write_pool(tmp_path / "run" / "pool.extxyz", 33)
    out = tmp_path / "run" / "out"
    found = active(recipe(tmp_path / "run", system=None, pool="pool.extxyz", rounds=3, n_per_round=5, random_fraction=0.4,
                          labeler={"name": "ase", "calculator": "test_active.FailsLater", "arguments": {"journal": str(out)}}))
    labels = [read_json(out / "records" / f"round-{number:02d}-labels.json")["result"] for number in range(4)]
    assert [len(each["failures"]) for each in labels] == [0, 3, 0, 0] and [each["n_labelled"] for each in labels] == [20, 2, 5, 3]
    assert found.reason == "3 rounds" and len(found.rounds) == 4
    assert "does not like it" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_round_all_of_whose_labels_fail_is_told_and_paid_for(tmp_path: Path) -> None:
    write_pool(tmp_path / "run" / "pool.extxyz", 33)
    out = tmp_path / "run" / "out"
    labeler = {"name": "ase", "calculator": "test_active.FailsLater",
               "arguments": {"journal": str(out), "arms": ["asked", "random"]}}
    settings: dict[str, object] = {"system": None, "pool": "pool.extxyz", "rounds": 3, "n_per_round": 5, "labeler": labeler}
    found = active(recipe(tmp_path / "run", **settings))
    assert len(found.rounds) == 1 and "round 1: labels were wanted, and there are none of 5: " in found.reason
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("error: RuntimeError: does not like it") == 5
    assert found.cost["cpu_seconds"] >= read_json(out / "records" / "round-01-labels.json")["cost"]["cpu_seconds"]
    before = found.model.read_bytes()
    again = active(recipe(tmp_path / "run", **settings))
    assert again.reason == found.reason and again.model.read_bytes() == before


@pytest.mark.slow
def test_a_bias_is_for_dynamics_of_a_model_that_knows_its_doubt(finished: Path, tmp_path: Path) -> None:
    dynamics = {"n_replicas": 1, "equilibration_fs": 5, "decorrelation_fs": 2}
    arguments = {"path": str(finished / "model.sapis"), "uncertainty": True}
    driver = LabelerConfig(name="potential", is_stateless=True, arguments=arguments)
    found = {}
    for name, bias in (("plain", 0.0), ("biased", 0.5)):
        asked = recipe(tmp_path / name, n_candidates=10, temperatures_K=[300], candidates={**dynamics, "bias": bias})
        found[name] = [hash_systems(explored(asked, number, driver, "EMT", tmp_path / name / str(number))[0])
                       for number in (0, 1)]
    assert found["plain"][0] == found["biased"][0], "of the first round the driver is the method of the labels"
    assert found["plain"][1] != found["biased"][1]


def test_a_folder_of_others_is_refused_before_cheap_labels_are_made(tmp_path: Path) -> None:
    (tmp_path / "run" / "out").mkdir(parents=True)
    (tmp_path / "run" / "out" / "model.sapis").write_bytes(b"of others")
    with pytest.raises(FileError, match="files that no run wrote"):
        active(recipe(tmp_path / "run", breadth={}))


def test_what_has_no_use_is_refused(tmp_path: Path) -> None:
    for wrong, words in (({"pool": "pool.extxyz", "system": None, "n_candidates": 50}, "n_candidates with pool"),
                         ({"start": "m.sapis", "model": {"preset": "tiny"}}, "model with m.sapis"),
                         ({"data": "d.extxyz", "n_start": 50}, "n_start with d"), ({"validation": "v.extxyz"}, "data with valid"),
                         ({"training": {"dropout": 0.3}, "uncertainty": {"method": "dropout"}}, "one dropout")):
        with pytest.raises(ConfigError, match=words):
            recipe(tmp_path / "run", **wrong)


def test_rules_hold_where_they_should_and_not_where_they_should_not() -> None:
    rng = np.random.default_rng(0)
    stds = np.exp(rng.normal(np.log(0.05), 0.5, 4000))
    errors = stds[:, None] * rng.standard_normal((4000, 3))
    norms = np.linalg.norm(errors, axis=1)
    forces = Calibration.of(norms[:2000], stds[:2000], 3)
    below = error_below_which(0.95, stds[2000:], forces)
    assert np.mean(norms[2000:] < below) == pytest.approx(0.95, abs=0.01)
    assert all(error_below_which(0.95, stds, forces, unsure=unsure) == np.inf for unsure in (1 / 20, 0.06, 1.0))
    assert error_below_which(0.95, np.append(stds[2000:], 0.0), forces) == pytest.approx(below, rel=1e-3), "one that has no force"
    assert error_below_which(0.95, stds, forces, unsure=0.02) > below

    mean = Prediction(0.0, np.zeros(10), np.zeros((10, 3)), None)
    fresh = [Posterior(mean, 1.0, own[:, None, None] ** 2 * np.eye(3)) for own in stds[2000:].reshape(-1, 10)]
    highest = max(one.force_std.max() for one in fresh)

    def why(n_unsure: int = 0, **rules: float) -> str:
        return enough(StopRules(**rules), [20, 40, 60, 80], lambda: [50.0, 40.0, 35.0, 32.0], lambda: (fresh, n_unsure), forces,
                      n_next=20)

    assert "less certain" in why(below_eV_A=1.01 * highest) and not why(below_eV_A=0.5 * highest)
    assert not why(n_unsure=3, below_eV_A=1.01 * highest)
    assert "as the model says" in why(target_meV_A=1001 * below) and not why(target_meV_A=999 * below)
    assert not why(n_unsure=20, target_meV_A=1001 * below)
    assert not why(min_gain=0.05) and "off the error" in why(min_gain=0.2)


def test_the_next_round_is_worth_what_a_power_law_says() -> None:
    n = np.array([20.0, 40, 60, 80])
    assert expected_gain(n, 300 / n, 20) == pytest.approx(0.2) and expected_gain(n, np.full(4, 9.0), 20) == pytest.approx(0)
    all_failed = expected_gain(np.array([20.0, 40, 60, 60]), np.array([15, 7.5, 5, 5]), 20)
    assert all_failed == pytest.approx(0.25), "the last labels that were asked for"
    rng = np.random.default_rng(0)
    noisy = [expected_gain(n, n**-0.5 * np.exp(0.05 * rng.standard_normal(4)), 20) for _ in range(1000)]
    truth = 1 - (2 - 60 / 80) ** -0.5
    assert np.mean(np.array(noisy) > truth) == pytest.approx(0.9, abs=0.03), "the most that it can be, nine times of ten"


def test_a_block_that_names_some_settings_keeps_the_defaults_of_the_others(tmp_path: Path) -> None:
    some = recipe(tmp_path / "run", training={"learning_rate": 0.002}, candidates={"bias": 0.2})
    assert some.training.epochs == 100 and some.candidates.rattle_fraction == 0
    assert recipe(tmp_path / "run", uncertainty={"dropout": None}).uncertainty.method == "distance"
    breadth = recipe(tmp_path / "run", breadth={"budget": {"cpu_seconds": 1800}}).breadth
    assert breadth is not None and breadth.budget.labels == 2000 and breadth.budget.cpu_seconds == 1800
    other = recipe(tmp_path / "run", training={"flops": 1e9}, candidates={"rattle_fraction": 0.3})
    assert other.training.epochs is None and other.candidates.rattle_fraction == 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "n_models", "words"), [
    ({"below_eV_A": 1e6}, 1, "0 % of fresh candidates"), ({"min_gain": 0.99}, 4, "off the error"),
    ({"cpu_seconds": 0.01}, 1, "are spent")])
def test_other_reasons_to_stop(tmp_path: Path, rule: dict[str, float], n_models: int, words: str) -> None:
    write_pool(tmp_path / "run" / "pool.extxyz", 90)
    pool = read_systems(tmp_path / "run" / "pool.extxyz")
    crushed = [replace(system, positions=0.4 * system.positions) for system in pool[:5]]  # whatever the model says
    write_systems(tmp_path / "run" / "pool.extxyz", pool + crushed)
    found = active(recipe(tmp_path / "run", system=None, pool="pool.extxyz", rounds=5, stop=rule))
    assert len(found.rounds) == n_models and words in found.reason


@pytest.mark.slow
def test_a_pool_and_a_model_to_begin_from(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_pool(folder / "pool.extxyz")
    found = active(recipe(folder, system=None, pool="pool.extxyz", start=str(finished / "model.sapis"), rounds=1, n_start=20,
                          strategy="random"))
    assert len(found.rounds) == 2 and found.rounds[-1].result["n_train"] + found.rounds[-1].result["n_held"] == 30
    with pytest.raises(ConfigError, match="either a system or a pool"):
        recipe(tmp_path / "other", pool="pool.extxyz")
    gold = read_systems(folder / "pool.extxyz")[:1]
    gold = [replace(each, numbers=np.full(len(each), 79)) for each in gold]
    write_systems(folder / "pool.extxyz", read_systems(folder / "pool.extxyz") + gold)
    with pytest.raises(ConfigError, match="1 of 61 others"):
        active(recipe(folder, system=None, pool="pool.extxyz", start=str(finished / "model.sapis"), output="gold"))
    assert not (folder / "gold" / "labels.store").exists(), "before any label is bought"


@pytest.mark.slow
def test_a_model_of_two_levels_learns_the_second(finished: Path, tmp_path: Path) -> None:
    ending = sapis("grow", finished / "model.sapis", tmp_path / "two.sapis", "--level", "dear", "--element", "Cu@dear=0")
    assert ending.code == 0, ending.text
    dear = {"name": "ase", "calculator": "test_active.Dear", "level": "dear"}
    found = active(recipe(tmp_path / "run", start=str(tmp_path / "two.sapis"), labeler=dear, rounds=1))
    model = load(found.model).potential
    assert model.conditions.levels == ("EMT", "dear") and len(found.rounds) == 2
    assert found.curves["errors"]["asked"][-1]["energy_rmse_meV_atom"] < 1000, "the new level has reference energies of its own"
    before = load(finished / "model.sapis").single
    assert model.first.reference_energies[0] == before.reference_energies[0], "and the other one has kept its own"


@pytest.mark.slow
def test_a_control_learns_from_as_many_labels_at_random(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "out"
    write_pool(tmp_path / "run" / "pool.extxyz", 90)
    dropout = {"method": "dropout", "members": 2}
    settings: dict[str, object] = {"system": None, "pool": "pool.extxyz", "control": True, "uncertainty": dropout}
    found = active(recipe(tmp_path / "run", **settings))
    rounds = [read_systems(folder / f"round-{number:02d}" / "labelled.extxyz") for number in range(3)]
    arms = [[frame.tags["arm"] for frame in frames] for frames in rounds]
    assert [[arm.count(name) for name in ("asked", "random", "control")] for arm in arms] == [[10, 10, 0], [8, 2, 8], [8, 2, 8]]
    held, learned = ([frame.structure_hash() for frames in rounds for frame in frames if frame.tags["arm"] == arm]
                     for arm in ("random", "control"))
    assert not set(held) & set(learned)
    curves = read_json(folder / "records" / "curves.json")["result"]
    assert curves["n_train"] == {"asked": [10, 18, 26], "control": [10, 18, 26]} and curves["n_held"] == 14
    asked, control = (curves["errors"][arm] for arm in ("asked", "control"))
    assert asked[0] == control[0] and asked[1:] != control[1:]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "as many labels at random" in page and "training of the control" in page
    assert isinstance(load(found.model).potential, Dropout)
    before = found.model.read_bytes()
    assert active(recipe(tmp_path / "run", **settings)).model.read_bytes() == before


@pytest.mark.slow
def test_candidates_by_displacements_and_by_dynamics_with_a_bias(tmp_path: Path) -> None:
    pytest.importorskip("rdkit", reason="RDKit is not installed")
    pytest.importorskip("tblite", reason="tblite is not installed")
    with pytest.raises(ConfigError, match="SMILES"):
        recipe(tmp_path / "other", displaced_fraction=0.5)
    dynamics = {"n_replicas": 2, "equilibration_fs": 20, "rattle_fraction": 0.0, "bias": 0.2}
    active(recipe(tmp_path / "run", system={"smiles": "CCO"}, labeler={"name": "gfn2", "max_force_eV_A": 30}, rounds=1,
                  displaced_fraction=0.5, candidates=dynamics, energy_window_eV_atom=1e-3))
    folder = tmp_path / "run" / "out"
    sources = [frame.tags["source"] for frame in read_systems(folder / "round-00" / "candidates.extxyz")]
    assert len(sources) == 40 and sources.count("md") == 20 and {"vibration", "torsion", "stretch"} < set(sources)
    choice = read_json(folder / "records" / "round-01-choice.json")["result"]
    assert choice["left_out"]["energy or forces too high"] > 0 and choice["n_asked"] > 0


@pytest.mark.slow
def test_labelled_frames_to_begin_with(finished: Path, tmp_path: Path) -> None:
    earlier = [frame for number in range(3) for frame in read_systems(finished / f"round-{number:02d}" / "labelled.extxyz")]
    known = [replace(frame, tags={name: value for name, value in frame.tags.items() if name != "arm"}) for frame in earlier]
    (tmp_path / "run").mkdir()
    write_systems(tmp_path / "run" / "known.extxyz", known + known[:5])  # each counts once
    found = active(recipe(tmp_path / "run", data="known.extxyz", rounds=1))
    first, last = (record.result["n_train"] + record.result["n_held"] for record in found.rounds)
    assert 30 <= first <= 40 and last == first + 10, "frames next in time to those held out may be left out"
    assert len(Store(tmp_path / "run" / "out" / "labels.store")) == 10, "only those that were asked for are computed"
    lines: dict[object, list[tuple[float, str]]] = {}
    for frame in read_systems(tmp_path / "run" / "out" / "round-00" / "labelled.extxyz"):
        lines.setdefault(frame.tags["trajectory"], []).append((float(frame.tags["time_fs"]), str(frame.tags["arm"])))
    everything: dict[object, list[float]] = {}
    for frame in known:
        everything.setdefault(frame.tags["trajectory"], []).append(float(frame.tags["time_fs"]))
    for name, line in lines.items():
        places = [(sorted(everything[name]).index(time_fs), arm) for time_fs, arm in sorted(line)]
        assert all(there > here + 1 or one == other for (here, one), (there, other) in pairwise(places))
    with pytest.raises(TrainingError, match="another training"):  # another share of the same frames is another split
        active(recipe(tmp_path / "run", data="known.extxyz", rounds=1, random_fraction=0.5))
    with_start = {"data": "known.extxyz", "start": str(finished / "model.sapis"), "rounds": 1, "output": "on"}
    with pytest.raises(ConfigError, match="that the start has not learned from"):
        active(recipe(tmp_path / "run", **with_start))
    of_learned = [frame for frame in earlier if frame.tags["arm"] == "asked"]
    write_systems(tmp_path / "run" / "learned.extxyz", [replace(frame, tags={}) for frame in of_learned])
    write_systems(tmp_path / "run" / "held.extxyz", [frame for frame in earlier if frame.tags["arm"] == "random"])
    write_systems(tmp_path / "run" / "earlier.extxyz", earlier)
    apart = _known(recipe(tmp_path / "run", **with_start | {"data": "learned.extxyz", "validation": "held.extxyz"}))
    again = _known(recipe(tmp_path / "run", **with_start | {"data": "earlier.extxyz"}))
    hashes = [{arm: {frame.structure_hash() for frame in frames} for arm, frames in parts.items()} for parts in (apart, again)
              if parts]
    assert hashes[0] == hashes[1] and hashes[0]["asked"] == {frame.structure_hash() for frame in of_learned}
    with pytest.raises(DataError, match="leakage"):
        _known(recipe(tmp_path / "run", **with_start | {"data": "learned.extxyz", "validation": "learned.extxyz"}))
    other_energies = [replace(frame, energy=(frame.energy or 0) + 5) for frame in known[:5]]
    write_systems(tmp_path / "run" / "known.extxyz", known + other_energies)
    with pytest.raises(DataError, match="conflict"):
        _known(recipe(tmp_path / "run", data="known.extxyz"))
    write_systems(tmp_path / "run" / "known.extxyz", known[:12])
    with pytest.raises(DataError, match="at least 20 labelled frames"):
        active(recipe(tmp_path / "run", data="known.extxyz", output="few"))


def test_what_validates_is_of_kinds_that_the_model_learns(tmp_path: Path) -> None:
    rng, frames = np.random.default_rng(1), []
    for k in range(60):  # six trajectories, each with one atom of an element of its own
        atoms = Icosahedron("Cu", 2)
        atoms.symbols[0] = ("Ni", "Pd", "Ag", "Pt", "Au", "Al")[k // 10]
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(replace(System.from_atoms(atoms), energy=energy, forces=forces).with_tags(
            trajectory=str(k // 10), time_fs=float(k % 10), arm="random" if k < 15 else "asked"))
    (tmp_path / "run").mkdir()
    write_systems(tmp_path / "run" / "known.extxyz", frames)
    for seed in range(3):
        parts = _known(recipe(tmp_path / "run", data="known.extxyz", seed=seed))
        assert parts is not None and len(parts["asked"]) + len(parts["random"]) > 50
        assert not any(is_of_new_kind(parts["random"], parts["asked"]))
    first = _held_of_known_kind(frames)  # labels of all that had nickel and were asked for may have failed
    assert [frame.tags["arm"] for frame in first] == ["asked"] * 10 + ["random"] * 5 + ["asked"] * 45


def test_frames_next_in_time_come_last() -> None:
    frames = [System.from_atoms(Icosahedron("Cu", 2)).with_tags(trajectory=k // 6) for k in range(12)]  # in the order of the file
    found = [_apart(frames, np.arange(1, 12), np.array([0, 8]), n).tolist() for n in (2, 8, 9)]
    apart = [2, 3, 4, 5, 6, 8, 10, 11]
    assert found == [apart, apart, [*apart, 1]]


@pytest.mark.slow
def test_few_frames_and_labels_of_stress_alone_are_judged(finished: Path) -> None:
    frames = read_systems(finished / "round-00" / "labelled.extxyz")
    model = load(finished / "model.sapis").potential
    assert isinstance(model, Uncertain)
    one = _errors(model, [], {"asked": frames[:2], "random": frames[2:3]})
    assert one["random"]["uncertainty"]["forces"]["n"] == 13 and "energy" not in one["random"]["uncertainty"] and "old" not in one
    bulk = replace(frames[0], energy=None, forces=None, cell=20 * np.eye(3), pbc=np.ones(3, dtype=bool), stress=np.zeros((3, 3)))
    found = errors(finished / "model.sapis", {"home": frames, "stress": [bulk, bulk]}, home="home")
    assert "uncertainty" in found["home"] and "uncertainty" not in found["stress"]


def test_a_run_says_before_its_training_that_nothing_can_be_calibrated(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "cluster.xyz", Icosahedron("Cu", 2))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({
        "system": {"file": "cluster.xyz"}, "output": "out", "labeler": {"name": "emt"}, "temperatures_K": [300],
        "hot_temperature_K": None, "budget": {"labels": 20, "cpu_seconds": 60}, "uncertainty": {"method": "distance"},
        "candidates": {"n_replicas": 3, "equilibration_fs": 20, "decorrelation_fs": 5}, "workers": 1}))
    ending = sapis("run", tmp_path / "recipe.yaml")
    assert ending.code == 2 and "to calibrate an uncertainty" in ending.text and not (tmp_path / "out" / "training").exists()


@pytest.mark.slow
def test_a_run_can_ask_after_its_training(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "cluster.xyz", Icosahedron("Cu", 2))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({
        "system": {"file": "cluster.xyz"}, "output": "out", "labeler": {"name": "emt"}, "temperatures_K": [300],
        "hot_temperature_K": 600, "budget": {"labels": 80, "cpu_seconds": 60},
        "candidates": {"n_replicas": 3, "equilibration_fs": 20, "decorrelation_fs": 5}, "workers": 1,
        "model": {"preset": "nano", "n_layers": 1, "cutoff": 4.0}, "training": {"epochs": 5, "validations": 1},
        "dynamics": {"nve_ps": 0.02, "order_ps": 0.02, "nvt_ps": 0.02},
        "active": {"rounds": 1, "n_per_round": 10, "n_candidates": 40, "epochs": 3}}))
    ending = sapis("run", tmp_path / "recipe.yaml")
    assert ending.code in (0, 1), ending.text
    model = load(tmp_path / "out" / "model.sapis")
    assert isinstance(model.potential, UncertainPotential) and model.card["checks"]
    result = read_json(tmp_path / "out" / "records" / "active.json")["result"]
    assert result["n_labels"] == 10 and result["n_rounds"] == 1 and result["method"] == "distance"
    spent = [read_json(path)["cost"]["cpu_seconds"] for path in (tmp_path / "out" / "active" / "records").glob("round-*.json")]
    told = read_json(tmp_path / "out" / "records" / "active.json")["cost"]["cpu_seconds"]
    assert len(spent) == 6 and told == pytest.approx(sum(spent)), "labels and dynamics are part of what it cost"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "the model asked for labels" in page and 'id="uncertainty"' in page
    assert "done before (active.json)" in sapis("run", tmp_path / "recipe.yaml").text


@pytest.mark.slow
def test_cheap_labels_come_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="breadth with a system"):
        recipe(tmp_path / "other", start="model.sapis", breadth={})
    with pytest.raises(ConfigError, match="no cpu_seconds or seed under training of breadth"):
        recipe(tmp_path / "other", breadth={"training": {"cpu_seconds": 10}})
    cheap = {"labeler": {"name": "emt"}, "temperatures_K": [300], "budget": {"labels": 40, "cpu_seconds": 60},
             "training": {"epochs": 3, "validations": 1}, "candidates": {"n_replicas": 2, "equilibration_fs": 20},
             "dynamics": {"nve_ps": 0.02, "order_ps": 0.02, "nvt_ps": 0.02}}
    dear = {"name": "ase", "calculator": "test_active.Dear", "level": "dear"}
    found = active(recipe(tmp_path / "run", breadth=cheap, labeler=dear, rounds=1))
    folder = tmp_path / "run" / "out"
    assert len(Store(folder / "breadth" / "labels.store")) == 40 and len(Store(folder / "labels.store")) <= 30
    model = load(found.model)
    assert model.potential.conditions.levels == ("dear",)  # type: ignore[union-attr]
    first = read_json(folder / "records" / "round-00-model.json")["result"]["after"]["asked"]
    assert first["energy_rmse_meV_atom"] < 1000, "the new level has reference energies of its own"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "cheap training" in page and "cheap labels" in page and "correction of cheap labels" not in page


@pytest.mark.slow
def test_cheap_labels_are_corrected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no seed under training or delta"):
        recipe(tmp_path / "other", breadth={"delta": {"seed": 1}})
    with pytest.raises(ConfigError, match="either control or delta"):
        recipe(tmp_path / "other", breadth={"delta": {}}, control=True)
    cheap = {"labeler": {"name": "emt"}, "temperatures_K": [300], "budget": {"labels": 40, "cpu_seconds": 60},
             "training": {"epochs": 3, "validations": 1}, "candidates": {"n_replicas": 2, "equilibration_fs": 20},
             "dynamics": {"nve_ps": 0.02, "order_ps": 0.02, "nvt_ps": 0.02}, "delta": {"epochs": 25, "validations": 1}}
    dear = {"name": "ase", "calculator": "test_active.Stiffer", "level": "dear"}
    found = active(recipe(tmp_path / "run", breadth=cheap, labeler=dear, rounds=1))
    folder = tmp_path / "run" / "out"
    n_dear = sum(record.result["n_train"] + record.result["n_held"] for record in found.rounds[-1:])
    assert len(Store(folder / "cheap.store")) == n_dear, "every structure with a dear label has a cheap one"
    before = read_systems(folder / "breadth" / "train.extxyz")
    for number in range(2):
        told = read_json(folder / "records" / f"round-{number:02d}-delta.json")["result"]
        assert told["n_train"] == found.rounds[number].result["n_train"] and told["n_corrected"] == len(before)
        after = read_systems(folder / f"round-{number:02d}" / "corrected.extxyz")
        wrong = []
        for one, other in zip(before, after, strict=True):
            out = one.positions - one.positions.mean(axis=0)
            wrong.append(other.forces - (one.forces - 0.1 * out))
            assert other.level == "dear" and other.energy == pytest.approx(one.energy + 1000.0 + 0.05 * (out**2).sum(), abs=0.5)
        assert np.sqrt(np.mean(np.square(wrong))) < 0.3 * 0.1 * np.sqrt(np.mean(out**2)), "the pull is learned"
    assert "correction of cheap labels" in (folder / "report.html").read_text(encoding="utf-8")
    again = active(recipe(tmp_path / "run", breadth=cheap, labeler=dear, rounds=1))
    assert again.model_hash == found.model_hash and len(Store(folder / "cheap.store")) == n_dear
