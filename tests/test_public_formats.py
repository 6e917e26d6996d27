"""Formats of public sets: real files where there are some, else files written by the published layout."""

from __future__ import annotations

import io
import json
import lzma
import os
import pickle
import sys
import tarfile
import types
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from ase.units import Bohr, Hartree, kcal, mol

from sapis.core.errors import ConfigError, DataError, FileError
from sapis.core.files import json_text
from sapis.data.convert import convert, summarise
from sapis.data.formats import LabelKeys, format_of, iterate_systems, read_systems, write_systems
from sapis.data.store import Store
from sapis.data.system import System

H2O = np.array([8, 1, 1])
RANDOM = np.random.default_rng(3)


def waters(n: int, *, is_periodic: bool = False) -> list[System]:
    base = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    cell = np.diag([4.0, 5.0, 6.0]) + 0.1 if is_periodic else np.zeros((3, 3))
    stress = RANDOM.normal(size=(3, 3)) * 0.01
    return [
        System(numbers=H2O, positions=base + 0.05 * RANDOM.normal(size=(3, 3)), energy=-2080.0 + RANDOM.normal(),
               forces=RANDOM.normal(size=(3, 3)), cell=cell, pbc=np.full(3, is_periodic), level="PBE",
               stress=stress + stress.T if is_periodic else None)
        for _ in range(n)
    ]


def assert_same(found: list[System], expected: list[System], *, rtol: float = 0.0) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.numbers, b.numbers)
        assert np.array_equal(a.pbc, b.pbc)
        assert (a.charge, a.spin) == (b.charge, b.spin)
        for name in ("positions", "cell", "energy", "forces", "stress"):
            mine, other = getattr(a, name), getattr(b, name)
            assert (mine is None) == (other is None), name
            assert mine is None or np.allclose(mine, other, rtol=rtol, atol=0.0), name


# Real files


def test_the_splits_of_revised_md17(shared_data: Path) -> None:
    path = shared_data / "rmd17" / "rmd17_ethanol_split01.npz"
    systems = read_systems(path)
    with np.load(path) as arrays:
        assert len(systems) == len(arrays["E_train"]) + len(arrays["E_test"])
        assert systems[3].energy == arrays["E_train"][3]
        assert np.array_equal(systems[1000].positions, arrays["R_test"][0].astype(float))
        assert np.array_equal(systems[1000].forces, arrays["F_test"][0].astype(float))  # type: ignore[arg-type]
        assert systems[1000].tags["md17_index"] == arrays["idx_test"][0]
    assert [systems[i].tags["part"] for i in (0, 999, 1000)] == ["train", "train", "test"]


def test_qm9_in_one_archive(shared_data: Path) -> None:
    path = shared_data / "qm9" / "qm9.npz"
    first = read_systems(path, index=":100")
    assert [system.formula for system in first[:3]] == ["CH4", "H3N", "H2O"]  # as in the publication
    assert first[0].energy == pytest.approx(-40.47893 * Hartree, abs=1e-3)
    by_enthalpy = read_systems(path, index=":3", keys=LabelKeys(energy="H"))
    assert by_enthalpy[0].energy == first[0].tags["H"]
    with pytest.raises(FileError, match="'total'"):
        read_systems(path, keys=LabelKeys(energy="total"))


# Files written by the published layouts


def test_md17_as_published_is_in_kcal_per_mol(tmp_path: Path) -> None:
    systems = waters(4)
    unit = kcal / mol
    arrays: dict[str, Any] = {
        "z": H2O, "R": np.stack([system.positions for system in systems]),
        "E": np.array([[system.energy / unit] for system in systems if system.energy]),
        "F": np.stack([system.forces / unit for system in systems if system.forces is not None]),
    }
    np.savez(tmp_path / "md17.npz", **arrays)
    assert_same(read_systems(tmp_path / "md17.npz"), systems, rtol=1e-14)
    np.savez(tmp_path / "units.npz", **arrays | {"E": arrays["E"] * unit, "F": arrays["F"] * unit / 10, "R": arrays["R"] / 10,
                                                 "e_unit": b"eV", "r_unit": b"nm"})
    with pytest.raises(AssertionError):  # forces of the file are eV/nm: ten times too small if they were not
        assert_same(read_systems(tmp_path / "units.npz"), systems, rtol=1e-14)
    np.savez(tmp_path / "units.npz", **arrays | {"E": arrays["E"] * unit, "F": arrays["F"] * unit * 10, "R": arrays["R"] / 10,
                                                 "e_unit": b"eV", "r_unit": b"nm"})
    assert_same(read_systems(tmp_path / "units.npz"), systems, rtol=1e-13)
    np.savez(tmp_path / "ev.npz", **arrays | {"E": arrays["E"] * unit})
    with pytest.raises(DataError, match="fits eV"):
        read_systems(tmp_path / "ev.npz")
    np.savez(tmp_path / "odd.npz", **arrays, e_unit=b"rydberg")
    with pytest.raises(DataError, match="rydberg"):
        read_systems(tmp_path / "odd.npz")


def test_revised_md17_as_published(tmp_path: Path) -> None:
    systems, unit = waters(3), kcal / mol
    np.savez(tmp_path / "a.npz", nuclear_charges=H2O, coords=np.stack([system.positions for system in systems]),
             energies=np.array([system.energy / unit for system in systems if system.energy]), old_indices=np.array([7, 8, 9]),
             forces=np.stack([system.forces / unit for system in systems if system.forces is not None]))
    found = read_systems(tmp_path / "a.npz")
    assert_same(found, systems, rtol=1e-14)
    assert (found[1].tags["md17_index"], found[1].level) == (8, "PBE/def2-SVP")


def test_padded_molecules(tmp_path: Path) -> None:
    positions, numbers = np.zeros((2, 4, 3)), np.zeros((2, 4), dtype=int)
    pair = System(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0.7]], energy=-31.0, forces=np.ones((2, 3)), charge=1)
    systems = [waters(1)[0], pair]
    forces = np.zeros((2, 4, 3))
    for i, system in enumerate(systems):
        atoms = len(system)
        positions[i, :atoms], numbers[i, :atoms], forces[i, :atoms] = system.positions, system.numbers, system.forces
    energies = [system.energy for system in systems]
    np.savez(tmp_path / "a.npz", R=positions, Z=numbers, N=[3, 2], E=energies, F=forces, Q=[0.0, 1.0])
    assert_same(read_systems(tmp_path / "a.npz"), systems)


def test_archives_that_are_not_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(FileError, match="nuclear_charges"):
        read_systems(tmp_path / "a.npz")
    np.savez(tmp_path / "o.npz", z=np.array([{}], dtype=object), R=np.zeros((1, 1, 3)))
    with pytest.raises(FileError, match="run code"):
        read_systems(tmp_path / "o.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:60])
    with pytest.raises(FileError, match="whole NumPy archive"):
        read_systems(tmp_path / "cut.npz")


METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\
\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 8.*^-3\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def test_qm9_as_published(tmp_path: Path) -> None:
    (tmp_path / "dsgdb9nsd_000001.xyz").write_text(METHANE)
    with tarfile.open(tmp_path / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
        for number in (1, 2):
            text = METHANE.replace("gdb 1", f"gdb {number}").encode()
            member = tarfile.TarInfo(f"dsgdb9nsd_{number:06d}.xyz")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    (alone,), both = read_systems(tmp_path / "dsgdb9nsd_000001.xyz"), read_systems(tmp_path / "dsgdb9nsd.xyz.tar.bz2")
    assert alone.formula == "CH4"
    assert alone.positions[0, 2] == 8e-3
    assert alone.energy == -40.47893 * Hartree
    assert alone.tags["gap"] == 0.5048 * Hartree
    assert (alone.tags["smiles"], alone.level) == ("C", "B3LYP/6-31G(2df,p)")
    assert [system.tags["qm9_index"] for system in both] == [1, 2]
    (tmp_path / "bad.xyz").write_text(METHANE.replace("\t6.469", ""))
    with pytest.raises(FileError, match="15 properties"):
        read_systems(tmp_path / "bad.xyz")
    cut = (tmp_path / "dsgdb9nsd.xyz.tar.bz2").read_bytes()[:-40]
    (tmp_path / "cut.tar.bz2").write_bytes(cut)
    with pytest.raises(FileError, match="tar archive"):
        read_systems(tmp_path / "cut.tar.bz2")


def test_spice_and_ani(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    systems = waters(3)
    positions = np.stack([system.positions for system in systems])
    energies = np.array([system.energy for system in systems], dtype=float)
    forces = np.stack([system.forces for system in systems if system.forces is not None])
    with h5py.File(tmp_path / "spice.hdf5", "w") as file:
        group = file.create_group("water")
        group["atomic_numbers"], group["conformations"] = H2O, positions / Bohr
        group["dft_total_energy"], group["dft_total_gradient"] = energies / Hartree, -forces / Hartree * Bohr
        group["smiles"], group["subset"] = ["[H:1][O+:2]([H:3])[H:4]"], ["test"]
    found = read_systems(tmp_path / "spice.hdf5")
    assert [system.charge for system in found] == [1, 1, 1]
    assert np.allclose([system.energy for system in found], energies, rtol=1e-14)  # type: ignore[arg-type]
    assert np.allclose([system.forces for system in found], forces, rtol=1e-13)  # type: ignore[arg-type]
    assert np.allclose([system.positions for system in found], positions, rtol=1e-13)
    with h5py.File(tmp_path / "ani.h5", "w") as file:
        group = file.create_group("H2O")
        group["atomic_numbers"], group["coordinates"] = H2O, positions
        group["wb97x_dz.energy"] = np.array([energies[0] / Hartree, np.nan, energies[2] / Hartree])
        group["wb97x_dz.forces"] = forces / Hartree
        group["ccsd(t)_cbs.energy"] = np.array([np.nan, 1.0, np.nan])
    ani = read_systems(tmp_path / "ani.h5")
    assert_same(ani, [systems[0], systems[2]], rtol=1e-13)
    best = read_systems(tmp_path / "ani.h5", keys=LabelKeys(energy="ccsd(t)_cbs.energy"))
    assert [(system.energy, system.forces, system.level) for system in best] == [(Hartree, None, "CCSD(T)/CBS")]
    with pytest.raises(FileError, match="ccsd"):
        read_systems(tmp_path / "ani.h5", keys=LabelKeys(energy="none.energy"))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "ani.h5").read_bytes()[:300])
    with pytest.raises(FileError, match="HDF5"):
        read_systems(tmp_path / "cut.h5")


@pytest.mark.parametrize("is_periodic", [False, True])
def test_deepmd_folders(tmp_path: Path, is_periodic: bool) -> None:
    systems = waters(5, is_periodic=is_periodic)
    write_systems(tmp_path / "in.extxyz", systems)
    convert([tmp_path / "in.extxyz"], tmp_path / "out.deepmd")
    assert np.array_equal(np.loadtxt(tmp_path / "out.deepmd" / "type.raw"), [1, 0, 0])
    assert format_of(tmp_path / "out.deepmd").name == "deepmd/npy"
    assert_same(read_systems(tmp_path / "out.deepmd"), systems, rtol=1e-13)
    with pytest.raises(FileError, match="already"):  # else sets of two conversions would lie side by side
        convert([tmp_path / "in.extxyz"], tmp_path / "out.deepmd")
    if is_periodic:
        virial = np.load(tmp_path / "out.deepmd" / "set.000" / "virial.npy")
        assert np.allclose(virial[0].reshape(3, 3), -systems[0].stress * systems[0].volume)  # type: ignore[operator]
    padded = np.tile([1, 0, 0], (5, 1))  # the mixed layout, in which a negative type fills up
    padded[2] = [1, 0, -1]
    np.save(tmp_path / "out.deepmd" / "set.000" / "real_atom_types.npy", padded)
    assert [len(system) for system in read_systems(tmp_path / "out.deepmd")] == [3, 3, 2, 3, 3]
    np.save(tmp_path / "out.deepmd" / "set.000" / "real_atom_types.npy", padded + 3)
    with pytest.raises(FileError, match="types from 0 to 1"):
        read_systems(tmp_path / "out.deepmd")
    (tmp_path / "out.deepmd" / "set.000" / "real_atom_types.npy").unlink()
    np.save(tmp_path / "out.deepmd" / "set.000" / "energy.npy", np.zeros(3))
    with pytest.raises(FileError, match="frames in each part"):
        read_systems(tmp_path / "out.deepmd")


def ase_lmdb(path: Path, systems: list[System], infos: list[dict[str, Any]]) -> None:
    """By the published layout: rows of ASE's database as compressed JSON under decimal keys."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db.row import atoms2dict
    from ase.io.jsonio import encode

    def packed(value: Any) -> bytes:
        return zlib.compress(encode(value).encode())

    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for number, (system, info) in enumerate(zip(systems, infos, strict=True), 1):
            atoms = system.without_labels().to_atoms()
            atoms.calc = SinglePointCalculator(atoms, energy=system.energy, forces=system.forces)
            row = atoms2dict(atoms) | {
                "ctime": 0.0, "mtime": 0.0, "user": "", "key_value_pairs": {"source": "test"}, "data": info,
                "energy": system.energy, "forces": system.forces, "calculator": "unknown",
            }
            transaction.put(str(number).encode(), packed(row))
        transaction.put(b"nextid", packed(len(systems) + 1))


def test_ase_lmdb(tmp_path: Path) -> None:
    systems = waters(12)
    infos: list[dict[str, Any]] = [{"charge": i % 2, "spin": 1 + i % 2, "long": [1, 2]} for i in range(12)]
    ase_lmdb(tmp_path / "a.aselmdb", systems, infos)
    found = read_systems(tmp_path / "a.aselmdb")
    assert [(system.charge, system.spin) for system in found] == [(i % 2, 1 + i % 2) for i in range(12)]
    assert found[0].tags["source"] == "test"
    assert [system.energy for system in found] == [system.energy for system in systems]
    assert np.array_equal(found[11].forces, systems[11].forces)  # type: ignore[arg-type]
    with lmdb.open(str(tmp_path / "a.aselmdb"), subdir=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"3", b"damaged")
    with pytest.raises(FileError, match="ASE-LMDB"):
        read_systems(tmp_path / "a.aselmdb")


# OC20


def oc20_text(folder: Path, systems: list[System], *, suffix: str = "") -> None:
    folder.mkdir()
    lines = []
    for system in systems:
        rows = "".join(f"{symbol} {' '.join(map(repr, position))} {'FT'[atom > 0]} {1} {' '.join(map(repr, force))}\n"
                       for atom, (symbol, position, force) in enumerate(zip(
                           "OHH", system.positions.tolist(), system.forces.tolist(), strict=True)))  # type: ignore[union-attr]
        cell = " ".join(map(repr, system.cell.ravel().tolist()))
        lines.append(f'3\nLattice="{cell}" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
                     f'energy={system.energy!r} free_energy=0.5 pbc="T T T"\n{rows}')
    table = "".join(f"random{i},frame{10 * i},{-1000.0 - i}\n" for i in range(len(systems)))
    for name, text in (("0.extxyz", "".join(lines)), ("0.txt", table)):
        data = text.encode()
        (folder / f"{name}{suffix}").write_bytes(lzma.compress(data) if suffix else data)


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_oc20_text(tmp_path: Path, suffix: str) -> None:
    systems = waters(3, is_periodic=True)
    oc20_text(tmp_path / "s2ef", systems, suffix=suffix)
    found = read_systems(tmp_path / "s2ef")
    expected = [system.energy + 1000.0 + i for i, system in enumerate(systems) if system.energy is not None]
    assert [system.energy for system in found] == expected
    assert np.array_equal(found[2].forces, systems[2].forces)  # type: ignore[arg-type]
    assert np.array_equal(found[2].positions, systems[2].positions)
    assert [(system.tags["trajectory"], system.tags["step"], system.tags["n_fixed"]) for system in found] == [
        ("random0", 0, 1), ("random1", 10, 1), ("random2", 20, 1)]
    totals = read_systems(tmp_path / "s2ef", keys=LabelKeys(energy="energy"))
    assert [system.energy for system in totals] == [system.energy for system in systems]
    assert found[0].level != totals[0].level
    table = tmp_path / "s2ef" / f"0.txt{suffix}"
    text = b"random0,frame0,-1000.0\n"
    table.write_bytes(lzma.compress(text) if suffix else text)
    with pytest.raises(FileError, match="a line"):
        read_systems(tmp_path / "s2ef")


@pytest.fixture
def make_data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A class with the name and the pickled form of PyTorch Geometric's `Data` (which is not needed to read it)."""
    for name in ("torch_geometric", "torch_geometric.data", "torch_geometric.data.data", "torch_geometric.data.storage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class GlobalStorage:
        def __init__(self, fields: dict[str, Any]) -> None:
            self._mapping = fields

    class Data:
        def __init__(self, fields: dict[str, Any], *, is_old: bool) -> None:
            self.__dict__ = dict(fields) if is_old else {"_store": GlobalStorage(fields), "_edge_attr_cls": None}

    for owner, cls in (("torch_geometric.data.data", Data), ("torch_geometric.data.storage", GlobalStorage)):
        cls.__module__, cls.__qualname__ = owner, cls.__name__
        setattr(sys.modules[owner], cls.__name__, cls)
    return Data


def write_lmdb(path: Path, objects: list[Any]) -> None:
    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i, item in enumerate(objects):
            transaction.put(str(i).encode(), item if isinstance(item, bytes) else pickle.dumps(item, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(objects)))


@pytest.mark.parametrize("is_old", [True, False])
def test_oc20_lmdb(tmp_path: Path, make_data: Callable[..., Any], is_old: bool) -> None:
    systems = waters(12, is_periodic=True)

    def fields(system: System) -> dict[str, Any]:
        return {"pos": torch.tensor(system.positions), "cell": torch.tensor(system.cell)[None], "natoms": 3, "sid": 4, "fid": 5,
                "atomic_numbers": torch.tensor(system.numbers, dtype=torch.float32), "y": system.energy,
                "force": torch.tensor(system.forces), "fixed": torch.tensor([1, 0, 0])}

    write_lmdb(tmp_path / "data.0000.lmdb", [make_data(fields(system), is_old=is_old) for system in systems])
    found = read_systems(tmp_path)
    for system, expected in zip(found, systems, strict=True):
        assert system.energy == expected.energy
        assert np.array_equal(system.forces, expected.forces)  # type: ignore[arg-type]
        assert np.array_equal(system.cell, expected.cell)
    assert {key: found[3].tags[key] for key in ("sid", "fid", "n_fixed")} == {"sid": 4, "fid": 5, "n_fixed": 1}
    relaxed = fields(systems[0]) | {"y_init": -1.0, "y_relaxed": -2.0, "pos_relaxed": torch.tensor(systems[1].positions)}
    write_lmdb(tmp_path / "is2re.lmdb", [make_data(relaxed, is_old=is_old)])
    first, last = read_systems(tmp_path / "is2re.lmdb")
    assert (first.energy, first.tags["stage"], last.energy, last.tags["stage"]) == (-1.0, "initial", -2.0, "relaxed")
    assert np.array_equal(last.positions, systems[1].positions)


class Harmful:
    """What a pickle can do to who loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path: Path, make_data: Callable[..., Any]) -> None:
    harm = Harmful(tmp_path / "harm")
    for name, item in {"bare": harm, "inside": make_data({"pos": harm}, is_old=True)}.items():
        write_lmdb(tmp_path / f"{name}.lmdb", [item])
        with pytest.raises(FileError):
            read_systems(tmp_path / f"{name}.lmdb")
        assert not (tmp_path / "harm").exists()
    write_lmdb(tmp_path / "cut.lmdb", [pickle.dumps(make_data({"pos": torch.zeros(9, 3)}, is_old=True))[:-30]])
    with pytest.raises(FileError, match="OC20"):
        read_systems(tmp_path / "cut.lmdb")


# Anywhere to anywhere


@pytest.mark.parametrize("is_periodic", [False, True])
@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz.gz", "a.npz", "a.deepmd", "a.traj", "a.db", "store"])
def test_conversion_keeps_every_number(tmp_path: Path, name: str, is_periodic: bool) -> None:
    systems = waters(6, is_periodic=is_periodic)
    write_systems(tmp_path / "in.extxyz", systems)
    done = convert([tmp_path / "in.extxyz"], tmp_path / name)
    assert (done.n_read, done.n_new, done.n_total) == (6, 6, 6)
    found = read_systems(tmp_path / name)
    if name == "a.npz" and is_periodic:  # the layout has no stress
        systems = [replace(system, stress=None) for system in systems]
    assert_same(found, systems, rtol=1e-13)


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db", "a.json", "store"])
def test_conversion_keeps_charge_multiplicity_and_level(tmp_path: Path, name: str) -> None:
    systems = [replace(system, charge=-1, spin=2) for system in waters(3)]
    write_systems(tmp_path / "in.extxyz", systems)
    convert([tmp_path / "in.extxyz"], tmp_path / name)
    assert [(each.charge, each.spin, each.level) for each in read_systems(tmp_path / name)] == [(-1, 2, systems[0].level)] * 3
    with pytest.raises(DataError, match="holds no charge"):
        convert([tmp_path / "in.extxyz"], tmp_path / "a.deepmd")


def test_the_same_conversion_goes_on(tmp_path: Path) -> None:
    systems = waters(30)
    write_systems(tmp_path / "a.extxyz", systems[:20])
    write_systems(tmp_path / "b.extxyz", systems[10:])
    paths = [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    assert convert(paths[:1], tmp_path / "s").n_new == 20
    assert (done := convert(paths, tmp_path / "s", licence="CC0")).n_read == 40
    assert (done.n_new, done.n_total) == (10, 30)
    with Store(tmp_path / "s") as store:
        assert [(source["name"], source["n_new"]) for source in store.manifest["sources"]] == [("a.extxyz", 20), ("b.extxyz", 10)]
    assert convert(paths, tmp_path / "s").n_new == 0
    with pytest.raises(ConfigError, match="none of the inputs"):
        convert([tmp_path / "s"], tmp_path / "s")
    with pytest.raises(ConfigError, match="an output among"):
        convert(paths, tmp_path / "a.docx")


def test_summary_of_a_real_set(shared_data: Path) -> None:
    summary = summarise(iterate_systems(shared_data / "acac" / "train_300K.extxyz.gz"))
    assert (summary.n_frames, summary.n_atoms, summary.formulas) == (500, 7500, 1)
    assert summary.elements == {"H": 4000, "C": 2500, "O": 1000}
    assert summary.n_labelled == {"energy": 500, "forces": 500}


def test_what_has_no_labels_has_a_summary_in_json(tmp_path: Path) -> None:
    write_systems(tmp_path / "a.xyz", [replace(system, energy=None, forces=None) for system in waters(2)])
    summary = json.loads(json_text(summarise(iterate_systems(tmp_path / "a.xyz")).to_json()))
    assert (summary["n_frames"], summary["force_rms"], summary["energy_range"]) == (2, None, [None, None])


def test_keys_cannot_be_named_where_the_format_has_its_own(tmp_path: Path) -> None:
    Store.create(tmp_path / "s").close()
    with pytest.raises(ConfigError, match="no key for forces"):
        list(iterate_systems(tmp_path / "s", keys=LabelKeys(forces="f")))


def test_a_better_key_late_in_a_file_is_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapis.data.formats.labels.N_FRAMES_FOR_KEYS", 3)
    frame = "1\nProperties=species:S:1:pos:R:3 energy=-1.0{}\nH 0 0 0\n"
    (tmp_path / "a.xyz").write_text(frame.format("") * 4 + frame.format(" REF_energy=-2.0"))
    with pytest.raises(DataError, match="REF_energy for the first time"):
        read_systems(tmp_path / "a.xyz")
    assert len(read_systems(tmp_path / "a.xyz", keys=LabelKeys(energy="energy"))) == 5
