"""A grown model is the same function, whatever grows; all of it learns; its training goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command import sapis
from conftest import ELEMENTS, cluster, crystal, small_potential
from sapis.api import load, save
from sapis.core.errors import ModelError, SapisError
from sapis.core.files import hash_file
from sapis.data.batch import Batch, collate
from sapis.data.conditions import Conditions
from sapis.data.system import System
from sapis.model import growth
from sapis.model.axes import weight_axes
from sapis.model.backend import backend
from sapis.model.config import ModelConfig
from sapis.model.growth import Growth, grow, larger_config
from sapis.model.potential import TransformerPotential
from sapis.potential.bundle import hash_tensors, read_tensors
from sapis.testing.laws import same_function
from sapis.training.config import TrainingConfig
from sapis.training.growth import grow_checkpoint
from sapis.training.loop import BEST, CHECKPOINT, Training
from sapis.training.loss import loss

SMALL = {"n_channels": 32, "n_heads": 4, "n_channels_carried": 8, "n_radial": 3, "l_max": 1, "order": 2}
ALL = {"n_channels": 64, "n_channels_carried": 32, "n_layers": 3, "l_max": 2, "l_max_carried": 2, "order": 3, "n_radial": 4,
       "n_hidden_readout": 16}
WIDER = {"n_channels": 64, "l_max": 2}
SULFUR = {16: -10821.5}
SYSTEMS = [cluster(6), crystal(4)]


def trained(precision: str = "float64", seed: int = 0, **changes: int) -> TransformerPotential:
    """Weights as a training leaves them: nothing is zero, one or a unit matrix any more."""
    potential = small_potential(precision, seed, **{**SMALL, **changes})
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in potential.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02 + 0.3 * float(weight.std(correction=0)))
    return potential


def require_same(small: TransformerPotential, large: TransformerPotential) -> None:
    """By the compiled loops and by matrix products."""
    found = [same_function(small, large, SYSTEMS)]
    with backend("padded"):
        found.append(same_function(small, large, SYSTEMS))
    for check in found:
        assert check.passed, str(check)


# The same function


@pytest.mark.parametrize(("start", "sizes"), [
    ({}, {"n_channels": 64}), ({"n_channels": 16, "n_heads": 2}, {"n_channels_carried": 16}), ({}, {"n_channels_carried": 16}),
    ({}, {"n_layers": 3}), ({"n_layers": 1}, {"n_layers": 2}), ({"n_layers": 1}, {"n_layers": 4}),
    ({}, {"l_max": 2}), ({"l_max": 2}, {"l_max": 4}), ({"l_max_carried": 0}, {"l_max_carried": 1}),
    ({"n_layers": 1, "l_max": 0, "l_max_carried": 0}, {"l_max": 1}),
    ({"l_max": 0, "l_max_carried": 0, "n_channels_carried": 32}, {"l_max": 2, "l_max_carried": 1}),
    ({"l_max": 2, "l_max_product": 0, "order": 3}, {"l_max_product": 2}),
    ({"l_max": 2, "l_max_product": 1, "order": 3}, {"l_max": 3, "l_max_product": 3, "l_max_carried": 2}),
    ({"order": 1}, {"order": 2}), ({}, {"order": 3}), ({"order": 1}, {"order": 3}),
    ({}, {"n_radial": 5}), ({}, {"n_hidden_readout": 16}), ({}, {}),
], ids=str)
def test_each_axis_grows_exactly(start: dict[str, int], sizes: dict[str, int]) -> None:
    small = trained(**start)
    large = grow(small, larger_config(small.config, sizes))
    require_same(small, large)
    assert (large.n_parameters > small.n_parameters) == bool(sizes)
    assert large.settings() == {**small.settings(), "config": large.config.model_dump()}


def test_all_axes_grow_together_and_again() -> None:
    small = trained()
    large = grow(small, larger_config(small.config, ALL), reference_energies=SULFUR)
    require_same(small, large)
    assert large.elements == (1, 6, 8, 16) and large.reference_energies.tolist() == [[-13.5, -1030.0, -2040.0, -10821.5]]
    larger = grow(large, larger_config(large.config, {"n_layers": 5, "n_radial": 5, "n_channels": 96}), seed=1)
    require_same(small, larger)


def test_a_new_element_starts_as_the_one_most_like_it() -> None:
    small = trained()
    large = grow(small, small.config, reference_energies=SULFUR)
    water, sulfide = (System(numbers=[z, 1, 1], positions=np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.2]])) for z in (8, 16))
    one, other = large.predict([water, sulfide])
    assert other.energy - one.energy == pytest.approx(-10821.5 + 2040.0)
    np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)


@pytest.mark.parametrize(("number", "similar"), [(14, 6), (15, 7), (16, 8), (17, 9), (35, 9), (3, 1), (2, 9), (57, 1), (82, 6)])
def test_similar_elements_share_group_then_period(number: int, similar: int) -> None:
    assert growth._most_similar(number, (1, 6, 7, 8, 9)) == similar
    assert growth._most_similar(number, (1, 6, 7, 8, 9, number)) == number


def test_single_precision_grows_to_rounding() -> None:
    small = trained("float32")
    large = grow(small, larger_config(small.config, ALL))
    assert large.dtype == torch.float32
    require_same(small, large)
    require_same(small.with_precision("float64"), large.with_precision("float64"))


def test_the_seed_chooses_what_is_random() -> None:
    small = trained()
    config = larger_config(small.config, {"n_channels": 64})
    hashes = [hash_tensors(dict(grow(small, config, seed=seed).state_dict())) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("changes", [
    {}, {"l_max": 0, "l_max_carried": 0}, {"order": 1, "n_layers": 1}, {"l_max": 3, "order": 3},
], ids=str)
def test_every_weight_has_its_axes(changes: dict[str, int]) -> None:
    transformer = small_potential(**{**SMALL, **changes}).transformer
    axes = weight_axes(transformer, ELEMENTS, Conditions())
    shapes = {name: weight.shape for name, weight in transformer.named_parameters()}
    assert axes.keys() == shapes.keys()
    for name, weight in transformer.named_parameters():
        assert weight.numel() == np.prod([len(axis.labels) for axis in axes[name]]), name
        assert all(len(set(axis.labels)) == len(axis.labels) for axis in axes[name]), name


# Planted faults


def test_a_random_entry_where_a_zero_belongs_is_caught() -> None:
    """In each weight in turn."""
    small = trained()
    grown = Growth(small, larger_config(small.config, ALL), reference_energies=SULFUR)
    large, weights = grown.potential(), grown.weights(dict(small.named_parameters()))
    faults = 0
    for name, place in grown.places.items():
        free = grown.fresh[name].view(place.new_shape)
        zeros = torch.zeros(place.new_shape, dtype=torch.bool)
        zeros[place.made] = True
        zeros[place.targets] = False
        if not zeros.any():
            continue
        wrong = torch.where(zeros, free, weights[name].view(place.new_shape)).view(free.shape)
        large.load_state_dict({**weights, name: wrong.view_as(weights[name])})
        assert not same_function(small, large, SYSTEMS).passed, name
        faults += 1
    assert faults > 20


@pytest.mark.parametrize("what", ["layers.2.keep.weight", "layers.2.update.weight", "layers.2.gate.narrow.weight",
                                  "readouts.1.0.weight"])
def test_a_layer_that_does_not_hand_on_is_caught(what: str) -> None:
    small = trained()
    grown = Growth(small, larger_config(small.config, {"n_layers": 3}))
    large = grown.potential()
    with torch.no_grad():
        large.transformer.get_parameter(what).add_(0.01)
    assert not same_function(small, large, SYSTEMS).passed


def test_channels_at_wrong_places_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(old: Any, new: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
        sources, targets = right(old, new, name)
        return (np.roll(sources, 1) if name.endswith("query.weight") and old.outcomes is None else sources), targets

    right = growth._positions
    monkeypatch.setattr(growth, "_positions", shuffled)
    small = trained()
    assert not same_function(small, grow(small, larger_config(small.config, {"n_channels": 64})), SYSTEMS).passed


# Learning


def labelled(n_frames: int, seed: int = 0) -> list[System]:
    """Molecules with labels of another model."""
    systems = [cluster(5, seed=seed + k) for k in range(n_frames)]
    teacher = small_potential(seed=99, l_max=1, order=2)
    return [replace(system, energy=p.energy, forces=p.forces)
            for system, p in zip(systems, teacher.predict(systems), strict=True)]


def batch_of(systems: list[System], potential: TransformerPotential) -> Batch:
    samples = [replace(potential.sample(system), energy=0.0)
               for system in systems]
    return collate(samples, cutoff=potential.cutoff, dtype=potential.dtype)


def moved(potential: TransformerPotential, steps: int) -> dict[str, torch.Tensor]:
    """Which entries of each weight a few steps of Adam change."""
    before = {name: weight.detach().clone() for name, weight in potential.named_parameters()}
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-3)
    batch = batch_of(labelled(4), potential)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(batch, *potential(batch, create_graph=True), TrainingConfig(epochs=1), potential.scale).backward()
        optimizer.step()
    return {name: weight.detach() != before[name] for name, weight in potential.named_parameters()}


@pytest.mark.parametrize("sizes", [{"n_channels": 64}, {"n_layers": 4}, {"l_max": 2, "l_max_carried": 2}, {"order": 3},
                                   {"n_radial": 4, "n_channels_carried": 16, "n_hidden_readout": 16}, ALL], ids=str)
def test_all_new_weights_learn(sizes: dict[str, int]) -> None:
    """As many as in a new model of that size, after the few steps in which gradients pass what starts at zero."""
    small = trained()
    config = larger_config(small.config, sizes)
    new = TransformerPotential.from_settings({**small.settings(), "config": config.model_dump()})
    learning, possible = moved(grow(small, config), 5), moved(new, 5)
    for name, entries in possible.items():
        assert bool((learning[name] | ~entries).all()), name


def test_what_reads_new_into_old_learns_at_once() -> None:
    small = trained()
    grown = Growth(small, larger_config(small.config, {"n_channels": 64, "n_radial": 4, "order": 3, "l_max": 2}))
    large = grown.potential()
    zeros = {name: (weight == 0) for name, weight in large.named_parameters()}
    learning = moved(large, 1)
    for name in grown.places:
        assert bool((learning[name] | ~zeros[name]).all()), name


# Training goes on


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trainings(folder: Path, sizes: dict[str, int], **changes: Any) -> tuple[Training, Training, Growth]:
    """A small training that ran to half its budget, and a larger one that takes it up."""
    config = TrainingConfig(**{"epochs": 12, "batch_size": 4, "validations": 12, "warmup_steps": 5, "precision": "float64",
                               "learning_rate": 0.01, **changes})
    data = labelled(12), labelled(4, seed=50)
    small = Training(small_potential(**SMALL), *data, config, folder / "small")
    small.run(until=0.5)
    grown = Growth(small_potential(**SMALL), larger_config(small.potential.config, sizes))
    large = Training(grown.potential(), *data, config, folder / "large")
    grow_checkpoint(folder / "small", grown, large)
    return small, large, grown


def names_in_order(training: Training) -> list[str]:
    """Of the weights, as the optimiser numbers them."""
    return [name for group in training.optimizer.param_groups for name in group["names"]]


@pytest.mark.parametrize("optimizer", ["muon", "amsgrad"])
def test_training_goes_on_without_a_jump(tmp_path: Path, optimizer: str) -> None:
    small, large, _ = trainings(tmp_path, WIDER, optimizer=optimizer, epochs=40)
    progress = large.run()
    before, after = small.progress.history, progress.history[len(small.progress.history):]
    assert progress.history[: len(before)] == before and progress.step == 2 * small.progress.step
    assert after[0]["validation_loss"] < 1.2 * before[-1]["validation_loss"]
    assert after[-1]["validation_loss"] < before[-1]["validation_loss"]
    assert after[0]["learning_rate"] < 0.8 * before[-1]["learning_rate"], "the learning rate rises once more"


def test_weights_mean_and_best_are_those_of_the_small_training(tmp_path: Path) -> None:
    _, _, grown = trainings(tmp_path, WIDER)
    for file in (CHECKPOINT, BEST):
        before, after = read_tensors(tmp_path / "small" / file)[0], read_tensors(tmp_path / "large" / file)[0]
        for prefix in ("weights.", "mean.") if file == CHECKPOINT else ("",):
            one, other = small_potential(**SMALL), grown.potential()
            for potential, tensors in ((one, before), (other, after)):
                potential.load_state_dict({name: tensors[prefix + name] for name in potential.state_dict()})
            require_same(one, other)


@pytest.mark.parametrize("optimizer", ["muon", "amsgrad"])
def test_the_state_of_the_optimiser_is_placed(tmp_path: Path, optimizer: str) -> None:
    small, large, grown = trainings(tmp_path, {"n_channels": 64, "order": 3}, optimizer=optimizer)
    large._resume()
    before, state = (one.optimizer.state_dict()["state"] for one in (small, large))
    numbers = {name: index for index, name in enumerate(names_in_order(small))}
    for index, name in enumerate(names_in_order(large)):
        place = grown.places.get(name)
        if place is None:
            assert index not in state, name
            continue
        old = before[numbers[place.origin]]
        assert state[index]["step"] == old["step"]
        moments = [key for key in state[index] if key != "step"]
        assert moments == [key for key in old if key != "step"] and moments
        for moment in moments:
            held = state[index][moment].view(place.new_shape)
            assert torch.equal(held[place.targets], old[moment].view(place.old_shape)[place.sources]), (name, moment)
            new = torch.ones(place.new_shape, dtype=torch.bool)
            new[place.targets] = False
            expected = float(old[moment].mean()) if moment.endswith("_sq") else 0.0
            assert bool((held[new] == expected).all()), (name, moment)


def test_state_of_other_shapes_starts_anew(tmp_path: Path) -> None:
    """What an optimiser keeps of a weight beside numbers and moments, such as factors along its axes, cannot be placed."""
    from sapis.potential.bundle import write_tensors

    small, large, grown = trainings(tmp_path, {"n_hidden_readout": 16})
    (tmp_path / "large" / CHECKPOINT).unlink()
    tensors, header = read_tensors(tmp_path / "small" / CHECKPOINT)
    factors = {f"optimizer.{index}.factor.0": torch.eye(3) for index in range(len(small.parameters))}
    write_tensors(tmp_path / "small" / CHECKPOINT, {**tensors, **factors}, header)
    grow_checkpoint(tmp_path / "small", grown, large)
    kept = read_tensors(tmp_path / "large" / CHECKPOINT)[0]
    for index, name in enumerate(names_in_order(large)):
        assert (f"optimizer.{index}.factor.0" in kept) == grown.places[name].is_same, name


def test_a_grown_checkpoint_is_taken_up_and_not_written_over(tmp_path: Path) -> None:
    _, large, grown = trainings(tmp_path, {"n_layers": 3})
    large.run(until=0.75)
    content = (tmp_path / "large" / CHECKPOINT).read_bytes()
    grow_checkpoint(tmp_path / "small", grown, large)
    assert (tmp_path / "large" / CHECKPOINT).read_bytes() == content
    step = large.progress.step
    assert large.run(until=0.75).step == step and large.run().is_finished


def test_a_budget_of_flops_ends_a_training(tmp_path: Path) -> None:
    budget = 2e9
    small, large, _ = trainings(tmp_path, {"n_channels": 64}, epochs=None, flops=budget)
    assert budget / 2 <= small.progress.flops < 1.2 * budget / 2 and small.progress.step > 5
    progress = large.run()
    assert progress.is_finished and budget <= progress.flops < budget + 2 * (progress.flops - small.progress.flops) / (
        progress.step - small.progress.step)


# Files


def test_a_grown_bundle_says_where_it_comes_from(tmp_path: Path) -> None:
    small = trained("float32")
    save(tmp_path / "small.sapis", small, {"level_of_theory": "of the tests", "training": {"seed": 3}, "checks": []})
    ending = sapis("grow", tmp_path / "small.sapis", tmp_path / "large.sapis", "--n-channels", "64", "--order", "3",
                   "--element", "S=-10821.5")
    assert ending.code == 0 and "e-1" in ending.text and "parameters" in ending.text, ending.text
    model = load(tmp_path / "large.sapis")
    assert model.potential.elements == (1, 6, 8, 16) and model.potential.config.n_heads == 8
    origin = model.card["grown_from"]
    assert origin["file_hash"] == hash_file(tmp_path / "small.sapis")
    assert origin["card"]["training"] == {"seed": 3} and "training" not in model.card
    assert model.card["level_of_theory"] == "of the tests" and model.card["checks"][-1]["name"] == "growth"
    require_same(small, model.potential)
    assert "growth" in sapis("info", tmp_path / "large.sapis").text
    assert str(tmp_path) not in json.dumps(model.card)


def test_a_model_is_compared_on_a_structure_of_its_own(tmp_path: Path) -> None:
    from sapis.data.formats import write_systems

    save(tmp_path / "small.sapis", trained("float32"), {})
    write_systems(tmp_path / "structure.extxyz", [cluster(7)])
    command = ("grow", tmp_path / "small.sapis", tmp_path / "large.sapis", "--n-layers", "3")
    assert sapis(*command, "--structure", tmp_path / "structure.extxyz").code == 0


def test_models_that_differ_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "small.sapis", trained("float32"), {})
    monkeypatch.setattr(growth, "_hand_on", lambda transformer, n_old: None)
    ending = sapis("grow", tmp_path / "small.sapis", tmp_path / "large.sapis", "--n-layers", "3")
    assert ending.code == 2 and "the same energies" in ending.text
    assert not (tmp_path / "large.sapis").exists()


# Refusals


@pytest.mark.parametrize(("sizes", "message"), [
    ({"order": 1}, "order >= 2"), ({"n_layers": 1}, "n_layers >= 2"), ({"n_channels": 16}, "n_channels >= 32"),
    ({"n_channels": 40}, "groups of 16"), ({"n_heads": 8, "n_channels_carried": 16}, "8 channels a head"),
    ({"n_channels": 64, "n_heads": 4}, "8 channels a head"), ({"n_channels": 64, "n_channels_carried": 8}, ">= 16"),
    ({"l_max": 7}, "6"),
], ids=str)
def test_what_cannot_be_the_same_function_is_refused(sizes: dict[str, int], message: str) -> None:
    small = trained()
    with pytest.raises(SapisError, match=message):
        grow(small, larger_config(small.config, sizes))


@pytest.mark.parametrize(("start", "change", "message"), [
    ({}, lambda config: config.model_copy(update={"cutoff": 4.0}), "part of the function"),
    ({"n_channels": 8, "n_heads": 1}, lambda config: larger_config(config, {"n_channels": 32}), "groups of 8"),
], ids=["cutoff", "narrow"])
def test_what_no_size_can_mend_is_refused(start: dict[str, int], change: Callable[[ModelConfig], ModelConfig], message: str,
                                          ) -> None:
    small = trained(**start)
    with pytest.raises(ModelError, match=message):
        grow(small, change(small.config))


@pytest.mark.parametrize("energies", [{8: -1.0}, {0: -1.0}, {119: -1.0}], ids=str)
def test_reference_energies_of_anything_but_new_elements_are_refused(energies: dict[int, float]) -> None:
    small = trained()
    with pytest.raises(ModelError, match="reference energies"):
        grow(small, small.config, reference_energies=energies)


@pytest.mark.parametrize("option", ["S", "S=", "Xx=-3", "S=many"])
def test_an_element_needs_an_energy(tmp_path: Path, option: str) -> None:
    save(tmp_path / "small.sapis", trained("float32"), {})
    ending = sapis("grow", tmp_path / "small.sapis", tmp_path / "large.sapis", "--element", option)
    assert ending.code == 2 and "--element" in ending.text
