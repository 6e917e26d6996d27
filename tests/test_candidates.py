"""Starting structures, trajectories and rattled structures: sound, the same for the same seed, resumable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import Calculator

from sapis.core.errors import ConfigError, DataError, FileError, LabelerError
from sapis.data.formats import write_systems
from sapis.data.system import System, hash_systems
from sapis.labelers.labeler import LabelerConfig
from sapis.simulate.candidates import make_candidates
from sapis.simulate.sampling import CandidatesConfig, md_candidates, rattled_candidates
from sapis.simulate.structures import load_structure

pytest.importorskip("tblite", reason="tblite is not installed")
pytest.importorskip("rdkit", reason="rdkit is not installed")

STIFFNESS_eV_A2 = 2.0
SHORT = CandidatesConfig(n_replicas=2, equilibration_fs=5, decorrelation_fs=2)
GFN2 = LabelerConfig()


class Wells(Calculator):
    """Independent harmonic wells: U = k/2 sum of squares; explodes at call ``n_good``, kills its process at the 20th unless there
    is a file ``killed``, which it then tries to make.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, n_good: float = float("inf"), killed: str = "") -> None:
        super().__init__()
        self.n_good, self.killed, self.n_calls = n_good, killed, 0

    def calculate(self, atoms=None, properties=(), system_changes=()):  # type: ignore[no-untyped-def]
        super().calculate(atoms, properties, system_changes)
        self.n_good -= 1
        self.n_calls += 1
        if self.killed and self.n_calls == 20 and not Path(self.killed).exists():
            if Path(self.killed).parent.exists():
                Path(self.killed).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        factor = 1.0 if self.n_good > 0 else -1e6
        forces = -factor * STIFFNESS_eV_A2 * atoms.positions
        self.results = {"energy": 0.5 * STIFFNESS_eV_A2 * float((atoms.positions**2).sum()), "forces": forces}


def wells(**arguments: object) -> LabelerConfig:
    return LabelerConfig(name="ase", calculator="test_candidates.Wells", arguments=arguments)


@pytest.fixture(scope="module")
def water() -> System:
    return load_structure("O")[0]


def shortest(system: System) -> float:
    distances = np.linalg.norm(system.positions[:, None] - system.positions[None], axis=-1)
    return float(distances[np.triu_indices(len(system), k=1)].min())


def test_conformers_are_distinct_ordered_and_reproducible() -> None:
    ethanol = load_structure("CCO", n_conformers=4, seed=1)
    assert len(ethanol) == 2, "ethanol has two conformers up to mirror images, whatever is asked for"
    assert [system.tags["conformer"] for system in ethanol] == [0, 1]
    assert hash_systems(ethanol) == hash_systems(load_structure("CCO", n_conformers=4, seed=1))
    assert hash_systems(ethanol) != hash_systems(load_structure("CCO", n_conformers=4, seed=2))
    assert len(load_structure("CCCCCC", n_conformers=3)) == 3
    assert len(load_structure("CCCCCC", n_conformers=1)) == 1


@pytest.mark.parametrize(
    ("smiles", "formula", "charge", "spin"),
    [("[NH4+]", "H4N", 1, 1), ("[CH3]", "CH3", 0, 2), ("[Na+].[Cl-]", "ClNa", 0, 1), ("O.O", "H4O2", 0, 1),
     ("[Ar]", "Ar", 0, 1), ("[H][H]", "H2", 0, 1), ("CC(=O)[O-]", "C2H3O2", -1, 1)],
)
def test_charge_and_spin_come_from_the_smiles(smiles: str, formula: str, charge: int, spin: int) -> None:
    system = load_structure(smiles)[0]
    assert (system.formula, system.charge, system.spin) == (formula, charge, spin)
    assert len(system) == 1 or shortest(system) > 0.6


def test_given_charge_and_spin_win_if_possible(tmp_path: Path, water: System) -> None:
    cation = load_structure("O", charge=1)[0]
    assert (cation.charge, cation.spin) == (1, 2)
    assert load_structure("[O][O]")[0].spin == 3 and load_structure("[O][O]", spin=1)[0].spin == 1
    for spin in (0, 2, 13):
        with pytest.raises(ConfigError, match="spin"):
            load_structure("O", spin=spin)
    write_systems(tmp_path / "a.xyz", [water, water])
    from_file = load_structure(file=tmp_path / "a.xyz", charge=-1)
    assert [(system.charge, system.spin) for system in from_file] == [(-1, 2), (-1, 2)]
    assert from_file[0].energy is None


@pytest.mark.parametrize(
    ("smiles", "kind", "hint"),
    [
        ("C1CC", ConfigError, "does not parse"), ("C(C)(C)(C)(C)C", ConfigError, "valence"),
        ("", ConfigError, "no atoms"), ("C*", ConfigError, "wildcard"), ("C" * 150, DataError, "452 atoms"),
        ("C1#CC#CC#C1", DataError, "place in space"), ("F[Xe]F", DataError, "MMFF94 or UFF"),
    ],
)
def test_a_bad_smiles_is_explained(
    smiles: str, kind: type[Exception], hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind) as caught:
        load_structure(smiles)
    assert hint in str(caught.value)
    assert capfd.readouterr().err == "", "RDKit's own log is silenced"


def test_exactly_one_source(tmp_path: Path) -> None:
    for smiles, file in ((None, None), ("C", tmp_path / "a.xyz")):
        with pytest.raises(ConfigError):
            load_structure(smiles, file)
    with pytest.raises(FileError):
        load_structure(file=tmp_path / "absent.xyz")


def test_frames_have_the_canonical_distribution() -> None:
    """Equipartition in harmonic wells: <U> = 3 N k T / 2. A wrong thermostat, unit or spacing shows here."""
    n_atoms, temperature = 32, 400.0
    start = System([6] * n_atoms, np.zeros((n_atoms, 3)))
    config = CandidatesConfig(
        timestep_fs=1.0, friction_per_fs=0.05, equilibration_fs=300, decorrelation_fs=40
    )
    frames = md_candidates(start, wells(), temperature, 60, config, 0, "a")
    energies = [0.5 * STIFFNESS_eV_A2 * (frame.positions**2).sum() for frame in frames]
    # 96 degrees of freedom x 60 frames: 2 % standard error if the frames are independent.
    assert np.mean(energies) == pytest.approx(1.5 * n_atoms * units.kB * temperature, rel=0.08)


def test_a_trajectory_is_the_same_to_the_last_bit(water: System) -> None:
    frames = md_candidates(water, GFN2, 500.0, 5, SHORT, 3, "a")
    assert len(frames) == 5
    assert hash_systems(frames) == hash_systems(md_candidates(water, GFN2, 500.0, 5, SHORT, 3, "a"))
    for seed, name in ((4, "a"), (3, "b")):
        assert hash_systems(frames) != hash_systems(md_candidates(water, GFN2, 500.0, 5, SHORT, seed, name))
    assert [frame.tags["time_fs"] for frame in frames] == [7.0, 9.0, 11.0, 13.0, 15.0]
    assert all(frame.tags["source"] == "md" and frame.tags["trajectory"] == "a" for frame in frames)
    assert all(frame.energy is None and frame.tags["temperature_K"] == 500.0 for frame in frames)
    assert frames[0].structure_hash() != frames[1].structure_hash()


def test_an_exploding_or_failing_trajectory_keeps_what_was_sound(water: System) -> None:
    start = System([6, 6], [[0.1, 0, 0], [0, 0.1, 0]])
    with pytest.warns(RuntimeWarning, match=r"stopped after .* 5 of 10 frames kept"):
        # Call 1 at the start, 10 of equilibration, 4 a frame: the 30th falls into the fifth frame.
        frames = md_candidates(start, wells(n_good=30), 300.0, 10, SHORT, 0, "a")
    assert [frame.tags["time_fs"] for frame in frames] == [7.0, 9.0, 11.0, 13.0, 14.0]
    assert all(np.abs(frame.positions).max() < 2 for frame in frames)
    with pytest.warns(RuntimeWarning, match=r"stopped after .* 1 of 10 frames kept"):
        (last,) = md_candidates(start, wells(n_good=8), 300.0, 10, SHORT, 0, "a")
    assert 0 < last.tags["time_fs"] < 5, "from the equilibration"
    with pytest.warns(RuntimeWarning, match="starting structure"):
        stuck = LabelerConfig(arguments={"max_iterations": 2})
        assert md_candidates(water, stuck, 300.0, 3, SHORT, 0, "a") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(md_candidates(start, wells(), 300.0, 2, SHORT, 0, "a")) == 2


@pytest.mark.parametrize("numbers", [[18], [1, 1]])
def test_one_and_two_atoms(numbers: list[int]) -> None:
    start = System(numbers, [[0, 0, 0.74 * place] for place in range(len(numbers))])
    assert len(md_candidates(start, GFN2, 300.0, 2, SHORT, 0, "a")) == 2


def test_rattled_structures(water: System) -> None:
    rattled = rattled_candidates([water], 200, (0.02, 0.12), 0)
    assert hash_systems(rattled) == hash_systems(rattled_candidates([water], 200, (0.02, 0.12), 0))
    assert len({system.structure_hash() for system in rattled}) == 200
    spread = np.std([system.positions - water.positions for system in rattled])
    assert spread == pytest.approx(np.sqrt(np.mean([each.tags["stdev_A"] ** 2 for each in rattled])), rel=0.1)
    assert min(map(shortest, rattled)) > 0.5
    assert min(map(shortest, rattled_candidates([water], 200, (0.3, 0.3), 0))) > 0.35
    clash = System([8, 8], [[0, 0, 0], [0, 0, 0.2]])
    with pytest.raises(DataError, match="covalent"):
        rattled_candidates([clash], 1, (0.02, 0.05), 0)
    across = System([8, 8], [[0, 0, 0], [0, 0, 9.9]], cell=10 * np.eye(3), pbc=[True] * 3)
    with pytest.raises(DataError, match="covalent"):
        rattled_candidates([across], 1, (0.02, 0.05), 0)


def test_candidates_are_as_many_as_asked_and_resumable(tmp_path: Path, water: System) -> None:
    def make(folder: Path, **changes: object) -> list[System]:
        arguments = {"temperatures_K": [300, 600], "n_total": 22, "seed": 0, "n_workers": 2, **changes}
        return make_candidates([water], GFN2, config=SHORT, folder=folder, **arguments)[0]  # type: ignore[arg-type]

    made = make(tmp_path / "a")
    assert len(made) == 22
    sources = [system.tags["source"] for system in made]
    assert sources.count("rattle") == 2
    at = [system.tags.get("temperature_K") for system in made]
    assert at.count(300.0) == at.count(600.0) == 10
    assert len({system.structure_hash() for system in made}) == 22

    files = sorted((tmp_path / "a").glob("*.extxyz"))
    assert len(files) == 4
    times = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-30])
    assert hash_systems(make(tmp_path / "a", n_workers=1)) == hash_systems(made)
    assert [path.stat().st_mtime_ns == times[path] for path in files] == [False, False, True, True]
    assert hash_systems(make(tmp_path / "a", seed=1)) != hash_systems(made)
    assert not any(path.stat().st_mtime_ns == times[path] for path in files)

    only_rattled = make(tmp_path / "b", temperatures_K=[])
    assert [system.tags["source"] for system in only_rattled] == ["rattle"] * 22
    for changes in ({"temperatures_K": [0.0]}, {"temperatures_K": [float("nan")]}):
        with pytest.raises(ConfigError):
            make(tmp_path / "c", **changes)


def test_candidates_survive_kill_9(tmp_path: Path, water: System) -> None:
    config = CandidatesConfig(n_replicas=3, equilibration_fs=5, decorrelation_fs=5)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_candidates import *\n"
        f"config = CandidatesConfig(**{config.model_dump()})\n"
        "make_candidates([load_structure('O')[0]], GFN2, [400], 60, config, 0, Path(sys.argv[2]), 1)\n"
    )
    folder = tmp_path / "a"
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(folder)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list(folder.glob("*.json")):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    time.sleep(1.5)  # the orphan gives up within about a second
    n_whole = len(list(folder.glob("*.json")))
    assert n_whole < 3, "the kill came too late to test anything"
    resumed, _ = make_candidates([water], GFN2, [400], 60, config, 0, folder, 2)
    shutil.rmtree(folder)
    fresh, _ = make_candidates([water], GFN2, [400], 60, config, 0, folder, 2)
    assert hash_systems(resumed) == hash_systems(fresh)


def test_every_starting_structure_begins_a_trajectory(tmp_path: Path) -> None:
    starts = [System([6, 6], [[0.0, 0, 0], [0, distance, 0]], tags={"conformer": k}) for k, distance in enumerate(range(1, 6))]
    found, _ = make_candidates(starts, wells(), [300], 5, SHORT, 0, tmp_path, 1)
    assert len(found) == 5 and {system.tags["conformer"] for system in found} == set(range(5)), "with n_replicas of 2"


def test_a_trajectory_whose_process_is_killed_is_run_again(tmp_path: Path) -> None:
    start = System([6, 6], [[0.0, 0, 0], [0, 1.5, 0]])
    whole, endings = make_candidates([start], wells(), [3000], 20, SHORT, 0, tmp_path / "whole", 1)
    assert not endings
    again, endings = make_candidates([start], wells(killed=str(tmp_path / "mark")), [3000], 20, SHORT, 0, tmp_path / "again", 1)
    assert (tmp_path / "mark").exists() and not endings and hash_systems(again) == hash_systems(whole)
    with pytest.raises(LabelerError, match="killed"):
        make_candidates([start], wells(killed=str(tmp_path / "no folder" / "mark")), [3000], 20, SHORT, 0, tmp_path / "always", 1)


def test_failed_trajectories_are_told_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = System([6, 6], [[0.0, 0, 0], [0, 1.5, 0]])
    for _ in range(2):  # the second time from the files
        made, endings = make_candidates([start], wells(n_good=28), [300], 20, SHORT, 0, tmp_path, 1)
        assert "4 of 9 frames kept" in endings["md-300K-0"]
        assert [system.tags["source"] for system in made].count("md") == 8
        told = " ".join(capsys.readouterr().err.split())
        assert "md-300K-0" in told and "4 of 9 frames kept" in told


@pytest.mark.parametrize(
    "values", [{"decorrelation_fs": 0.1}, {"rattle_stdev_A": (0.2, 0.1)}, {"n_replicas": 0}]
)
def test_impossible_settings_are_refused(values: dict) -> None:
    with pytest.raises(ValueError):
        CandidatesConfig(**values)
