"""The floor of a study: noise that was planted in labels, and atoms that a model cannot see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command import sapis
from sapis.core.files import read_json
from sapis.data.formats import write_systems
from sapis.data.system import System
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import Label, LabelerConfig
from sapis.pipeline.floor import known_floor, measure_floor, seen_by_force
from sapis.pipeline.label import LabelRequest
from sapis.pipeline.scale import plan_study
from sapis.scaling.plan import StudyConfig

LJ = LabelRequest(labeler=LabelerConfig(name="lj", arguments={"sigma": 1.0, "epsilon": 0.1, "rc": 4.0}), workers=1)


def chain(random: np.random.Generator, n: int = 7) -> System:
    """Atoms on a line, 1.12 Å apart."""
    positions = np.zeros((n, 3))
    positions[:, 0] = 1.12 * np.arange(n)
    return System(numbers=np.full(n, 18), positions=positions + random.normal(0, 0.02, (n, 3)))


def test_a_force_knows_what_lies_within_twice_as_many_hops_as_there_are_layers() -> None:
    system = chain(np.random.default_rng(0))
    assert seen_by_force(system, 0, 1.5, 1).tolist() == [True] * 3 + [False] * 4
    assert seen_by_force(system, 3, 1.5, 1).tolist() == [False] + [True] * 5 + [False]
    assert seen_by_force(system, 0, 1.5, 3).all() and seen_by_force(system, 0, 5.0, 2).all()
    periodic = replace(system, cell=np.diag([7.84, 20.0, 20.0]), pbc=np.array([True, False, False]))
    assert seen_by_force(periodic, 0, 1.5, 1).tolist() == [True] * 3 + [False] * 2 + [True] * 2


@pytest.fixture(scope="module")
def frames() -> list[System]:
    random, labeler = np.random.default_rng(1), build_labeler(LJ.labeler)
    systems = [chain(random) for _ in range(150)]
    labels = [labeler.label(system) for system in systems]
    return [replace(system, energy=label.energy, forces=label.forces) for system, label in zip(systems, labels, strict=True)
            if isinstance(label, Label)]


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "cutoff"), [(0.0, 5.0), (0.03, 5.0), (0.0, 1.5)])
def test_planted_noise_and_atoms_out_of_sight_are_found(
        frames: list[System], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, cutoff: float) -> None:
    monkeypatch.setattr("sapis.scaling.plan.MIN_STEPS", 30)
    random = np.random.default_rng(2)
    noisy = [replace(system, forces=system.forces + random.normal(0, noise, system.positions.shape)) for system in frames
             if system.forces is not None]
    write_systems(tmp_path / "data.extxyz", noisy)
    config = StudyConfig(widths=(16,), levels=1, seeds=1, fractions=(1.0,), flops=1e9, n_validation=10, n_test=60,
                         model={"preset": "nano", "n_layers": 1, "cutoff": cutoff})
    folder = tmp_path / "study"
    plan_study(tmp_path / "data.extxyz", folder, config)
    found = measure_floor(folder, LJ, n_frames=50)
    assert found.n_frames == 50 and found.noise == pytest.approx(1e3 * noise, rel=0.1, abs=1e-3)
    assert found.mean == pytest.approx(np.hypot(found.noise, found.blindness)) and found.std < 0.2 * found.mean + 1e-3
    if cutoff > 2:
        assert found.n_blind == 0 and found.blindness == 0
    else:
        # What is beyond two hops of 1.12 Å, 3.4 Å and more away, pulls weakly: of some 0.1 eV / 3.4^7 per Å.
        assert found.n_blind > 30 and 0.01 < found.blindness < 10
    prior = known_floor(folder)
    assert prior is not None and prior.mean == found.mean
    (tmp_path / "tight.yaml").write_text("labeler: {name: lj, arguments: {sigma: 1.0, epsilon: 0.1, rc: 4.0}}\nworkers: 1\n")
    ending = sapis("scale", "floor", folder, "--config", tmp_path / "tight.yaml")
    assert ending.code == 0 and read_json(folder / "floor.json")["mean"] == pytest.approx(found.mean)


def test_a_study_without_a_measured_floor_has_none(tmp_path: Path) -> None:
    assert known_floor(tmp_path) is None
