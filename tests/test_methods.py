"""Every labeler: the laws of labels, the package it stands for called directly, and what it says of what it cannot do."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import FileIOCalculator

from sapis.api import save
from sapis.core.errors import ConfigError, FileError
from sapis.data.system import System
from sapis.executors.outcome import Failure
from sapis.labelers.build import METHODS, build_labeler
from sapis.labelers.labeler import Label, LabelerConfig, Outcome
from sapis.testing import tolerances
from sapis.testing.labelers import check_labeler

HARTREE_BOHR = units.Hartree / units.Bohr
# A program that any machine has: this interpreter, with a calculator of ASE.
PROGRAM = """
import sys
from ase.calculators.lj import LennardJones
from ase.io import read, write
atoms = read("structure.xyz")
print("computing", len(atoms), "atoms of charge", sys.argv[1])
if "fail" in sys.argv:
    sys.exit("the wave function\\nhas gone")
if "reorder" in sys.argv:
    atoms = atoms[::-1]
atoms.calc = LennardJones(rc=20)
atoms.get_forces()
write("result.extxyz", atoms)
"""


def rattled(name: str, seed: int = 0) -> System:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    return System.from_atoms(atoms)


def water_pair() -> System:
    one, other = rattled("H2O"), rattled("H2O", 1)
    apart = other.positions + np.array([0, 0.4, 2.9])
    return System(np.concatenate([one.numbers, other.numbers]), np.concatenate([one.positions, apart]))


def label_of(outcome: Outcome) -> Label:
    assert isinstance(outcome, Label), outcome
    return outcome


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import small_potential

    path = tmp_path_factory.mktemp("model") / "teacher.sapis"
    save(path, small_potential(), {})
    return path


def program(*words: str) -> dict[str, object]:
    return {"command": [sys.executable, "-c", PROGRAM, "{charge}", *words], "version": "1.0"}


@pytest.mark.parametrize("name", ["gfn2", "gfn1", "openmm", "emt", "lj", "potential", "command"])
def test_the_laws_of_labels(name: str, model: Path) -> None:
    arguments = {"potential": {"path": str(model)}, "command": program()}.get(name, {})
    labeler = build_labeler(LabelerConfig(name=name, arguments=arguments))
    systems = [rattled("H2O"), rattled("H2O", 1)] if name == "command" else [rattled("H2O"), water_pair()]
    for check in check_labeler(labeler, systems):
        assert check.passed, f"{name}: {check}"


@pytest.mark.slow
@pytest.mark.parametrize("system", [rattled("CH3CH2OH"), water_pair(), rattled("H2CO")], ids=["ethanol", "dimer", "formaldehyde"])
def test_dft_is_pyscf_and_its_forces_the_gradient(system: System) -> None:
    dft = pytest.importorskip("pyscf.dft", reason="PySCF is not installed")
    from pyscf import gto

    config = LabelerConfig(name="dft", arguments={"basis": "6-31G*", "grid": 2})
    labeler = build_labeler(config)
    label = label_of(labeler.label(system))
    atoms = [(int(z), position) for z, position in zip(system.numbers, system.positions, strict=True)]
    direct = dft.RKS(gto.M(atom=atoms, basis="6-31G*", verbose=0)).density_fit()
    direct.xc, direct.disp, direct.grids.level = "PBE", "d3bj", 2
    assert label.energy == pytest.approx(direct.kernel() * units.Hartree, abs=1e-6)

    step = 2e-3
    for component in np.random.default_rng(0).choice(3 * len(system), 2, replace=False):
        energies = []
        for sign in (1, -1):
            positions = system.positions.copy()
            positions.flat[component] += sign * step
            energies.append(label_of(labeler.label(replace(system, positions=positions))).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        assert label.forces.flat[component] == pytest.approx(-slope, abs=1e-4 * HARTREE_BOHR)
    assert labeler.level == "PBE-D3BJ/6-31G*"
    assert np.abs(label.forces.sum(axis=0)).max() < 1e-4 * HARTREE_BOHR


def test_dft_of_a_radical_an_ion_and_of_what_it_is_not_made_for() -> None:
    pytest.importorskip("pyscf", reason="PySCF is not installed")
    labeler = build_labeler(LabelerConfig(name="dft", arguments={"basis": "STO-3G", "grid": 1}))
    neutral = System([8, 1], [[0, 0, 0], [0, 0, 0.98]], spin=2)
    radical, ion = (label_of(labeler.label(system)) for system in (neutral, replace(neutral, charge=-1, spin=1)))
    assert radical.energy != ion.energy
    impossible = labeler.label(replace(neutral, spin=1))
    assert isinstance(impossible, Failure)
    crystal = labeler.label(System.from_atoms(bulk("Si")))
    assert isinstance(crystal, Failure) and crystal.kind == "unsupported"
    hasty = build_labeler(LabelerConfig(name="dft", arguments={"basis": "STO-3G", "grid": 1, "max_cycles": 1}))
    stuck = hasty.label(neutral)
    assert isinstance(stuck, Failure) and stuck.kind == "not_converged"
    again = build_labeler(LabelerConfig(name="dft", arguments={"basis": "STO-3G", "grid": 1, "has_restarts": True}))
    first, second = (label_of(again.label(neutral)) for _ in range(2))
    assert second.energy == pytest.approx(first.energy, abs=1e-6) and second.cpu_seconds < first.cpu_seconds


@pytest.mark.parametrize("field", ["amber14-all.xml", "amber99sbildn.xml",
                                   pytest.param("charmm36_2024.xml", marks=pytest.mark.slow)])
def test_openmm_is_openmm(shared_data: Path, tmp_path: Path, field: str) -> None:
    app = pytest.importorskip("openmm.app", reason="OpenMM is not installed")
    import openmm
    from openmm import unit

    pdb = tmp_path / "ala2.pdb"
    # The published file calls the alpha carbon calcium in its last column.
    pdb.write_text((shared_data / "fes_alanine_dipeptide" / "ala2.pdb").read_text().replace("          CA\n", "           C\n"))
    read = app.PDBFile(str(pdb))
    numbers = [atom.element.atomic_number for atom in read.topology.atoms()]
    system = System(numbers, np.array(read.getPositions(asNumpy=True).value_in_unit(unit.angstrom)))
    labeler = build_labeler(LabelerConfig(name="openmm", arguments={"forcefield": [field], "topology": str(pdb)}))
    label = label_of(labeler.label(system))

    parameters = labeler.calculator(system).field  # reading CHARMM's takes most of a minute
    made = parameters.createSystem(read.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False)
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(read.positions)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilocalorie_per_mole) * units.kcal / units.mol
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilocalorie_per_mole / unit.angstrom) * units.kcal / units.mol
    assert label.energy == pytest.approx(energy, rel=1e-6)
    assert np.abs(label.forces - forces).max() < 1e-6 * np.abs(forces).max()
    checks = check_labeler(labeler, [system, replace(system, positions=system.positions * 1.01)], has_order=True)
    assert all(check.passed for check in checks), checks
    other = labeler.label(rattled("CH3CH2OH"))
    assert isinstance(other, Failure) and other.kind == "unsupported" and "ala2.pdb" in other.reason


def test_openmm_of_periodic_water(shared_data: Path) -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed")
    from sapis.data.formats import read_systems

    frame = read_systems(shared_data / "water_pbe0ts" / "water_pbe0ts.extxyz.gz", index="0")[0].without_labels()
    labeler = build_labeler(LabelerConfig(name="openmm", arguments={"forcefield": ["amber14/tip3p.xml"], "cutoff_A": 5.5}))
    label = label_of(labeler.label(frame))
    order = np.random.default_rng(0).permutation(len(frame))
    shuffled = label_of(labeler.label(replace(frame, numbers=frame.numbers[order], positions=frame.positions[order])))
    assert shuffled.energy == pytest.approx(label.energy, abs=1e-5)
    assert np.abs(shuffled.forces - label.forces[order]).max() < tolerances.LABEL_SYMMETRY.float64
    twice = label_of(labeler.label(System.from_atoms(frame.to_atoms().repeat((2, 1, 1)))))
    assert twice.energy == pytest.approx(2 * label.energy, rel=1e-3)
    assert -0.7 < label.energy / 64 < -0.1, "TIP3P binds liquid water by some 0.4 eV a molecule"
    turned = replace(frame, cell=frame.cell[:, ::-1] + np.array([[0, 0, 0], [0, 0, 0], [0, 0.1, 0]]))
    refused = labeler.label(turned)
    assert isinstance(refused, Failure) and "cell" in refused.reason


def test_a_program_runs_once_for_a_label_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it writes no stress of a crystal, and where it fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    (tmp_path / "system").mkdir()
    crystal = replace(rattled("H2O"), cell=8 * np.eye(3), pbc=np.ones(3, dtype=bool))
    runs = tmp_path / "runs"
    single = "SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())"
    script = (f"open({str(runs)!r}, 'a').write('once\\n')\nfrom ase.calculators.singlepoint import SinglePointCalculator\n"
              + PROGRAM.replace("atoms.get_forces()\n", f"atoms.calc = {single}\n"))
    words = [sys.executable, "-c", script, "{charge}"]
    outcome = build_labeler(LabelerConfig(name="command", arguments={"command": words})).label(crystal)
    assert isinstance(outcome, Label) and outcome.stress is None and runs.read_text() == "once\n"
    failed = build_labeler(LabelerConfig(name="command", arguments=program("fail"))).label(crystal)
    assert isinstance(failed, Failure) and str(tmp_path) not in failed.reason
    assert not list((tmp_path / "system").iterdir())


def test_a_program_its_scratch_and_its_last_words(tmp_path: Path) -> None:
    system, scratch = rattled("H2O"), tmp_path / "scratch"
    labeler = build_labeler(LabelerConfig(name="command", arguments=program(), scratch=scratch))
    label = label_of(labeler.label(system))
    emulated = label_of(build_labeler(LabelerConfig(name="lj", arguments={"rc": 20})).label(system))
    assert label.energy == pytest.approx(emulated.energy, rel=1e-6) and labeler.level.endswith("1.0")
    assert not list(scratch.iterdir()), "what succeeded leaves nothing"

    for word, hint in (("fail", "the wave function / has gone"), ("reorder", "another order")):
        failed = build_labeler(LabelerConfig(name="command", arguments=program(word), scratch=scratch)).label(system)
        assert isinstance(failed, Failure) and hint in failed.reason and str(scratch) in failed.reason
    assert len(list(scratch.iterdir())) == 2
    said = [(folder / "stdout.txt").read_text() for folder in scratch.iterdir()]
    assert all("computing 3 atoms of charge 0" in text for text in said)
    # No shell: what looks like one stays a word.
    quiet = {"command": ["/bin/echo", f"; touch {tmp_path}/broken", "$(id)"]}
    outcome = build_labeler(LabelerConfig(name="command", arguments=quiet, scratch=scratch)).label(system)
    assert isinstance(outcome, Failure) and not (tmp_path / "broken").exists()


def test_programs_that_ase_runs_have_a_folder_for_each_label(tmp_path: Path) -> None:
    config = LabelerConfig(name="ase", calculator="test_methods.InFolder", scratch=tmp_path)
    labeler = build_labeler(config)
    labels = [label_of(labeler.label(rattled("H2O", seed))) for seed in range(2)]
    assert labels[0].energy != labels[1].energy
    assert not list(tmp_path.iterdir())
    failed = build_labeler(config.model_copy(update={"arguments": {"is_broken": True}})).label(rattled("H2O"))
    assert isinstance(failed, Failure) and len(list(tmp_path.iterdir())) == 1


class InFolder(FileIOCalculator):
    """Harmonic wells by way of a file."""

    implemented_properties = ("energy", "forces")

    def __init__(self, is_broken: bool = False) -> None:
        super().__init__(command="false" if is_broken else "true")

    def write_input(self, atoms, properties=None, system_changes=None):  # type: ignore[no-untyped-def]
        super().write_input(atoms, properties, system_changes)
        (Path(self.directory) / "input").write_text(json.dumps(atoms.positions.tolist()))

    def read_results(self) -> None:
        positions = np.array(json.loads((Path(self.directory) / "input").read_text()))
        self.results = {"energy": float((positions**2).sum()), "forces": -2 * positions}


@pytest.mark.parametrize(
    ("settings", "kind", "hint"),
    [
        ({"name": "dft", "arguments": {"functionl": "PBE"}}, ConfigError, "'functional'"),
        ({"name": "dft", "arguments": {"functional": "PBEE"}}, ConfigError, "r2SCAN"),
        ({"name": "dft", "arguments": {"dispersion": "d5"}}, ConfigError, "'d4'"),
        ({"name": "openmm", "arguments": {"forcefield": ["amber99999.xml"]}}, ConfigError, "amber99999"),
        ({"name": "openmm", "arguments": {"topology": "nowhere.pdb"}}, FileError, "nowhere.pdb"),
        ({"name": "potential"}, ConfigError, "path"),
        ({"name": "potential", "arguments": {"path": "nowhere.sapis"}}, FileError, "nowhere.sapis"),
        ({"name": "command"}, ConfigError, "command"),
        ({"name": "command", "arguments": {"command": ["no-such-program"]}}, ConfigError, "PATH"),
    ],
)
def test_what_a_method_cannot_be_given(settings: dict, kind: type[Exception], hint: str) -> None:
    with pytest.raises(kind) as caught:
        build_labeler(LabelerConfig(**settings))
    assert hint in str(caught.value)


def test_a_level_of_ones_own_and_every_method_has_a_module() -> None:
    assert build_labeler(LabelerConfig(level="mine")).level == "mine"
    assert build_labeler(LabelerConfig()).level == "GFN2-xTB"
    folder = Path(sys.modules["sapis.labelers.build"].__file__ or "").parent / "methods"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(METHODS.values())
