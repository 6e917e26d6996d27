"""Total charge, multiplicity and level of theory: what a model knows of them, and what it makes of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from command import sapis
from conftest import ELEMENTS, cluster, crystal, small_config, small_potential
from sapis.api import load, save
from sapis.core.errors import DataError, ModelError, TrainingError
from sapis.data.batch import collate
from sapis.data.conditions import Conditions
from sapis.data.formats import read_systems, write_systems
from sapis.data.lint import lint
from sapis.data.system import System
from sapis.model.backend import BACKENDS, backend
from sapis.model.growth import Growth, grow, larger_config
from sapis.model.potential import TransformerPotential
from sapis.testing.laws import check_potential
from sapis.training.config import TrainingConfig
from sapis.training.fit import at_new_level, new_potential
from sapis.training.loop import Training
from sapis.training.muon import Muon
from sapis.training.optimizer import weight_groups

KNOWN = Conditions(charges=(-1, 0, 1), spins=(1, 2), levels=("GFN2-xTB", "PBE"))
ROWS = [[-13.5, -1030.0, -2040.0], [-13.0, -1028.0, -2030.0]]


def potential_of(conditions: Conditions = KNOWN, rows: list[list[float]] = ROWS, **changes: int) -> TransformerPotential:
    """One whose conditions matter."""
    potential = TransformerPotential(small_config(**changes), elements=ELEMENTS, reference_energies=rows, scale=1.3,
                                     average_neighbors=5.0, precision="float64", conditions=conditions)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in potential.named_parameters():
            if "conditions" in name or "level_weights" in name:
                weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return potential


def ion(seed: int = 0, **changes: object) -> System:
    return replace(cluster(6, seed), **{"level": "PBE", **changes})


SYSTEMS = [ion(), ion(charge=-1), ion(charge=1, spin=2), ion(level="GFN2-xTB"), replace(crystal(4), level="PBE")]


def test_what_systems_hold_is_what_a_model_knows() -> None:
    assert Conditions.of(SYSTEMS) == Conditions((-1, 0, 1), (1, 2), ("GFN2-xTB", "PBE"))
    assert Conditions.of([cluster(3)]) == Conditions((0,), (1,), ())
    assert Conditions.of([cluster(3)]).told_apart == {}
    assert KNOWN.indices(ion(charge=1, spin=2)).tolist() == [2, 1, 1]
    assert Conditions(levels=("PBE",)).indices(cluster(3)).tolist() == [0, 0, 0]  # what was not recorded passes
    assert Conditions((0,), (1,)) | Conditions((-1,), (2,), ("PBE",)) == Conditions((-1, 0), (1, 2), ("PBE",))
    with pytest.raises(DataError, match="as other frames have"):
        Conditions.of([ion(), cluster(3)])
    with pytest.raises(ModelError, match="ascending"):
        Conditions(charges=(1, 0))


@pytest.mark.parametrize(("changes", "words"), [
    ({"charge": 2}, "total charge that the model knows (-1, 0, 1)"), ({"spin": 3}, "multiplicity 2S+1 that the model knows"),
    ({"level": "B3LYP"}, "B3LYP"),
    ({"level": ""}, "name one of them"),
])
def test_an_unknown_one_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        potential_of().predict([ion(**changes)])


def test_a_model_of_neutral_molecules_refuses_ions() -> None:
    potential = new_potential([replace(cluster(), energy=1.0, forces=np.zeros((6, 3)))], {}, small_config(), precision="float64",
                              seed=0)[0]
    assert potential.conditions == Conditions((0,), (1,), ())
    with pytest.raises(ModelError, match="total charge"):
        potential.predict([replace(cluster(), charge=1)])


def test_each_one_matters() -> None:
    energies = [prediction.energy for prediction in potential_of().predict(SYSTEMS[:4])]
    assert min(abs(a - b) for i, a in enumerate(energies) for b in energies[:i]) > 1e-3


def test_at_first_none_matters_but_reference_energies() -> None:
    known = TransformerPotential(small_config(), elements=ELEMENTS, reference_energies=[ROWS[0], ROWS[0]], scale=1.3,
                                 average_neighbors=8.0, precision="float64", conditions=KNOWN)
    plain = small_potential().predict([cluster(6)])[0]
    plain_energies = [plain.energy + sum(ROWS[0][ELEMENTS.index(z)] for z in cluster(6).numbers.tolist())
                      - sum([-13.5, -1030.0, -2040.0][ELEMENTS.index(z)] for z in cluster(6).numbers.tolist())]
    found = {round(prediction.energy, 9) for prediction in known.predict(SYSTEMS[:4])}
    assert len(found) == 1 and abs(found.pop() - plain_energies[0]) < 1e-8


@pytest.mark.parametrize("system", SYSTEMS[1:], ids=["anion", "cation", "other level", "crystal"])
def test_the_laws_hold(system: System) -> None:
    for check in check_potential(potential_of(), [system]):
        assert check.passed, check


@pytest.mark.parametrize("known", [KNOWN, Conditions((-1, 0, 1), (1, 2), ("GFN2-xTB",)), Conditions((0,), (1,), KNOWN.levels)],
                         ids=["all", "charge and spin", "level"])
def test_all_back_ends_give_the_same(known: Conditions) -> None:
    potential = potential_of(known, ROWS[: len(known.levels)])
    systems = [replace(system, level=known.levels[0] if len(known.levels) == 1 else system.level,
                       charge=system.charge if len(known.charges) > 1 else 0, spin=system.spin if len(known.spins) > 1 else 1,
                       energy=0.1, forces=np.ones((len(system), 3))) for system in SYSTEMS]
    batch = collate([potential.sample(system) for system in systems], cutoff=potential.cutoff, dtype=potential.dtype)
    found = {}
    for chosen in BACKENDS:
        with backend(chosen):
            potential.zero_grad()
            energies, forces, _ = potential(batch, create_graph=True)
            (energies.square().sum() + forces.square().sum()).backward()
            found[chosen] = [energies.detach(), forces.detach(), *(weight.grad for weight in potential.parameters())]
    for chosen in ("compiled", "edges"):
        for value, other in zip(found[chosen], found["padded"], strict=True):
            assert float((value - other).abs().max() / other.abs().max().clamp(min=1e-12)) < 1e-10
    names = [name for name, _ in potential.named_parameters() if "conditions" in name or "level_weights" in name]
    assert len(names) == len(known.told_apart) + ("level" in known.told_apart)
    assert all(potential.get_parameter(name).grad.abs().max() > 1e-6 for name in names)


def test_a_level_without_an_energy_for_an_element_says_so() -> None:
    frames = [System(numbers=[1, 8], positions=[[0, 0, 0], [0, 0, 1.0]], energy=-1.0, forces=np.zeros((2, 3)), level="PBE"),
              System(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0.8]], energy=-0.5, forces=np.zeros((2, 3)), level="GFN2-xTB")]
    potential, references = new_potential(frames, {"PBE": {1: -0.4, 8: -0.5}}, small_config(), precision="float64", seed=0)
    assert set(references) == {"PBE", "GFN2-xTB"} and references["PBE"].values == {1: -0.4, 8: -0.5}
    assert np.isnan(potential.reference_energies).tolist() == [[False, True], [False, False]]
    assert all(np.isfinite(prediction.energy) for prediction in potential.predict(frames))
    with pytest.raises(ModelError, match="elements that the model knows at the level GFN2-xTB"):
        potential.predict([replace(frames[0], level="GFN2-xTB")])
    assert TransformerPotential.from_settings(json.loads(json.dumps(potential.settings(), allow_nan=False))).settings() == (
        potential.settings())
    with pytest.raises(DataError, match="no level"):
        new_potential(frames, {1: -0.4, 8: -0.5}, small_config(), precision="float64", seed=0)
    with pytest.raises(DataError, match="BLYP"):
        new_potential(frames, {"BLYP": {1: -0.4}}, small_config(), precision="float64", seed=0)


def test_a_sample_is_less_the_reference_energies_of_its_level() -> None:
    for level, row in zip(KNOWN.levels, ROWS, strict=True):
        system = ion(level=level, energy=-5.0)
        expected = -5.0 - sum(row[ELEMENTS.index(z)] for z in system.numbers.tolist())
        assert potential_of().sample(system).energy == pytest.approx(expected, abs=1e-9)


def test_files_keep_them(tmp_path: Path) -> None:
    write_systems(tmp_path / "frames.xyz", SYSTEMS)
    found = read_systems(tmp_path / "frames.xyz")
    assert [(s.charge, s.spin, s.level) for s in found] == [(s.charge, s.spin, s.level) for s in SYSTEMS]
    save(tmp_path / "model.sapis", potential_of(), {})
    model = load(tmp_path / "model.sapis")
    assert model.potential.conditions == KNOWN
    for got, expected in zip(model.predict(SYSTEMS), potential_of().predict(SYSTEMS), strict=True):
        assert got.energy == expected.energy


def test_the_calculator_reads_charge_and_spin_and_is_told_the_level(tmp_path: Path) -> None:
    save(tmp_path / "model.sapis", potential_of(), {})
    model = load(tmp_path / "model.sapis")
    atoms = cluster(6).to_atoms()
    atoms.calc = model.calculator(level="PBE")
    for system in SYSTEMS[:3]:  # the same atoms: what was computed before must not be given again
        atoms.info = {"charge": system.charge, "spin": system.spin}
        assert atoms.get_potential_energy() == pytest.approx(potential_of().predict([system])[0].energy, abs=1e-9)
    atoms.info = {"charge": 0.5}
    with pytest.raises(DataError, match="whole number"):
        atoms.get_potential_energy()
    for level in ("", "B3LYP"):
        with pytest.raises(ModelError, match="GFN2-xTB, PBE"):
            model.calculator(level=level)


def test_growth_adds_charges_and_levels_and_keeps_the_function() -> None:
    small = potential_of(Conditions((0,), (1,), ("PBE",)), ROWS[1:])
    more = Conditions((-1, 0), (1,), ("GFN2-xTB",))
    large = grow(small, larger_config(small.config, {"n_channels": 32, "n_layers": 3}), conditions=more,
                 reference_energies={"GFN2-xTB": {1: -13.5, 6: -1030.0, 8: -2040.0, 16: -10821.5}, "PBE": {16: -10800.0}})
    assert large.conditions == Conditions((-1, 0), (1,), ("GFN2-xTB", "PBE")) and large.elements == (1, 6, 8, 16)
    assert large.reference_energies.tolist() == [[-13.5, -1030.0, -2040.0, -10821.5], [*ROWS[1], -10800.0]]
    systems = [SYSTEMS[0], SYSTEMS[4]]
    for got, expected in zip(large.predict(systems), small.predict(systems), strict=True):
        assert got.energy == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(got.forces, expected.forces, atol=1e-10)
    large.predict([SYSTEMS[1], SYSTEMS[3]])
    # From a model that tells levels apart, with a layer more: the last read-out keeps its weights.
    small = potential_of()
    large = grow(small, larger_config(small.config, {"n_layers": 3}), conditions=Conditions((2,), (3,), ("B3LYP",)),
                 reference_energies={"B3LYP": {1: -1.0, 6: -2.0, 8: -3.0}})
    for got, expected in zip(large.predict(SYSTEMS), small.predict(SYSTEMS), strict=True):
        assert got.energy == pytest.approx(expected.energy, abs=1e-9)
    large.predict([ion(charge=2, spin=3, level="B3LYP")])
    with pytest.raises(ModelError, match="one of H at PBE"):
        Growth(small, small.config, reference_energies={"PBE": {1: -13.0}})
    with pytest.raises(ModelError, match="knows its levels"):
        Growth(small_potential(), small_config(), conditions=Conditions(levels=("PBE",)))


def test_two_levels_are_learned_beside_each_other(tmp_path: Path) -> None:
    """Labels of two levels that differ by a scale: one model gives each its own."""
    base = small_potential(seed=7)
    systems = [cluster(5, seed) for seed in range(12)]
    frames = []
    for system, found in zip(systems, base.predict(systems), strict=True):
        remains = found.energy - sum([-13.5, -1030.0, -2040.0][ELEMENTS.index(z)] for z in system.numbers.tolist())
        for level, factor in (("A", 1.0), ("B", -0.7)):
            frames.append(replace(system, energy=factor * remains, forces=factor * found.forces, level=level))
    potential, _ = new_potential(frames, {}, small_config(), precision="float64", seed=0)
    before = _force_errors(potential, frames)
    Training(potential, frames, [], TrainingConfig(epochs=40, batch_size=4, learning_rate=0.01, precision="float64"),
             tmp_path).run()
    after = _force_errors(potential, frames)
    assert all(after[level] < 0.35 * before[level] for level in "AB"), (before, after)


def _force_errors(potential: TransformerPotential, frames: list[System]) -> dict[str, float]:
    found = list(zip(potential.predict(frames), frames, strict=True))
    return {level: float(np.sqrt(np.mean([np.mean((p.forces - s.forces) ** 2) for p, s in found if s.level == level])))
            for level in "AB"}


def test_from_files_to_a_model_of_two_levels_and_on_to_a_third(tmp_path: Path) -> None:
    frames = []
    for seed in range(20):
        found, (level, shift) = small_potential(seed=7).predict([cluster(5, seed)])[0], (("A", 0.0), ("B", 1.0))[seed % 2]
        frames.append(replace(cluster(5, seed), energy=shift + 0.1 * found.energy, forces=0.1 * found.forces, level=level))
    atoms = [System(numbers=[z], positions=np.zeros((1, 3)), energy=-0.1 * z - shift, level=level, spin=2)
             for z in ELEMENTS for level, shift in (("A", 0.0), ("B", 0.5))]
    write_systems(tmp_path / "train.xyz", frames)
    write_systems(tmp_path / "atoms.xyz", atoms)
    write_systems(tmp_path / "new.xyz", [replace(frame, level="C") for frame in frames[::2]])
    (tmp_path / "config.yaml").write_text("model: {preset: nano, cutoff: 3.5}\ntraining: {epochs: 2}\n")
    options = ("--config", tmp_path / "config.yaml", "--n-validation", "4")
    ending = sapis("train", tmp_path / "train.xyz", "--output", tmp_path / "two", "--isolated", tmp_path / "atoms.xyz", *options)
    assert ending.code == 0, ending.text
    path = tmp_path / "two/model.sapis"
    model = load(path)
    assert model.potential.conditions == Conditions((0,), (1,), ("A", "B")) and model.card["level_of_theory"] == "A, B"
    text = sapis("info", path).text
    assert "A, B" in text
    bare = [replace(frame, level="") for frame in frames]
    write_systems(tmp_path / "bare.xyz", bare)
    assert sapis("evaluate", path, tmp_path / "bare.xyz").code == 2
    assert sapis("evaluate", path, tmp_path / "bare.xyz", "--level", "B").code == 0

    write_systems(tmp_path / "one.xyz", bare[:1])
    assert sapis("md", path, tmp_path / "one.xyz", "--time-ps", "0.005").code == 2
    assert sapis("md", path, tmp_path / "one.xyz", "--time-ps", "0.005", "--level", "A").code == 0
    assert "pass" in sapis("check-model", path, tmp_path / "one.xyz", "--level", "A").text

    ending = sapis("train", tmp_path / "new.xyz", "--output", tmp_path / "third", "--start", path, "--n-validation", "4")
    assert ending.code == 2 and "level of theory that the model knows" in ending.text
    energies = [item for symbol in ("H", "C", "O") for item in ("--element", f"{symbol}@C=-1.5")]
    ending = sapis("grow", path, tmp_path / "larger.sapis", "--level", "C", "--charge", "-1", *energies)
    assert ending.code == 0, ending.text
    (tmp_path / "more.yaml").write_text("training: {epochs: 1}\n")
    ending = sapis("train", tmp_path / "new.xyz", "--output", tmp_path / "third", "--start", tmp_path / "larger.sapis",
                   "--config", tmp_path / "more.yaml", "--n-validation", "4")
    assert ending.code == 0, ending.text
    assert load(tmp_path / "third/model.sapis").potential.conditions == Conditions((-1, 0), (1,), ("A", "B", "C"))
    ending = sapis("grow", path, tmp_path / "wrong.sapis", "--level", "C", "--element", "H=-1.5")
    assert ending.code == 2 and "no level" in ending.text


def test_reference_energies_of_a_new_level_are_estimated() -> None:
    """Where two levels differ by atoms alone, the model is right at once."""
    potential, atoms = small_potential(), {1: 2.0, 6: -300.0, 8: 1000.0}
    systems = [cluster(4 + number % 5, seed=number) for number in range(30)]
    shifts = [sum(atoms[int(z)] for z in system.numbers) for system in systems]
    labelled = [replace(system, energy=found.energy + shift, forces=found.forces, level="B")
                for system, found, shift in zip(systems, potential.predict(systems), shifts, strict=True)]
    moved = at_new_level(potential, labelled, "B")
    assert moved.conditions.levels == ("B",)
    found = moved.predict(labelled)
    assert max(abs(one.energy - (other.energy or 0.0)) for one, other in zip(found, labelled, strict=True)) < 1e-3
    assert moved.reference_energies[0] == pytest.approx(potential.reference_energies[0] + [2.0, -300.0, 1000.0], abs=1e-3)
    without_oxygen = [replace(system, numbers=np.where(system.numbers == 8, 6, system.numbers)) for system in labelled]
    with pytest.raises(ModelError, match="O"):
        at_new_level(potential, without_oxygen, "B").predict(labelled)
    with pytest.raises(TrainingError, match="energies"):
        at_new_level(potential, systems, "B")


def test_reference_energies_of_one_of_several_levels_are_estimated() -> None:
    potential, atoms = potential_of(), {1: 2.0, 6: -300.0, 8: 1000.0}
    systems = [replace(cluster(4 + number % 5, seed=number), level="PBE") for number in range(30)]
    shifts = [sum(atoms[int(z)] for z in system.numbers) for system in systems]
    labelled = [replace(system, energy=found.energy + shift, forces=found.forces)
                for system, found, shift in zip(systems, potential.predict(systems), shifts, strict=True)]
    moved = at_new_level(potential, labelled, "")
    assert moved.conditions == potential.conditions
    np.testing.assert_allclose(moved.reference_energies - potential.reference_energies, [[0, 0, 0], [2, -300, 1000]], atol=1e-3)
    with pytest.raises(TrainingError, match="one level"):
        at_new_level(potential, labelled, "C")


def test_training_goes_on_at_another_level(trained_folder: Path, tmp_path: Path) -> None:
    start, data = trained_folder / "out" / "model.sapis", tmp_path / "new.extxyz"
    frames = read_systems(trained_folder / "data.extxyz")
    write_systems(data, [replace(frame, energy=(frame.energy or 0.0) + 7.0 * len(frame), level="new") for frame in frames])
    options = ("--n-validation", "10", "--epochs", "1", "--start", start)
    ending = sapis("train", data, "--output", tmp_path / "out", *options, "--to-level", "new")
    assert ending.code == 0, ending.text
    model, first = load(tmp_path / "out" / "model.sapis"), load(start)
    assert model.card["level_of_theory"] == "new" and model.potential.conditions.levels == ("new",)
    losses = [card["training"]["best_validation_loss"] for card in (first.card, model.card)]
    assert losses[1] < 3 * losses[0], "it begins where the other ended"
    alone = sapis("train", data, "--output", tmp_path / "alone", "--to-level", "new")
    assert alone.code == 2 and "--start" in alone.text


def test_one_structure_at_two_levels_is_no_duplicate() -> None:
    frame = replace(cluster(5), energy=-1.0, forces=np.ones((5, 3)) - 1.0 + np.eye(5, 3) - np.eye(5, 3)[::-1])
    pair = [replace(frame, level="A"), replace(frame, level="B", energy=-7.0)]
    assert not {"duplicate", "conflicting-labels"} & {finding.rule for finding in lint(pair)}
    assert {"duplicate", "conflicting-labels"} <= {finding.rule for finding in lint([replace(f, level="A") for f in pair])}


def test_tables_are_no_matrices_to_the_optimiser() -> None:
    """Rows of an embedding that no atom of a batch uses must not move because others do."""
    potential = TransformerPotential(small_config(), elements=range(1, 11), reference_energies=[0.0] * 10, scale=1.0,
                                     average_neighbors=5.0, precision="float64", conditions=Conditions(tuple(range(-5, 5))))
    optimizer = Muon(weight_groups(potential), lr=0.01)
    batch = collate([potential.sample(cluster(6))], cutoff=potential.cutoff, dtype=potential.dtype)
    before = {name: weight.detach().clone() for name, weight in potential.named_parameters()}
    energies, forces, _ = potential(batch, create_graph=True)
    (energies.square().sum() + forces.square().sum()).backward()
    optimizer.step()
    for name, used in (("transformer.embedding", {0, 5, 7}), ("transformer.conditions.charge", {5})):
        change = (potential.get_parameter(name) - before[name]).abs().amax(1)
        assert set(change.nonzero().flatten().tolist()) == used, name
    assert (potential.get_parameter("transformer.layers.0.update.weight") != before["transformer.layers.0.update.weight"]).all()
