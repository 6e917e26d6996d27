"""Files of structures: labels found under every usual key, faults named, numbers kept to the last bit."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read as ase_read
from ase.io import write as ase_write

from sapis.core.errors import DataError, FileError
from sapis.data.formats import LabelKeys, read_systems, write_systems
from sapis.data.system import System

SHARED = Path(os.environ.get("SAPIS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no reference data in {SHARED}")

STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]) / 100
VOIGT = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 100
NINE = " ".join(map(str, STRESS.ravel()))


def water(comment: str = "REF_energy=-14.2", columns: str = "REF_forces:R:3") -> str:
    return (f"3\nProperties=species:S:1:pos:R:3:{columns} {comment}\n"
            "O 0.0 0.00  0.12 0.1  0.0 -0.2\nH 0.0 0.76 -0.48 0.0  0.3  0.1\n"
            "H 0.0 -0.76 -0.48 -0.1 -0.3 0.1\n")


def crystal(comment: str) -> str:
    return ('1\nLattice="2 0 0 0 2 0 0 0 2" Properties=species:S:1:pos:R:3 pbc="T T T" '
            f"{comment}\nCu 0.0 0.0 0.0\n")


def write(folder: Path, text: str, name: str = "a.xyz") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def random_systems(seed: int) -> list[System]:
    random = np.random.default_rng(seed)
    systems = []
    for k in range(6):
        n = int(random.integers(1, 9))
        stress = random.normal(size=(3, 3))
        systems.append(System(
            numbers=random.integers(1, 90, n),
            positions=random.normal(size=(n, 3)) * 10.0 ** random.integers(-9, 9),
            cell=random.normal(size=(3, 3)) if k % 2 else np.zeros((3, 3)),
            pbc=[[False] * 3, [True] * 3, [False] * 3, [True, False, True]][k % 4],
            energy=None if k == 2 else float(random.normal() * 1e5),
            forces=None if k == 3 else random.normal(size=(n, 3)),
            stress=stress + stress.T if k == 1 else None,
            charge=int(random.integers(-2, 3)) if k > 3 else 0, spin=3 if k == 5 else 1,
        ))
    return systems


TAGS = {
    "plain": "train_300K", "spaces": "two words", "quotes": "a \"b\" 'c' \\ d", "braces": "{x} [y]",
    "empty": "", "digits": "123", "float_text": "1.50", "letter": "T", "word": "true", "nan_text": "nan",
    "line": "a\nb", "list_text": "1 2 3", "comma": "1,2", "greek": "Å µ", "json_text": "_JSON {}",
    "equals": "a=b", "whole": 7, "negative": -3, "huge": 2**70, "real": 0.1 + 0.2, "round_real": 5.0,
    "tiny": 1e-300, "big": 1e22, "infinite": math.inf, "yes": True, "no": False, "key with spaces": 1,
}


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.extxyz.gz"])
def test_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    systems = random_systems(1)
    write_systems(tmp_path / name, systems)
    back = read_systems(tmp_path / name)
    assert len(back) == len(systems)
    for old, new in zip(systems, back, strict=True):
        assert new.structure_hash() == old.structure_hash()
        assert (new.energy, new.charge, new.spin) == (old.energy, old.charge, old.spin)
        for label in ("forces", "stress"):
            before, after = getattr(old, label), getattr(new, label)
            assert (before is None) == (after is None)
            assert before is None or before.tobytes() == after.tobytes()


def test_tags_keep_value_and_type(tmp_path: Path) -> None:
    write_systems(tmp_path / "a.xyz", [System([1], [[0, 0, 0]], tags=TAGS)])
    tags = dict(read_systems(tmp_path / "a.xyz")[0].tags)
    assert tags.pop("file") == "a.xyz" and tags.pop("frame") == 0
    assert {key: (type(value), value) for key, value in tags.items()} == {
        key: (type(value), value) for key, value in TAGS.items()}


def test_ase_reads_what_we_write(tmp_path: Path) -> None:
    systems = random_systems(2)
    write_systems(tmp_path / "a.xyz", systems)
    for system, atoms in zip(systems, ase_read(tmp_path / "a.xyz", ":"), strict=True):
        assert np.array_equal(atoms.positions, system.positions) and np.array_equal(atoms.pbc, system.pbc)
        assert np.array_equal(atoms.cell.array, system.cell)
        assert atoms.info.get("REF_energy") == system.energy
        assert system.forces is None or np.array_equal(atoms.arrays["REF_forces"], system.forces)


def test_where_a_frame_came_from_survives_a_second_file(tmp_path: Path) -> None:
    first = read_systems(write(tmp_path, water() + water(), "first.xyz"))
    write_systems(tmp_path / "second.xyz", first[1:])
    tags = read_systems(tmp_path / "second.xyz")[0].tags
    assert (tags["file"], tags["frame"]) == ("second.xyz", 0)
    assert (tags["source_file"], tags["source_frame"]) == ("first.xyz", 1)


@pytest.mark.parametrize("name", ["energy", "REF_forces", "pbc", "charge"])
def test_a_tag_cannot_pose_as_a_label(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        write_systems(tmp_path / "a.xyz", [System([1], [[0, 0, 0]], tags={name: 1.0})])
    assert list(tmp_path.iterdir()) == []


def test_only_extxyz_names_are_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"a\.traj"):
        write_systems(tmp_path / "a.traj", random_systems(0))


# Labels


@pytest.mark.parametrize(("energy", "forces"), [("REF_energy", "REF_forces"), ("energy", "forces")])
def test_usual_keys_are_found(tmp_path: Path, energy: str, forces: str) -> None:
    system, = read_systems(write(tmp_path, water(f"{energy}=-14.5", f"{forces}:R:3")))
    assert system.energy == -14.5
    assert system.forces is not None and system.forces[1].tolist() == [0.0, 0.3, 0.1]


def test_reference_keys_win_for_the_whole_file(tmp_path: Path) -> None:
    both = water("REF_energy=-1.0 energy=-2.0", "REF_forces:R:3")
    systems = read_systems(write(tmp_path, both + water("energy=-3.0", "forces:R:3")))
    assert [system.energy for system in systems] == [-1.0, None]
    assert not {"energy", "REF_energy"} & set(systems[0].tags)


def test_named_keys(tmp_path: Path) -> None:
    path = write(tmp_path, water("dft=-1.0 energy=-2.0", "dft_f:R:3"))
    system, = read_systems(path, keys=LabelKeys(energy="dft", forces="dft_f"))
    assert system.energy == -1.0 and system.forces is not None and "dft" not in system.tags
    with pytest.raises(DataError, match="'DFT_energy'") as error:
        read_systems(path, keys=LabelKeys(energy="DFT_energy"))
    assert "dft, dft_f, energy" in error.value.received


def test_required_labels(tmp_path: Path) -> None:
    path = write(tmp_path, water("E_total=-1.0", "F:R:3"))
    assert read_systems(path)[0].energy is None
    for label in ("energy", "forces", "stress"):
        with pytest.raises(DataError, match=label) as error:
            read_systems(path, require=(label,))
        assert error.value.received == "only the keys E_total, F"


@pytest.mark.parametrize("comment", [
    f'REF_stress="{NINE}"', f'stress="{NINE}"', 'stress="0.01 0.02 0.03 0.04 0.05 0.06"',
    'REF_stress="0.01 0.02 0.03 0.04 0.05 0.06"', f'REF_stress="_JSON {STRESS.tolist()}"',
    f'REF_virials="{" ".join(str(-8 * x) for x in STRESS.ravel())}"',
    f'virial="{" ".join(str(-8 * x) for x in STRESS.ravel())}"',
    f'virials="{" ".join(str(-8 * x) for x in VOIGT)}"',
])
def test_stress_in_every_form(tmp_path: Path, comment: str) -> None:
    system, = read_systems(write(tmp_path, crystal(comment)))
    assert system.stress is not None
    np.testing.assert_allclose(system.stress, STRESS, rtol=1e-14)


def test_named_virial_beats_a_stress(tmp_path: Path) -> None:
    path = write(tmp_path, crystal('REF_stress="1 2 3 4 5 6" W="-8 -8 -8 0 0 0"'))
    system, = read_systems(path, keys=LabelKeys(virial="W"))
    assert system.stress is not None
    np.testing.assert_allclose(system.stress, np.eye(3), atol=1e-14)
    plain, = read_systems(path)
    assert plain.stress is not None and plain.stress[1, 2] == 4.0


def test_a_virial_is_not_taken_for_a_stress(tmp_path: Path) -> None:
    path = write(tmp_path, crystal('dft_virial="-8 -8 -8 0 0 0"'))
    with pytest.raises(DataError, match="virial-key"):
        read_systems(path, keys=LabelKeys(stress="dft_virial"))
    with pytest.raises(DataError, match="leave one out"):
        read_systems(path, keys=LabelKeys(stress="S", virial="dft_virial"))


def test_two_energies_of_smeared_electrons_are_not_mixed_up(tmp_path: Path) -> None:
    path = write(tmp_path, water("energy=-14.5 free_energy=-14.6", "forces:R:3"))
    with pytest.raises(DataError, match="--energy-key free_energy"):
        read_systems(path)
    assert read_systems(path, keys=LabelKeys(energy="free_energy"))[0].energy == -14.6
    assert read_systems(write(tmp_path, water("energy=-14.5 free_energy=-14.5", "forces:R:3")))[0].energy == -14.5


def test_virial_needs_a_volume(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"frame 0, key 'virial'"):
        read_systems(write(tmp_path, water('virial="1 0 0 0 1 0 0 0 1"', "forces:R:3")))


def test_charge_and_spin(tmp_path: Path) -> None:
    path = write(tmp_path, water("charge=-1.0 spin=2") + water("total_charge=1 total_spin=3"))
    first, second = read_systems(path)
    assert (first.charge, first.spin, second.charge, second.spin) == (-1, 2, 1, 3)
    assert not {"charge", "spin"} & set(first.tags)
    for comment, key in (("charge=0.5", "charge"), ("spin=0", "spin")):
        with pytest.raises(DataError, match=f"file b.xyz, frame 0, key '{key}'"):
            read_systems(write(tmp_path, water(comment), "b.xyz"))


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db", "a.traj.gz"])
def test_labels_in_a_stored_calculator_without_constraints(tmp_path: Path, name: str) -> None:
    atoms = bulk("Cu", cubic=True)
    forces = np.arange(12.0).reshape(4, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, forces=forces, stress=VOIGT)
    atoms.set_constraint(FixAtoms([0, 1]))
    assert not atoms.get_forces()[0].any()  # the trap
    plain = tmp_path / name.removesuffix(".gz")
    ase_write(plain, atoms)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    system, = read_systems(tmp_path / name)
    assert system.energy == -3.5 and system.forces is not None and system.stress is not None
    np.testing.assert_array_equal(system.forces, forces)
    np.testing.assert_allclose(system.stress, STRESS, rtol=1e-14)
    assert system.tags["file"] == name


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.pdb", "a.json"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    ase_write(tmp_path / name, atoms)
    system, = read_systems(tmp_path / name)
    assert system.formula == "Cl4Na4" and system.energy is None
    assert system.volume == pytest.approx(5.6**3, rel=1e-6)


@pytest.mark.parametrize(("index", "frames"), [
    (":", [0, 1, 2, 3]), (":2", [0, 1]), ("1::2", [1, 3]), ("-1", [3]), ("2", [2]), (slice(1, 3), [1, 2]),
])
def test_index_keeps_the_number_of_the_frame(tmp_path: Path, index: str | slice, frames: list[int]) -> None:
    ase_write(tmp_path / "a.traj", [molecule("H2O")] * 4)
    for path in (write(tmp_path, water() * 4), tmp_path / "a.traj"):
        assert [system.tags["frame"] for system in read_systems(path, index=index)] == frames


def test_blank_lines_and_windows_line_ends_lose_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes(("\n" + water() + "\n\n" + water() + "\n").replace("\n", "\r\n").encode())
    assert len(read_systems(path)) == 2


# Faults


@pytest.mark.parametrize(("text", "frame", "message"), [
    (water() + water("REF_energy=nan"), 1, "finite energy"),
    (water() + water("REF_energy=high"), 1, "'REF_energy'"),
    (water() + water().replace("0.12", "nan"), 1, "finite positions"),
    (water() + water().replace("0.3 ", "inf "), 1, "finite forces"),
    (water(columns="REF_forces:R:2"), 0, r"shape \(3, 2\)"),
    (water() + water().replace("REF_energy", 'REF_stress="1 2 3" REF_energy'), 1, "'REF_stress'"),
    (water() + water('pbc="T T T"'), 1, "cell vector"),
    (water() + water("REF_energy"), 1, "'REF_energy'"),
])
def test_bad_numbers_name_file_and_frame(tmp_path: Path, text: str, frame: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_systems(write(tmp_path, text))
    assert f"file a.xyz, frame {frame}" in error.value.where


@pytest.mark.parametrize(("text", "frame"), [
    (water() + water().replace("H 0.0", "Qq 0.0"), 1),
    (water() + water().replace("0.76", "zero"), 1),
    (water() + "three\n" + water(), 1),
    (water() + "2\nREF_energy=1\nH 0 0 0\n" + water(), 1),
    (water("REF_energy=1", "REF_forces:Q:3"), 0),
])
def test_unreadable_frames_are_named(tmp_path: Path, text: str, frame: int) -> None:
    with pytest.raises(FileError) as error:
        read_systems(write(tmp_path, text))
    assert f"a.xyz, frame {frame}" in error.value.where


def test_every_truncation_is_an_error_or_whole_frames(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.25, forces=atoms.positions + 10.0)
    ase_write(tmp_path / "whole.xyz", [atoms] * 2)
    text = (tmp_path / "whole.xyz").read_text()
    first_ends = len(text) // 2
    whole_frames = {first_ends - 1, first_ends, len(text) - 1}
    for length in (*range(1, first_ends - 5, 11), *range(first_ends - 5, first_ends + 5),
                   *range(first_ends + 5, len(text) - 100, 11), *range(len(text) - 100, len(text))):
        path = write(tmp_path, text[:length], "cut.xyz")
        if length in whole_frames:
            assert len(read_systems(path)) == (1 if length <= first_ends else 2)
            continue
        with pytest.raises(FileError) as error:
            read_systems(path)
        assert f"frame {0 if length < first_ends else 1}" in error.value.where


@pytest.mark.parametrize(("name", "content"), [
    ("a.xyz", b""), ("a.xyz", b"\n \n"), ("a.xyz", b"\xff\xfe\x00"), ("a.xyz.gz", gzip.compress(b"", mtime=0)),
    ("a.xyz.gz", b"not gzip"), ("a.xyz.gz", gzip.compress(water().encode())[:-12]), ("a.traj", b"- of Ulm"),
    ("a.traj.gz", b"not gzip"), ("a.cif", b"data_x\n_cell_length_a what\n"), ("a.foo", b"no such format\n"),
    ("POSCAR", b"\n"), ("a.py", b"raise SystemExit\n"),
])
def test_unusable_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError) as error:
        read_systems(tmp_path / name)
    assert name in error.value.where and error.value.received and error.value.todo


def test_missing_file_and_bad_index(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_systems(tmp_path / "none.xyz")
    path = write(tmp_path, water())
    for index in ("a", "::0", "1:2:3:4"):
        with pytest.raises(DataError, match="index"):
            read_systems(path, index=index)
    with pytest.raises(FileError, match="none of 1"):
        read_systems(path, index="5:")


def test_hand_written_file_without_last_line_end(tmp_path: Path) -> None:
    system, = read_systems(write(tmp_path, "2\n\nH 0.00 0.00 0.00\nH 0.0 0.0 0.7"))
    assert system.formula == "H2"


@needs_data
@pytest.mark.parametrize(("name", "n_frames"), [
    ("3bpa/test_300K", 1669), ("mattersim_bench/mptrj-random-1k", 1000), ("acac/isolated_atoms", 3),
])
def test_real_sets_agree_with_ase_and_survive_a_round_trip(tmp_path: Path, name: str, n_frames: int) -> None:
    path = SHARED / f"{name}.extxyz.gz"
    systems = read_systems(path, require=("energy",))
    assert len(systems) == n_frames
    plain = tmp_path / "plain.xyz"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    atoms: Atoms = ase_read(plain, "-1")
    assert systems[-1].energy == atoms.get_potential_energy()
    if systems[-1].forces is not None:
        assert np.array_equal(systems[-1].forces, atoms.get_forces())
    if systems[-1].stress is not None:
        assert np.array_equal(systems[-1].stress, atoms.get_stress(voigt=False))
    write_systems(tmp_path / "again.xyz", systems[:100])
    again = read_systems(tmp_path / "again.xyz")
    assert [s.structure_hash() for s in again] == [s.structure_hash() for s in systems[:100]]
    assert [s.energy for s in again] == [s.energy for s in systems[:100]]
