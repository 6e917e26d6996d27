"""Generated sets: molecules, what becomes of them, and that a seed says all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.data import vdw_radii

from command import sapis
from sapis.core.files import read_json
from sapis.data.formats import read_systems
from sapis.data.lint import lint
from sapis.data.store import Store
from sapis.data.system import System, hash_systems
from sapis.executors.executor import LocalExecutor
from sapis.generate.card import SAMPLE, sampled
from sapis.generate.displacements import (
    Conformer,
    SOFTEST_eV_A2,
    conformer,
    displaced,
    is_plausible,
    paired,
    spread_out,
    stretched,
    turned,
    vibrated,
)
from sapis.generate.molecules import molecules
from sapis.generate.organic import LABELS, STRUCTURES, OrganicConfig, Task, frames_of, make_structures, plan_tasks
from sapis.simulate.structures import load_structure

Chem = pytest.importorskip("rdkit.Chem", reason="RDKit is not installed")
pytest.importorskip("tblite", reason="tblite is not installed")


def shape(smiles: str) -> Conformer:
    (start,) = load_structure(smiles, n_conformers=1)
    return conformer(Chem.AddHs(Chem.MolFromSmiles(smiles)), start)


def test_molecules_are_different_valid_small_and_those_of_the_seed() -> None:
    found = molecules(900, 0)
    assert len(set(found)) == 900 and molecules(900, 0) == found and molecules(900, 1) != found
    elements: set[str] = set()
    for smiles in found:
        molecule = Chem.MolFromSmiles(smiles)
        assert Chem.MolToSmiles(molecule) == smiles and abs(Chem.GetFormalCharge(molecule)) <= 1
        elements |= {atom.GetSymbol() for atom in Chem.AddHs(molecule).GetAtoms()}
    assert elements == {"H", "C", "N", "O", "F", "P", "S", "Cl", "Br"}


def test_displacements_are_as_many_as_asked_for_and_of_three_kinds() -> None:
    starts = load_structure("CCCO", n_conformers=3)
    frames = displaced("CCCO", starts, 60, [300.0, 600.0], np.random.default_rng(0))
    assert len(frames) == 60 and all(is_plausible(frame) and frame.energy is None for frame in frames)
    assert {frame.tags["source"] for frame in frames} == {"vibration", "torsion", "stretch"}
    assert len({frame.structure_hash() for frame in frames}) == 60
    rigid = displaced("C", load_structure("C"), 9, [300.0], np.random.default_rng(0))
    assert {frame.tags["source"] for frame in rigid} == {"vibration", "stretch"}, "methane has nothing to turn"


def test_vibrations_have_the_temperature_asked_for() -> None:
    start = shape("CCO")
    frames = vibrated(start, np.full(2000, 300.0), np.random.default_rng(0))
    moved = np.array([frame.positions for frame in frames]) - start.system.positions
    assert np.abs(moved.mean(axis=0)).max() < 0.02
    centres = moved.mean(axis=1)
    assert np.abs(centres).max() < 1e-10, "no molecule drifts"
    # The stiffest mode has half kT of potential energy: its variance is kT over the force constant.
    covariance = np.cov(moved.reshape(2000, -1).T)
    softest = np.linalg.eigvalsh(covariance)[-1]
    assert softest == pytest.approx(units.kB * 300 / SOFTEST_eV_A2, rel=0.15)
    assert start.gradient is not None and np.abs(start.gradient(start.system.positions)).max() < 0.1


def test_torsions_keep_bonds_and_stretches_change_one() -> None:
    start = shape("CCOC(=O)N")
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in start.molecule.GetBonds()]

    def lengths(system: System) -> np.ndarray:
        return np.array([np.linalg.norm(system.positions[i] - system.positions[j]) for i, j in bonds])

    rng = np.random.default_rng(0)
    for frame in turned(start, 5, rng):
        assert np.abs(lengths(frame) - lengths(start.system)).max() < 1e-6
        assert np.abs(frame.positions - start.system.positions).max() > 0.1
    for frame in stretched(start, 5, rng):
        ratios = lengths(frame) / lengths(start.system)
        changed = np.abs(ratios - 1) > 1e-6
        assert changed.sum() == 1 and ratios[changed][0] == pytest.approx(float(frame.tags["factor"]), abs=1e-3)


@pytest.mark.parametrize("scale", [0.85, 1.0, 2.0])
def test_pairs_are_as_far_apart_as_they_should_be(scale: float) -> None:
    one, other = load_structure("CCO", n_conformers=1)[0], load_structure("[NH4+]", n_conformers=1)[0]
    pair = paired(one, other, np.random.default_rng(3), scale=scale)
    radii = vdw_radii[pair.numbers]
    n = len(one)
    apart = np.linalg.norm(pair.positions[:n, None] - pair.positions[None, n:], axis=2) / (radii[:n, None] + radii[None, n:])
    assert apart.min() == pytest.approx(scale, abs=1e-6) and pair.charge == 1


def test_the_most_different_are_kept() -> None:
    base = np.array([[0, 0, 0], [0, 0, 1.0]])
    systems = [System([1, 1], base * (1 + 0.001 * k)) for k in range(10)] + [System([1, 1], base * 2)]
    assert [len(spread_out(systems, n)) for n in (2, 20)] == [2, 11]
    assert spread_out(systems, 2)[1] is systems[-1]
    assert is_plausible(systems[0]) and not is_plausible(System([1, 1], base * 0.3))


def small(**changes: object) -> OrganicConfig:
    return OrganicConfig(n_molecules=30, n_clusters=2, n_vibrations=2, n_md=2, n_pairs=1, **changes)  # type: ignore[arg-type]


def test_a_task_is_the_same_to_the_last_bit() -> None:
    config = small()
    task = Task(14, "CCO")  # a multiple of md_every: dynamics
    first, second = frames_of(task, config), frames_of(task, config)
    assert {str(frame.tags["source"]) for frame in first} >= {"conformer", "md", "stretch", "pair"}
    assert all(one.positions.tobytes() == two.positions.tobytes() for one, two in zip(first, second, strict=True))
    water = frames_of(Task(3, "[Cl-]", 2), config)
    assert len(water) == config.n_md and water[0].charge == -1 and len(water[0]) == 7


@pytest.mark.slow
def test_the_command_makes_a_set_with_its_card(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("{n_molecules: 30, n_clusters: 2, n_vibrations: 2, n_md: 2, n_pairs: 1}")
    ending = sapis("data", "generate", "organic", tmp_path / "set", "--config", settings, "--workers", "2")
    assert ending.code == 0, ending.text
    card = read_json(tmp_path / "set" / "card.json")
    with Store(tmp_path / "set" / LABELS) as labels:
        assert len(labels) == card["n_structures"] - sum(card["left_out"].values()) == card["n_frames"] > 150
        assert labels.level == "GFN2-xTB" and labels.isolated["GFN2-xTB"]
        sample = read_systems(tmp_path / "set" / SAMPLE)
        assert hash_systems(sample) == hash_systems([labels[i] for i in sampled(len(labels))])
        assert not [finding for finding in lint(list(labels)) if finding.severity == "error"]
        assert max(float(np.linalg.norm(system.forces, axis=1).max()) for system in labels) <= 30.0
    assert (tmp_path / "set" / "card.png").stat().st_size > 10_000 and "GFN2-xTB" in (tmp_path / "set" / "card.md").read_text()

    # Stopped half-way and gone on with, by another number of processes, it is the same set.
    config = small()
    with Store.create(tmp_path / "other") as store:
        make_structures(store, plan_tasks(config)[:10], config, LocalExecutor(1))
        make_structures(store, plan_tasks(config), config, LocalExecutor(2))
        with Store(tmp_path / "set" / STRUCTURES) as whole:
            assert store.content_hash == whole.content_hash

    again = sapis("data", "generate", "organic", tmp_path / "set", "--config", settings)
    assert again.code == 0 and read_json(tmp_path / "set" / "card.json")["content_hash"] == card["content_hash"]
    other = sapis("data", "generate", "organic", tmp_path / "set", "--seed", "1")
    assert other.code == 2 and "these settings" in other.text
