"""Studies of scaling: a plan within its budget, trainings that go on after a kill, laws and pages made of records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import plain_study
from benchmarks import study as studies
from benchmarks.scaling_laws import TRUTH, study

from command import sapis
from sapis.core.errors import ConfigError, DataError, FileError
from sapis.core.files import read_json
from sapis.core.records import Stopwatch, provenance
from sapis.data.formats import read_systems
from sapis.data.formats.xyz import write_systems
from sapis.data.splits import chosen, nested_order
from sapis.executors.executor import LocalExecutor
from sapis.pipeline.auto import auto
from sapis.pipeline.auto_config import AutoConfig
from sapis.pipeline.pool import in_parts
from sapis.pipeline.scale import PLAN, finished, fit_study, foretell, plan_study, read_study, run_study
from sapis.scaling.compare import compare
from sapis.scaling.fit import fit
from sapis.scaling.forms import FLOOR, JOINT, POWER, Points
from sapis.scaling.frontier import allocate, best, flops_per_frame
from sapis.scaling.laws import fit_laws
from sapis.scaling.plan import MIN_STEPS, Size, StudyConfig, plan

SIZES = [Size(width, 100 * width**2, 2e4 * width**2, 2e-9 * 2e4 * width**2 + 1e-3) for width in (8, 16, 32, 64)]
SAMPLE = Path(__file__).parents[1] / "docs" / "data" / "organic-gfn2-v1" / "sample.extxyz.gz"


@pytest.mark.parametrize("budget", [{"flops": 3e12}, {"cpu_seconds": 9000.0}])
@pytest.mark.parametrize("n_available", [400, 10**6])
def test_a_plan_spends_its_budget_and_no_more(budget: dict[str, float], n_available: int) -> None:
    config = StudyConfig(**budget)
    trials = plan(config, SIZES, n_available)
    price = sum(trial.flops if config.flops else trial.cpu_seconds for trial in trials)
    assert 0.9 * next(iter(budget.values())) < price <= next(iter(budget.values()))
    levels = sorted({trial.flops for trial in trials})
    assert len(levels) == 4 and np.allclose(np.diff(np.log(levels)), np.log(3.0), atol=0.01)
    assert {trial.width for trial in trials} == {8, 16, 32, 64} and len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        size = next(size for size in SIZES if size.width == trial.width)
        seen = trial.flops / size.flops
        assert seen >= MIN_STEPS * config.training.batch_size and trial.epochs <= config.max_epochs
        assert trial.n_frames <= min(seen + 1, n_available) and trial.epochs == pytest.approx(seen / trial.n_frames)


def test_a_budget_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise flops or cpu_seconds"):
        plan(StudyConfig(flops=1e10), SIZES, 1000)
    for wrong in ({}, {"flops": 1.0, "cpu_seconds": 1.0}, {"flops": 1.0, "fractions": (0.0,)},
                  {"flops": 1.0, "training": {"epochs": 3}}):
        with pytest.raises(ValueError):
            StudyConfig(**wrong)


def test_smaller_sets_are_parts_of_larger_ones_and_know_all_that_these_know() -> None:
    systems = read_systems(SAMPLE)
    order = nested_order(systems, 3)
    assert sorted(order) == list(range(len(systems))) and list(nested_order(systems, 3)) == list(order)
    few = chosen(systems, order[:20])
    for kind in (lambda s: set(s.numbers.tolist()), lambda s: {s.charge}, lambda s: {s.spin}):
        assert set().union(*map(kind, few)) == set().union(*map(kind, systems))


def test_the_best_use_of_a_budget_is_that_of_the_planted_law() -> None:
    law = fit(study(0, noise=0.0), JOINT, n_samples=5)
    sizes = [Size(width, int(n), 120.0 * n, 1.0) for width, n in ((8, 1e4), (16, 1e5), (24, 1e6))]
    found = allocate(law, sizes, np.array([1e12, 1e13]))
    a, b = TRUTH["exponent_n_parameters"], TRUTH["exponent_n_frames"]
    # At the best number of weights a small exchange of weights for frames changes nothing: a A N^-a = b B D^-b.
    weights = a * 120.0 * (found.n_parameters[0] / 1e4) ** -a
    frames = b * 180.0 * (found.n_frames[0] / 1e2) ** -b
    assert weights == pytest.approx(frames, rel=0.03)
    assert found.n_parameters[0] * found.n_frames[0] * 120.0 == pytest.approx(found.flops, rel=1e-6)
    assert np.diff(np.log(found.n_parameters[0]))[0] / np.log(10) == pytest.approx(b / (a + b), rel=0.03)
    few = allocate(law, sizes, np.array([1e13]), n_available=1000)
    assert few.n_frames[0, 0] == 1000 and few.loss[0, 0] > found.loss[0, 1]
    assert flops_per_frame(sizes, np.array([1e3, 1e5, 1e7])) == pytest.approx([1.2e5, 1.2e7, 1.2e9])


def test_of_several_forms_the_planted_one_is_chosen_and_the_best_of_each_level_found() -> None:
    points = study(1, noise=0.01)
    laws = fit_laws(points, points.flops, [Size(8, 10**4, 1.2e6, 1.0), Size(16, 10**6, 1.2e8, 1.0)])
    assert laws.joint[0].form is JOINT and [law.bic for law in laws.joint] == sorted(law.bic for law in laws.joint)
    assert laws.extrapolation["the highest level"]["rms_relative_error"] < 0.05
    assert laws.extrapolation["the highest level"]["form"] == JOINT.name
    mask = best(points, points.flops)
    for level in np.unique(points.flops):
        at_level = points.flops == level
        assert points.loss[mask & at_level].mean() <= points.loss[at_level].mean() + 1e-12
    with pytest.raises(DataError, match="several sizes"):
        fit_laws(points[:4], points.flops[:4], [Size(8, 10**4, 1.2e6, 1.0)])


def law_of_compute(scale: float, exponent: float, floor: float = 0.0, *, seed: int = 0) -> Points:
    """Eight trainings at four levels of compute, with noise of 1 %."""
    flops = np.repeat(np.geomspace(1e10, 1e13, 4), 2)
    noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(flops)))
    return Points(flops, *np.ones((3, len(flops))), (floor + scale * (flops / 1e10) ** -exponent) * noise)


def test_compute_to_equal_error_is_that_of_the_planted_laws() -> None:
    one, other = fit(law_of_compute(50.0, 0.3), POWER), fit(law_of_compute(100.0, 0.3, seed=1), POWER)
    found = compare(one, other)
    truth = 2 ** (1 / 0.3)
    assert found.ratio[0] == pytest.approx(truth, rel=0.1)
    assert np.mean((found.ratio[1] <= truth) & (truth <= found.ratio[2])) > 0.8
    # The other gets to 100 x 1000^-0.3 and no further: from there on its law is extrapolated.
    assert found.is_measured.tolist() == (found.losses >= other.points.loss.min()).tolist() and not found.is_measured.all()
    assert found.losses[0] == pytest.approx(one.points.loss.max()) and found.losses[-1] == pytest.approx(one.points.loss.min())
    back = compare(other, one)
    np.testing.assert_allclose(back.ratio[0] * found.ratio[0], 1.0, rtol=1e-6)


def test_an_error_below_the_floor_of_a_law_is_never_reached() -> None:
    one, other = fit(law_of_compute(50.0, 0.4), POWER), fit(law_of_compute(50.0, 0.4, floor=10.0, seed=1), FLOOR)
    found = compare(one, other)
    assert np.isinf(found.ratio[0][found.losses < 9]).all() and np.isfinite(found.ratio[0][found.losses > 12]).all()


def test_parts_of_trajectories_are_blocks_in_time() -> None:
    start = next(iter(read_systems(SAMPLE)))
    moved = [replace(start, positions=start.positions + 1e-3 * k) for k in range(200)]
    frames = [system.with_tags(trajectory="a", time_fs=float(k)) for k, system in enumerate(moved)]
    parts = in_parts(frames, Path("frames"), 20, 20, "", 0)
    times = [[float(system.tags["time_fs"]) for system in part] for part in (parts.train, parts.validation, parts.test)]
    for held in times[1:]:
        assert len(held) >= 18 and min(abs(one - other) for one in held for other in times[0]) >= 2.0


def test_frames_with_errors_do_not_train(tmp_path: Path) -> None:
    data, config = small(tmp_path)
    frames = read_systems(data)
    write_systems(data, [replace(frame, forces=0 * frame.forces) if k % 2 else frame for k, frame in enumerate(frames)])
    with pytest.raises(DataError, match="zero"):
        plan_study(data, tmp_path / "study", config)
    with pytest.raises(DataError, match="zero"):
        auto(data, tmp_path / "auto", AutoConfig(flops=1e9, n_start=20, n_validation=5, n_test=10))
    with pytest.raises(ValueError, match="not max_atoms"):
        AutoConfig(flops=1e9, training={"max_atoms": 100})
    for end in ({"epochs": 60}, {"cpu_seconds": 60}, {"flops": 1e9}, {"patience": 3}):
        with pytest.raises(ValueError, match="its end is decided"):
            AutoConfig(flops=1e9, training=end)
    with pytest.raises(ValueError, match="not max_atoms"):
        small(tmp_path, training={"max_atoms": 100})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapis.scaling.plan.MIN_STEPS", 60)


def small(folder: Path, **settings: object) -> tuple[Path, StudyConfig]:
    data = folder / "data.extxyz"
    write_systems(data, [system for system in read_systems(SAMPLE) if len(system) < 21])
    values = {"widths": (8, 16), "levels": 2, "spacing": 1.5, "seeds": 1, "n_validation": 5, "n_test": 10, "flops": 8e9,
              "model": {"preset": "nano"}, "training": {"validations": 1, "batch_size": 1}}
    return data, StudyConfig(**{**values, **settings})


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_study_from_plan_to_page(tmp_path: Path) -> None:
    data, config = small(tmp_path)
    folder = tmp_path / "study"
    planned = plan_study(data, folder, config)
    assert plan_study(data, folder, config) == planned == read_study(folder) and len(planned.trials) >= 6
    records, failures = run_study(folder, LocalExecutor(2))
    assert len(records) == len(planned.trials) and not failures and not list(folder.rglob("last.safetensors"))
    for trial in planned.trials:
        record = records[trial.name]
        assert record.cost["flops"] == pytest.approx(trial.flops, rel=0.05) and record.result["epochs"] > 0
        assert record.result["n_parameters"] == planned.size_of(trial).n_parameters
    again = {trial.name: (folder / "trials" / trial.name / "record.json").stat().st_mtime_ns for trial in planned.trials}
    run_study(folder, LocalExecutor(1))
    assert again == {trial.name: (folder / "trials" / trial.name / "record.json").stat().st_mtime_ns for trial in planned.trials}

    _, found = fit_study(folder)
    assert len(found["trials"]) == len(planned.trials) and not found["held_out"]
    trial, entry = foretell(folder, factor=2.0)
    assert trial.is_held_out and entry["low"] <= entry["foretold"] <= entry["high"]
    assert foretell(folder, factor=2.0)[0] == trial and len(read_study(folder).trials) == len(planned.trials) + 1
    assert sapis("scale", "run", folder, "--workers", "1").code == 0
    ending = sapis("scale", "fit", folder)
    assert ending.code == 0 and "held out" in ending.text
    laws = read_json(folder / "laws.json")
    assert laws["held_out"][0]["foretold"] == entry["foretold"] and len(laws["trials"]) == len(planned.trials)
    page = (folder / "laws.html").read_text()
    assert page.count("<svg") == 3 and "What was foretold" in page and "http://" not in page.replace("http://www.w3.org", "")

    with pytest.raises(FileError, match="another study"):
        plan_study(data, folder, config.model_copy(update={"seed": 1}))
    write_systems(data, [replace(system, energy=(system.energy or 0.0) + 1.0) for system in read_systems(data)])
    (folder / "trials" / planned.trials[0].name / "record.json").unlink()
    with pytest.raises(FileError, match="planned for"):
        run_study(folder, LocalExecutor(1))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_studies_of_two_models_on_the_same_frames_are_compared(tmp_path: Path) -> None:
    data, config = small(tmp_path, widths=(16, 32), fractions=(1.0,), seeds=2, flops=5e10)
    plan_study(data, tmp_path / "ours", config)
    plain = plan_study(data, tmp_path / "plain", config, measure=plain_study.measured)
    run_study(tmp_path / "ours", LocalExecutor(2))
    records, failures = run_study(tmp_path / "plain", LocalExecutor(2), trainer=plain_study.trainer)
    assert len(records) == len(plain.trials) and not failures
    for trial in plain.trials:
        record = records[trial.name]
        assert record.cost["flops"] == pytest.approx(trial.flops, rel=0.05)
        assert record.result["n_parameters"] == plain.size_of(trial).n_parameters
        assert set(record.result["errors"]) == {"train", "validation", "test"}
    trial, entry = foretell(tmp_path / "plain", factor=2.0, measure=plain_study.measured)
    assert trial.width % 16 == 0 and entry["size"]["width"] == trial.width and trial in read_study(tmp_path / "plain").trials
    # What is kept in a record is a study again elsewhere, and a record is never replaced by one of fewer trainings.
    kept, copy = tmp_path / "kept.json", tmp_path / "copy"
    assert studies.keep(kept, tmp_path / "plain", provenance(), Stopwatch()) == len(records)
    studies.restore(kept, copy, data, plain.config)
    assert set(finished(copy, read_study(copy))) == set(records) and foretell(copy, factor=2.0)[1] == entry
    (copy / "trials" / plain.trials[0].name / "record.json").unlink()
    assert studies.keep(kept, copy, provenance(), Stopwatch()) == 0
    studies.restore(kept, copy, data, plain.config)
    assert set(finished(copy, read_study(copy))) == set(records)

    ending = sapis("scale", "compare", tmp_path / "ours", tmp_path / "plain", "--output", tmp_path / "both")
    assert ending.code == 0 and "plain: times the compute of ours" in ending.text
    assert set(read_json(tmp_path / "both.json")["comparisons"]) == {"plain"}
    page = (tmp_path / "both.html").read_text()
    assert page.count("<svg") == 2 and "http://" not in page.replace("http://www.w3.org", "")
    assert sapis("scale", "compare", tmp_path / "ours").code != 0
    plan_study(data, tmp_path / "other", config.model_copy(update={"n_test": 12}))
    ending = sapis("scale", "compare", tmp_path / "ours", tmp_path / "other")
    assert ending.code != 0 and "same test frames" in ending.text


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_study_goes_on_after_a_kill_and_gives_the_same(tmp_path: Path) -> None:
    training = {"validations": 1, "batch_size": 1, "checkpoint_seconds": 0.2}
    data, config = small(tmp_path, levels=1, fractions=(1.0,), training=training)
    errors = []
    for is_killed in (False, True):
        folder = tmp_path / f"study-{is_killed}"
        if is_killed:  # costs are measured, so that two plans differ
            folder.mkdir()
            (folder / PLAN).write_text((tmp_path / "study-False" / PLAN).read_text())
            process = subprocess.Popen([sys.executable, "-c", "from sapis.cli import main; main()", "scale", "run", str(folder),
                                        "--workers", "1"], start_new_session=True, stderr=subprocess.DEVNULL)
            while not list(folder.rglob("last.safetensors")):
                time.sleep(0.05)
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert len(list(folder.rglob("record.json"))) < len(read_study(folder).trials)
        else:
            plan_study(data, folder, config)
        records, _ = run_study(folder, LocalExecutor(1))
        errors.append({name: record.result["errors"] for name, record in records.items()})
    assert errors[0] == errors[1]
