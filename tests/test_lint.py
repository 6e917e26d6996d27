"""Lint: every rule catches its planted fault, and clean published data pass."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from sapis.core.errors import ConfigError, DataError
from sapis.data.formats import read_systems
from sapis.data.lint import RULES, Finding, lint, lint_splits, raise_on_errors
from sapis.data.system import System

SHARED = Path(os.environ.get("SAPIS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no reference data in {SHARED}")

HARTREE, BOHR, KCAL_MOL = 27.211386, 0.529177, 0.0433641


@pytest.fixture(scope="module")
def acac() -> list[System]:
    if not SHARED.is_dir():
        pytest.skip(f"no reference data in {SHARED}")
    return read_systems(SHARED / "acac/train_300K.extxyz.gz", index=":60")


def faults(systems: list[System], needs: tuple[str, ...] = ("energy", "forces")) -> set[tuple[str, str]]:
    return {(finding.rule, finding.severity) for finding in lint(systems, needs=needs)}


def with_frame(systems: list[System], number: int, change: Callable[[System], System]) -> list[System]:
    return [change(system) if i == number else system for i, system in enumerate(systems)]


def with_all(systems: list[System], change: Callable[[System], System]) -> list[System]:
    return [change(system) for system in systems]


def put_oxygen_on_carbon(system: System) -> System:
    positions = system.positions.copy()
    positions[-1] = positions[0] + [0.2, 0.1, 0.0]
    return replace(system, positions=positions)


def flip_one_force(system: System) -> System:
    forces = np.array(system.forces)
    forces[0] *= -1
    return replace(system, forces=forces)


def scaled(system: System, *, energy: float = 1.0, forces: float = 1.0) -> System:
    return replace(system, energy=float(system.energy or 0.0) * energy,
                   forces=np.array(system.forces) * forces)


@needs_data
@pytest.mark.parametrize("name", [
    "acac/train_300K", "acac/train_600K", "acac/isolated_atoms", "3bpa/train_300K",
    "water_pbe0ts/water_pbe0ts", "mattersim_bench/mptrj-random-1k", "mlearn_zuo2020/Li_train",
    "oc20_relax/random1000127", "s66x8_comp6/s66x8_wb97x_631gd",
])
def test_published_data_have_no_errors(name: str) -> None:
    systems = read_systems(SHARED / f"{name}.extxyz.gz", index=":50")
    needs = ("energy",) if "isolated" in name else ("energy", "forces")
    assert [finding for finding in lint(systems, needs=needs) if finding.severity == "error"] == []


def test_molecules_at_300_K_have_no_finding_at_all(acac: list[System]) -> None:
    assert lint(acac) == []


@pytest.mark.parametrize(("rule", "severity", "change"), [
    ("missing-labels", "warning", lambda s: replace(s, energy=None)),
    ("missing-labels", "warning", lambda s: replace(s, forces=None)),
    ("overlapping-atoms", "error", put_oxygen_on_carbon),
    ("zero-forces", "error", lambda s: replace(s, forces=np.zeros_like(s.positions))),
    ("net-force", "error", flip_one_force),
    ("net-force", "warning", lambda s: replace(s, forces=s.forces + 0.02)),
    ("force-outlier", "error", lambda s: scaled(s, forces=100.0)),
    ("force-outlier", "warning", lambda s: scaled(s, forces=15.0)),
    ("energy-outlier", "error", lambda s: scaled(s, energy=1 / HARTREE)),
    ("energy-outlier", "warning", lambda s: replace(s, energy=s.energy + 5.0)),
])
def test_one_bad_frame_is_named(
    acac: list[System], rule: str, severity: str, change: Callable[[System], System],
) -> None:
    planted = [finding for finding in lint(with_frame(acac, 17, change)) if finding.rule == rule]
    assert [(finding.severity, finding.where) for finding in planted] == [
        (severity, "file train_300K.extxyz.gz, frame 17")]
    assert planted[0].message.startswith("1 of 60 frames: ")


@pytest.mark.parametrize(("rule", "severity", "change"), [
    ("missing-labels", "error", lambda s: replace(s, forces=None)),
    ("energy-unit", "error", lambda s: scaled(s, energy=1 / HARTREE)),
    ("energy-unit", "error", lambda s: scaled(s, energy=1 / KCAL_MOL)),
    ("energy-unit", "error", lambda s: scaled(s, energy=96.485)),
    ("energy-unit", "error", lambda s: scaled(s, energy=3.0)),
    ("force-unit", "error", lambda s: scaled(s, forces=1 / KCAL_MOL)),
    ("force-unit", "warning", lambda s: scaled(s, forces=BOHR / HARTREE)),
])
def test_a_whole_set_gone_wrong(
    acac: list[System], rule: str, severity: str, change: Callable[[System], System],
) -> None:
    assert (rule, severity) in faults(with_all(acac, change))


def test_overlap_across_a_cell_border() -> None:
    cell = np.eye(3) * 8.0
    apart = System([8, 8], [[0.1, 0, 0], [6.9, 0, 0]], cell=cell, pbc=True)
    close = System([8, 8], [[0.1, 0, 0], [7.9, 0, 0]], cell=cell, pbc=True)
    assert faults([apart], ()) == set()
    assert faults([close], ()) == {("overlapping-atoms", "error")}
    assert faults([replace(close, pbc=False)], ()) == set()
    own_image = System([8], [[0, 0, 0]], cell=np.diag([0.4, 8, 8]), pbc=True)
    assert faults([own_image], ()) == {("overlapping-atoms", "error")}


def test_missing_labels_count_only_where_they_mean_something(acac: list[System]) -> None:
    atom = System([1], [[0, 0, 0]], energy=-13.6)
    assert ("missing-labels", "warning") not in faults([*acac, atom])
    assert faults(acac, ("energy", "forces", "stress")) == set()
    crystal = System.from_atoms(bulk("Cu"), energy=-3.7, forces=np.zeros((1, 3)))
    assert ("missing-labels", "error") in faults([crystal], ("stress",))


def test_zero_forces_in_a_crystal_may_be_symmetry() -> None:
    crystal = System.from_atoms(bulk("Cu", cubic=True), energy=-14.8, forces=np.zeros((4, 3)))
    assert faults([crystal]) == {("zero-forces", "warning")}


def test_stress_in_kilobar_or_gigapascal() -> None:
    stress = np.eye(3) * 0.02
    crystal = System.from_atoms(bulk("Cu"), energy=-3.7, forces=np.zeros((1, 3)), stress=stress)
    assert faults([crystal]) == set()
    assert faults([replace(crystal, stress=stress * 1602)]) == {("stress-unit", "error")}
    assert faults([replace(crystal, stress=stress * 160)]) == {("stress-unit", "warning")}


def test_duplicates(acac: list[System]) -> None:
    assert faults([*acac, acac[3]]) == {("duplicate", "warning")}
    other = replace(acac[3], energy=float(acac[3].energy or 0) + 0.1)
    assert faults([*acac, other]) == {("duplicate", "warning"), ("conflicting-labels", "error")}
    assert faults([*acac, replace(other, spin=3)]) == set()


@needs_data
def test_two_electronic_states_without_a_key_conflict() -> None:
    systems = read_systems(SHARED / "electronic_dof/carbene_2200.extxyz.gz", index=":600")
    assert ("conflicting-labels", "error") in faults(systems)


def test_splits(acac: list[System]) -> None:
    train, validation, test = acac[:40], acac[40:50], acac[50:]
    assert lint_splits(train, validation, test) == []
    leaks = lint_splits(train, [*validation, train[0]], [*test, train[1], validation[0]])
    assert [finding.rule for finding in leaks] == ["leakage"] * 3
    assert "2 of" not in leaks[0].message and "validation structures also in training" in leaks[0].message
    sulfur = System([16, 1, 1], [[0, 0, 0], [0.97, 0.93, 0], [-0.97, 0.93, 0]])
    unseen, = lint_splits(train, validation, [*test, sulfur])
    assert (unseen.rule, unseen.severity) == ("unseen-element", "warning") and unseen.message.endswith(": S")


def test_errors_stop_unless_waived(acac: list[System]) -> None:
    findings = lint(with_frame(acac, 5, flip_one_force))
    with pytest.raises(DataError, match="net-force") as error:
        raise_on_errors(findings)
    assert "frame 5" in error.value.where and "net-force" in error.value.todo
    raise_on_errors(findings, waived=["net-force"])
    raise_on_errors([Finding("duplicate", "warning", "here", "twice")])
    with pytest.raises(ConfigError, match="net-forces"):
        raise_on_errors(findings, waived=["net-forces"])


def test_every_rule_is_described() -> None:
    source = (Path(__file__).parents[1] / "src/sapis/data/lint.py").read_text()
    assert all(source.count(f'"{rule}"') >= 2 for rule in RULES)


def test_errors_come_first(acac: list[System]) -> None:
    severities = [finding.severity for finding in lint(with_frame([*acac, acac[0]], 5, flip_one_force))]
    assert severities == ["error", "warning"]
