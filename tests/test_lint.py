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
from sapis.data.splits import random_split, split_in_time
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


# What is wrong with them is true: two electronic states under one name.
CONFLICTING = "carbene_2200"


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted([*SHARED.glob("*/*.extxyz.gz"), *SHARED.glob("rmd17/*.npz")]), ids=lambda path: path.name)
def test_published_data_have_no_errors(path: Path) -> None:
    systems = read_systems(path)
    needs = ("energy",) if "iso" in path.name else ("energy", "forces")
    errors = {finding.rule for finding in lint(systems, needs=needs) if finding.severity == "error"}
    assert errors == ({"conflicting-labels"} if CONFLICTING in path.name else set())


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
    key = {"overlapping-atoms": "positions", "energy-outlier": "energy"}.get(rule, "forces")
    if rule == "missing-labels":
        key = "energy" if change(acac[0]).energy is None else "forces"
    planted = [finding for finding in lint(with_frame(acac, 17, change)) if finding.rule == rule]
    assert [(finding.severity, finding.where) for finding in planted] == [
        (severity, f"file train_300K.extxyz.gz, frame 17, key {key}")]
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
    assert ("overlapping-atoms", "error") in faults([close], ())
    assert faults([replace(close, pbc=False)], ()) == set()
    own_image = System([8], [[0, 0, 0]], cell=np.diag([0.4, 8, 8]), pbc=True)
    assert ("overlapping-atoms", "error") in faults([own_image], ())


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


def test_frames_of_a_trajectory_that_are_held_out_at_random(acac: list[System]) -> None:
    line = [frame.with_tags(trajectory="one", time_fs=10.0 * k) for k, frame in enumerate(acac[:60])]
    apart = split_in_time(line, fractions=(0.8, 0.2, 0.0))
    assert lint_splits(apart.train, apart.validation) == []
    at_random = random_split(line, 48, 12, 0)
    beside, = lint_splits(at_random.train, at_random.validation)
    assert (beside.rule, beside.severity) == ("time-neighbors", "warning") and "validation" in beside.message


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
    folder = Path(__file__).parents[1] / "src/sapis/data/lint"
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    assert all(source.count(f'"{rule}"') >= 2 for rule in RULES)


def test_errors_come_first(acac: list[System]) -> None:
    severities = [finding.severity for finding in lint(with_frame([*acac, acac[0]], 5, flip_one_force))]
    assert severities == ["error", "warning"]


# Twenty kinds of fault, each planted in a real set.

Planted = tuple[str, str, Callable[[list[System]], list[System]]]


def shifted_from(systems: list[System], number: int, shift: float) -> list[System]:
    return [replace(system, energy=system.energy + shift * (i >= number)) for i, system in enumerate(systems)]


def of_another(systems: list[System]) -> list[System]:
    """Forces of frames half a set away."""
    half = len(systems) // 2
    return [replace(system, forces=systems[(i + half) % len(systems)].forces) for i, system in enumerate(systems)]


def fixed_bottom(system: System) -> System:
    forces = np.array(system.forces)
    forces[:4] = 0.0
    return replace(system, forces=forces)


PLANTED: list[Planted] = [
    ("missing-labels", "acac", lambda s: with_all(s, lambda x: replace(x, forces=None))),
    ("overlapping-atoms", "acac", lambda s: with_frame(s, 5, put_oxygen_on_carbon)),
    ("length-unit", "acac", lambda s: with_all(s, lambda x: replace(x, positions=x.positions / BOHR))),
    ("length-unit", "acac", lambda s: with_all(s, lambda x: replace(x, positions=x.positions / 10))),
    ("electrons", "acac", lambda s: with_all(s, lambda x: replace(x, charge=1))),
    ("zero-forces", "acac", lambda s: with_frame(s, 5, lambda x: replace(x, forces=np.zeros_like(x.forces)))),
    ("constrained-forces", "oc20", lambda s: with_all(s, fixed_bottom)),
    ("net-force", "3bpa", lambda s: with_all(s, lambda x: replace(x, forces=x.forces + np.array([0.2, 0, 0])))),
    ("force-outlier", "3bpa", lambda s: with_frame(s, 5, lambda x: scaled(x, forces=100.0))),
    ("force-unit", "3bpa", lambda s: with_all(s, lambda x: scaled(x, forces=1 / KCAL_MOL))),
    ("force-unit", "3bpa", lambda s: with_all(s, lambda x: scaled(x, forces=BOHR / HARTREE))),
    ("force-gradient", "benzene", lambda s: with_all(s, lambda x: scaled(x, forces=-1.0))),
    ("force-gradient", "oc20", lambda s: with_all(s, lambda x: scaled(x, forces=-1.0))),
    ("force-gradient", "acac", lambda s: with_all(s, lambda x: scaled(x, forces=-1.0))),
    ("force-gradient", "s66", lambda s: with_all(s, lambda x: scaled(x, forces=HARTREE / BOHR / 10))),
    ("force-gradient", "benzene", of_another),
    ("energy-unit", "3bpa", lambda s: with_all(s, lambda x: scaled(x, energy=1 / HARTREE))),
    ("energy-unit", "acac", lambda s: with_all(s, lambda x: scaled(x, energy=1 / KCAL_MOL))),
    ("energy-outlier", "water", lambda s: with_frame(s, 5, lambda x: replace(x, energy=x.energy + 1000.0))),
    ("energy-jump", "oc20", lambda s: shifted_from(s, 60, 5.0)),
    ("energy-kind", "qm7x", lambda s: with_all(s, lambda x: scaled(x, energy=1 / len(x)))),
    ("stress-unit", "mptrj", lambda s: with_all(s, lambda x: replace(x, stress=x.stress * 1602))),
    ("not-converged", "acac", lambda s: with_frame(s, 5, lambda x: x.with_tags(converged=False))),
    ("conflicting-labels", "acac", lambda s: [*s, replace(s[3], energy=s[3].energy + 1.0)]),
    ("duplicate", "acac", lambda s: [*s, s[3]]),
]
FILES = {
    "acac": "acac/train_300K.extxyz.gz", "3bpa": "3bpa/test_300K.extxyz.gz", "oc20": "oc20_relax/random1000127.extxyz.gz",
    "water": "water_pbe0ts/water_pbe0ts.extxyz.gz", "benzene": "rmd17/rmd17_benzene_split01.npz",
    "s66": "s66x8_comp6/s66x8_wb97x_631gd.extxyz.gz", "qm7x": "qm7x_2500/qm7x_2500.extxyz.gz",
    "mptrj": "mattersim_bench/mptrj-random-1k.extxyz.gz",
}


@needs_data
@pytest.mark.parametrize(("rule", "name", "plant"), PLANTED, ids=[f"{rule}-{name}" for rule, name, _ in PLANTED])
def test_planted_in_real_sets(rule: str, name: str, plant: Callable[[list[System]], list[System]]) -> None:
    systems = read_systems(SHARED / FILES[name], index=":300")
    assert rule not in {finding.rule for finding in lint(systems) if finding.severity != "note"}
    assert rule in {finding.rule for finding in lint(plant(systems)) if finding.severity != "note"}


def test_twenty_kinds_are_planted() -> None:
    elsewhere = {"reference-energies", "stress-gradient", "leakage", "unseen-element", "time-neighbors"}
    assert {rule for rule, *_ in PLANTED} | elsewhere == set(RULES) and len(RULES) >= 20


@needs_data
def test_isolated_atoms_of_another_method_do_not_fit(acac: list[System]) -> None:
    atoms = {int(system.numbers[0]): system.energy for system in read_systems(SHARED / "acac/isolated_atoms.extxyz.gz")}
    assert lint(acac, isolated=atoms) == []
    for wrong in ({z: energy / HARTREE for z, energy in atoms.items()}, {1: -13.6, 6: -148.0, 8: -432.0}):
        (finding,) = lint(acac, isolated=wrong)
        assert finding.rule == "reference-energies" and finding.severity == "error"


def strained_copper() -> list[System]:
    from ase.calculators.emt import EMT
    from ase.stress import voigt_6_to_full_3x3_stress

    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        atoms = bulk("Cu", cubic=True)
        strain = rng.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.01, size=(4, 3))
        atoms.calc = EMT()
        found.append(System.from_atoms(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces(),
                                       stress=voigt_6_to_full_3x3_stress(atoms.get_stress())))
    return found


def test_stresses_are_the_strain_derivative() -> None:
    systems = strained_copper()
    assert lint(systems) == []
    for factor in (-1.0, 1602 / 10, systems[0].volume):
        findings = lint(with_all(systems, lambda x, f=factor: replace(x, stress=x.stress * f)))
        assert "stress-gradient" in {finding.rule for finding in findings if finding.severity == "error"}


def test_valence_energies_in_eV_of_many_compositions_are_no_hartree() -> None:
    """GFN2-xTB: their median over small molecules of fourteen elements is that of all electrons in hartree, by chance."""
    sample = Path(__file__).parents[1] / "docs" / "data" / "organic-gfn2-v1" / "sample.extxyz.gz"
    systems = [system for system in read_systems(sample) if len(system) < 21]
    assert "energy-unit" not in {finding.rule for finding in lint(systems)}
