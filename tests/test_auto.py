"""A training that decides as it goes: growth keeps the error, the budget holds, and a kill changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from command import sapis
from sapis.api import load
from sapis.core.errors import ConfigError, FileError, ModelError
from sapis.core.files import read_json
from sapis.core.seeds import generator
from sapis.data.formats import read_systems
from sapis.data.formats.xyz import write_systems
from sapis.data.store import Store
from sapis.pipeline.auto import EVENTS, auto
from sapis.pipeline.auto_config import AutoConfig, steps_between
from sapis.potential.bundle import hash_tensors, read_tensors
from sapis.scaling.controller import Action, Decision
from sapis.scaling.path import Look

SAMPLE = Path(__file__).parents[1] / "docs" / "data" / "organic-gfn2-v1" / "sample.extxyz.gz"


def settings(**changes: object) -> dict[str, object]:
    return {"flops": 4e9, "label_flops": 4e6, "widths": [16, 32], "model": {"preset": "nano", "n_layers": 1}, "n_start": 20,
            "n_validation": 10, "n_test": 20, "training": {"validations": 1, "checkpoint_seconds": 0.2, "warmup_steps": 5},
            "controller": {"looks": 14, "min_looks": 3}, **changes}


def write_copper(path: Path) -> None:
    """Rattled cells, without labels."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(100):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        frames.append(atoms)
    ase.io.write(path, frames)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.extxyz"
    write_systems(path, [system for system in read_systems(SAMPLE) if len(system) < 21])
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "run"
    auto(data, folder, AutoConfig.model_validate(settings()))
    return folder


def test_sizes_grow_by_one_step_of_one_axis() -> None:
    config = AutoConfig(flops=1.0, widths=(32, 16), axes={"n_layers": (2, 3), "order": (2,)})
    sizes = config.sizes()
    assert sizes == [{"n_channels": width, "n_layers": layers, "order": 2} for width in (16, 32) for layers in (2, 3)]
    assert steps_between(sizes) == ((1, 2), (3,), (3,), ())
    with pytest.raises(ValueError, match="either among the axes or in the model"):
        AutoConfig(flops=1.0, axes={"order": (2, 3)}, model={"order": 2})


@pytest.mark.slow
def test_the_budget_holds_and_growth_keeps_the_error(finished: Path, data: Path) -> None:
    record = read_json(finished / "record.json")
    assert record["cost"]["flops"] == pytest.approx(4e9, rel=0.02)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert all(event["decision"]["reason"] in page for event in record["result"]["events"]) and "<svg" in page
    events = read_json(finished / EVENTS)
    spent = np.array([event["look"]["spent"] for event in events])
    assert (np.diff(spent) > 0).all() and spent[-1] < 4e9
    actions = [event["decision"]["action"] for event in events]
    assert actions[-1] == "stop" and any(action.startswith("grow") for action in actions)
    stages = sorted(finished.glob("stage-*"))
    assert len(stages) == 1 + sum(action.startswith("grow") for action in actions)
    assert record["result"]["n_frames"] == events[-1]["stage"]["n_frames"] <= len(read_systems(data)) - 30


@pytest.mark.slow
def test_a_growth_that_is_taken_back_costs_what_it_cost_and_leaves_no_trace(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[Action] = ["train", "train", "grow_model", "train", "take_back"]

    def scripted(looks: Sequence[Look], decisions: Sequence[Decision], *_: object) -> Decision:
        action = script[len(decisions)] if len(decisions) < len(script) else "train"
        return Decision(action, int(action == "grow_model"), looks[-1].n_frames, action, np.nan, "script")

    monkeypatch.setattr("sapis.pipeline.auto.decide", scripted)
    record = auto(data, tmp_path / "run", AutoConfig.model_validate(settings()))
    assert record.result["size"] == {"n_channels": 16} and record.cost["flops"] == pytest.approx(4e9, rel=0.02)
    looks, after = ([event[name] for event in record.result["events"]] for name in ("look", "after"))
    assert [n for n, error in enumerate(after) if error is not None] == [2]
    assert after[2] == pytest.approx(looks[2]["loss"], rel=1e-4)  # to the rounding of float32: far within one per cent
    assert (np.diff([look["spent"] for look in looks]) > 0).all()
    branch = looks[4]["spent"] - looks[2]["spent"]
    last = record.result["events"][-1]["stage"]
    assert last["parent"] == 0 and last["lost"] == pytest.approx(branch, rel=1e-9)
    assert looks[4]["n_parameters"] > looks[5]["n_parameters"] == looks[2]["n_parameters"]
    assert looks[5]["seen"] - looks[2]["seen"] == pytest.approx(looks[2]["seen"] - looks[1]["seen"], rel=0.2)
    start = read_tensors(tmp_path / "run" / "stage-00" / "last.safetensors")[1]
    assert looks[2]["seen"] == 2 * start["step"]


@pytest.mark.slow
def test_frames_that_were_bought_stay_when_the_model_is_taken_back(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[tuple[Action, int, float]] = [
        ("train", 0, 20), ("grow_both", 1, 30), ("train", 1, 30), ("grow_data", 1, 40), ("train", 1, 40), ("take_back", 0, 40)]

    def scripted(_: Sequence[Look], decisions: Sequence[Decision], *__: object) -> Decision:
        action, size, n_frames = script[len(decisions)] if len(decisions) < len(script) else ("train", 0, 40)
        return Decision(action, size, n_frames, action, np.nan, "script")

    monkeypatch.setattr("sapis.pipeline.auto.decide", scripted)
    record = auto(data, tmp_path / "run", AutoConfig.model_validate(settings()))
    assert record.result["size"] == {"n_channels": 16} and record.result["n_frames"] == 40
    assert record.cost["flops"] == pytest.approx(4e9, rel=0.02)
    looks, last = [event["look"] for event in record.result["events"]], record.result["events"][-1]["stage"]
    branch = looks[5]["spent"] - looks[1]["spent"] - 20 * settings()["label_flops"]  # type: ignore[operator]
    assert last["parent"] == 0 and last["lost"] == pytest.approx(branch, rel=1e-9)
    assert (np.diff([look["spent"] for look in looks]) > 0).all() and looks[6]["n_parameters"] == looks[1]["n_parameters"]


@pytest.mark.slow
def test_every_axis_can_grow_and_keeps_the_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [0, 0, 1, 3, 7, 7]  # sizes: a layer, then a degree, then channels

    def scripted(looks: Sequence[Look], decisions: Sequence[Decision], *_: object) -> Decision:
        n = len(decisions)
        size, before = (script[min(place, len(script) - 1)] for place in (n, max(n - 1, 0)))
        action: Action = "train" if size == before else "grow_model"
        return Decision(action, size, looks[-1].n_frames, action, np.nan, "script")

    monkeypatch.setattr("sapis.pipeline.auto.decide", scripted)
    axes, model = {"l_max": [1, 2], "n_layers": [1, 2]}, {"preset": "nano"}
    record = auto(data, tmp_path / "run", AutoConfig.model_validate(settings(axes=axes, model=model)))
    assert record.result["size"] == {"n_channels": 32, "l_max": 2, "n_layers": 2}
    events = record.result["events"]
    grown = [event for event in events if event["after"] is not None]
    assert [event["decision"]["reason"] for event in grown] == [
        "script; n_layers 1 to 2", "script; l_max 1 to 2", "script; n_channels 16 to 32"]
    for event in grown:
        assert event["after"] == pytest.approx(event["look"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_what_is_done_is_done_once_and_other_settings_are_refused(finished: Path, data: Path) -> None:
    events = (finished / EVENTS).read_bytes()
    model = (finished / "model.sapis").read_bytes()
    auto(data, finished, AutoConfig.model_validate(settings()))
    assert (finished / EVENTS).read_bytes() == events and (finished / "model.sapis").read_bytes() == model
    with pytest.raises(FileError, match="another run"):
        auto(data, finished, AutoConfig.model_validate(settings(seed=1)))
    with pytest.raises(ModelError, match="16 channels"):
        auto(data, finished.parent / "other", AutoConfig.model_validate(settings(widths=[16, 24])))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_moments_change_nothing(finished: Path, data: Path, tmp_path: Path, seed: int) -> None:
    (tmp_path / "auto.yaml").write_text(str(settings()).replace("'", '"'))
    command = [sys.executable, "-c", "from sapis.cli import main; main()", "scale", "auto", str(data), str(tmp_path / "run"),
               "--config", str(tmp_path / "auto.yaml")]
    rng = generator(seed, "kills")
    for _ in range(5):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(2.0, 8.0)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert sapis("scale", "auto", data, tmp_path / "run", "--config", tmp_path / "auto.yaml").code == 0
    assert read_json(tmp_path / "run" / EVENTS) == read_json(finished / EVENTS)
    hashes = [hash_tensors(read_tensors(folder / sorted(p.name for p in folder.glob("stage-*"))[-1] / "best.safetensors")[0])
              for folder in (finished, tmp_path / "run")]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_labels_are_computed_as_they_are_asked_for(tmp_path: Path) -> None:
    write_copper(tmp_path / "copper.extxyz")
    settings = {"flops": 4e9, "widths": [16], "model": {"preset": "nano", "cutoff": 4.0, "n_layers": 1}, "n_start": 20,
                "n_validation": 10, "n_test": 10, "labeler": {"name": "emt"}, "workers": 1,
                "training": {"validations": 1, "warmup_steps": 5}, "controller": {"looks": 14, "min_looks": 3}}
    record = auto(tmp_path / "copper.extxyz", tmp_path / "run", AutoConfig.model_validate(settings))
    labels = Store(tmp_path / "run" / "labels.store")
    assert 20 <= record.result["n_frames"] <= 80 and len(labels) == 20 + record.result["n_frames"]
    assert record.result["label_flops"] > 0 and record.cost["flops"] == pytest.approx(4e9, rel=0.05)
    again = auto(tmp_path / "copper.extxyz", tmp_path / "run", AutoConfig.model_validate(settings))
    assert again.result == record.result
    one = labels[0]
    expected = one.to_atoms()
    expected.calc = EMT()
    assert one.energy == pytest.approx(expected.get_potential_energy(), abs=1e-8)


class Shifted(EMT):
    """Another level of theory: other origins of energy, and forces a tenth larger."""

    def calculate(self, *arguments: Any, **settings: Any) -> None:
        super().calculate(*arguments, **settings)
        self.results["energy"] = self.results["free_energy"] = 1.1 * self.results["energy"] + 50.0 * len(self.atoms)
        self.results["forces"] = 1.1 * self.results["forces"]


@pytest.mark.slow
def test_cheap_labels_come_first(tmp_path: Path) -> None:
    write_copper(tmp_path / "copper.extxyz")
    dear = {"name": "ase", "calculator": "test_auto.Shifted", "level": "shifted"}
    settings = {"flops": 8e9, "label_flops": 4e7, "widths": [16, 32], "n_start": 20, "n_validation": 10, "n_test": 10,
                "model": {"preset": "nano", "cutoff": 4.0, "n_layers": 1}, "workers": 1, "labeler": dear,
                "cheap": {"labeler": {"name": "emt"}, "share": 0.5}, "training": {"validations": 1, "warmup_steps": 5},
                "controller": {"looks": 14, "min_looks": 3}}
    record = auto(tmp_path / "copper.extxyz", tmp_path / "run", AutoConfig.model_validate(settings))
    cheap = record.result["cheap"]
    assert cheap["flops"] <= 4.2e9 and record.cost["flops"] == pytest.approx(8e9, rel=0.05)
    model = load(tmp_path / "run" / "model.sapis")
    assert model.card["checks"] and model.card["level_of_theory"] not in ("", "not given")
    assert model.potential.conditions.levels == ("shifted",)
    begun = record.result["events"][0]["look"]["loss"]
    assert record.result["errors"]["validation"]["force_rmse_meV_A"] < begun
    assert record.result["errors"]["test"]["energy_rmse_meV_atom"] < 1e3
    stores = [{system.structure_hash() for system in Store(tmp_path / "run" / place / "labels.store")} for place in ("", "cheap")]
    assert all(len(store) >= 40 for store in stores) and len(stores[0] & stores[1]) >= 20, "held frames are the same ones"
    assert "first, on cheap labels" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = auto(tmp_path / "copper.extxyz", tmp_path / "run", AutoConfig.model_validate(settings))
    assert again.result == record.result
    with pytest.raises(ValueError, match="dear ones"):
        AutoConfig.model_validate({**settings, "labeler": None})


@pytest.mark.slow
def test_a_recipe_whose_model_grows(tmp_path: Path) -> None:
    recipe = {"system": {"smiles": "O"}, "output": "out", "temperatures_K": [300], "hot_temperature_K": None,
              "budget": {"labels": 60}, "candidates": {"n_replicas": 2, "equilibration_fs": 50},
              "model": {"preset": "nano", "n_layers": 1}, "training": {"warmup_steps": 5},
              "auto": {"flops": 1e9, "widths": [16, 32], "n_start": 10, "controller": {"looks": 14, "min_looks": 3}},
              "dynamics": {"nve_ps": 0.05, "order_ps": 0.02, "nvt_ps": 0.05}}
    (tmp_path / "water.yaml").write_text(str(recipe).replace("'", '"').replace("None", "null"))
    ending = sapis("run", tmp_path / "water.yaml")
    assert (tmp_path / "out" / "model.sapis").exists(), ending.text
    growth = read_json(tmp_path / "out" / "records" / "train.json")["result"]["growth"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert growth["events"][-1]["decision"]["action"] == "stop" and growth["events"][-1]["decision"]["reason"] in page
    before = (tmp_path / "out" / "model.sapis").read_bytes()
    assert "done before" in sapis("run", tmp_path / "water.yaml").text
    assert (tmp_path / "out" / "model.sapis").read_bytes() == before


@pytest.mark.slow
def test_it_goes_on_from_a_model_of_cheaper_labels(finished: Path, data: Path, tmp_path: Path) -> None:
    """Other labels: energies of another origin, forces of the same. What the model knows of forces is not lost."""
    start = finished / "model.sapis"
    known = load(start).potential.config
    moved = [replace(system, energy=(system.energy or 0.0) + 50.0 * len(system), level="other") for system in read_systems(data)]
    write_systems(tmp_path / "moved.extxyz", moved)
    values = settings(model={}, start=str(start), to_level="other", widths=[known.n_channels, 2 * known.n_channels], flops=1e9)
    record = auto(tmp_path / "moved.extxyz", tmp_path / "run", AutoConfig.model_validate(values))
    begun, ended = record.result["events"][0]["look"]["loss"], record.result["errors"]["test"]["force_rmse_meV_A"]
    first = read_json(finished / EVENTS)[0]["look"]["loss"]
    assert begun < 0.8 * first and ended < 1.2 * begun
    assert record.result["errors"]["test"]["energy_rmse_meV_atom"] < 1e3
    with pytest.raises(ConfigError, match="the model to go on from"):
        auto(data, tmp_path / "other", AutoConfig.model_validate({**values, "widths": [8, 16]}))
    with pytest.raises(ValueError, match="start with to_level"):
        AutoConfig(flops=1.0, to_level="other")
