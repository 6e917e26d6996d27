"""The loss by hand, the loop to the bit, and models that learn."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch

from conftest import cluster, crystal, small_config, small_potential
from sapis.core.errors import FileError, ModelError, SapisError, TrainingError
from sapis.data.batch import Batch, collate
from sapis.data.system import System
from sapis.model.potential import TransformerPotential
from sapis.potential.bundle import hash_tensors, read_tensors
from sapis.training.config import TrainingConfig
from sapis.training.fit import by_symbol, new_potential
from sapis.training.loop import BEST, CHECKPOINT, Training
from sapis.training.loss import loss
from sapis.training.optimizer import ROOT_AFTER, RunningMean, learning_rate, make_optimizer

SMALL = {"l_max": 1, "order": 2}


def labelled(n_frames: int, seed: int = 0) -> list[System]:
    """Molecules whose labels come from another Transformer with larger forces: something that can be learned."""
    systems = [cluster(5, seed=seed + k) for k in range(n_frames)]
    teacher = small_potential(seed=99, **SMALL)
    return [replace(system, energy=p.energy, forces=p.forces)
            for system, p in zip(systems, teacher.predict(systems), strict=True)]


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 2, "validations": 4, "warmup_steps": 2, "precision": "float64", **changes})


def training(folder: Path, train: Sequence[System], validation: Sequence[System], seed: int = 0, **changes: Any) -> Training:
    return Training(small_potential(seed=seed, **SMALL), train, validation, config(**changes), folder)


def batch_of(systems: Sequence[System], potential: TransformerPotential) -> Batch:
    samples = [potential.sample(system) for system in systems]
    return collate(samples, cutoff=potential.cutoff, dtype=potential.dtype)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Loss


def half_labelled() -> list[System]:
    """Energy only, forces only, energy with stress, everything, nothing."""
    rng = np.random.default_rng(0)
    stress = rng.normal(size=(3, 3)) * 0.1
    one, two, three, four, five = cluster(4), cluster(5), crystal(2), crystal(3), cluster(3)
    return [
        replace(one, energy=-4000.0),
        replace(two, forces=rng.normal(size=(5, 3))),
        replace(three, energy=-2000.0, stress=stress + stress.T),
        replace(four, energy=-3000.0, forces=rng.normal(size=(4 - 1, 3)), stress=2 * (stress + stress.T)),
        five,
    ]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_is_that_of_the_labels_that_exist(weights: tuple[float, float, float]) -> None:
    potential, systems = small_potential(), half_labelled()
    settings = config(force_weight=weights[0], energy_weight=weights[1], stress_weight=weights[2])
    batch = batch_of(systems, potential)
    value = float(loss(batch, *potential(batch), settings, potential.scale).detach())

    force_squares, energy_squares, virial_squares = [], [], []
    for system, p in zip(systems, potential.predict(systems), strict=True):
        if system.forces is not None:
            force_squares += list((p.forces - system.forces).ravel() ** 2)
        if system.energy is not None:
            energy_squares.append((p.energy - system.energy) ** 2 / len(system))
        if system.stress is not None:
            assert p.stress is not None and system.volume is not None
            virial_squares += list(((p.stress - system.stress) * system.volume).ravel() ** 2 / len(system))
    means = [np.mean(squares) for squares in (force_squares, energy_squares, virial_squares)]
    assert value == pytest.approx(float(np.dot(weights, means)) / potential.scale**2, rel=1e-10)


def test_a_frame_without_labels_has_no_influence_on_loss_and_gradient() -> None:
    potential, systems = small_potential(), half_labelled()

    def gradient(kept: list[System]) -> list[torch.Tensor]:
        batch = batch_of(kept, potential)
        value = loss(batch, *potential(batch, create_graph=True), config(), potential.scale)
        return [*torch.autograd.grad(value, list(potential.parameters())), value.detach()]

    for one, other in zip(gradient(systems), gradient(systems[:-1]), strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_batch_without_a_weighted_label_has_a_gradient_of_zero() -> None:
    potential = small_potential()
    batch = batch_of([cluster(4)], potential)
    value = loss(batch, *potential(batch, create_graph=True), config(), potential.scale)
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(weight.grad is None or not weight.grad.any() for weight in potential.parameters())


def test_a_broken_prediction_is_not_taken_for_a_missing_label() -> None:
    potential = small_potential()
    batch = batch_of(labelled(2), potential)
    energies, forces, virials = potential(batch)
    assert math.isnan(float(loss(batch, energies * math.nan, forces, virials, config(), 1.0).detach()))
    assert math.isnan(float(loss(batch, energies, forces * math.nan, virials, config(), 1.0).detach()))


# Optimiser


def test_the_learning_rate_rises_over_steps_and_falls_over_the_budget() -> None:
    settings = config(learning_rate=0.02, warmup_steps=9)
    rises = [learning_rate(settings, step=step, progress=0.0) for step in (0, 4, 9, 50)]
    assert rises == pytest.approx([0.002, 0.01, 0.02, 0.02])
    falls = [learning_rate(settings, step=100, progress=p) for p in (0.0, 1 / 3, 0.5, 1.0, 1.5)]
    assert falls == pytest.approx([0.02, 0.015, 0.01, 0.0, 0.0], abs=1e-15)
    late = config(learning_rate=0.02, warmup_steps=9, cooldown=0.4)
    falls = [learning_rate(late, step=100, progress=p) for p in (0.0, 0.6, 0.8, 1.0, 1.5)]
    assert falls == pytest.approx([0.02, 0.02, 0.01, 0.0, 0.0], abs=1e-15)
    far = [learning_rate(late, step=4 * ROOT_AFTER, progress=0.3, warm_from=start) for start in (0, 4 * ROOT_AFTER)]
    assert far == pytest.approx([0.01, 0.001])


def test_the_running_mean_of_weights() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}
    mean = RunningMean(weights, decay=0.9)
    expected, now = 1.0, 1.0
    for step in range(200):
        now += 1.0
        weights["a"] = torch.tensor([now, 2.0])
        mean.update(weights, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
    assert mean.values["a"].tolist() == pytest.approx([expected, 2.0])
    assert now - expected == pytest.approx(9.0, rel=1e-3), "a ramp is followed at the distance decay/(1 - decay)"
    assert weights["a"][0] == now, "the weights themselves stay"


@pytest.mark.parametrize("optimizer", ["muon", "amsgrad"])
def test_either_optimiser_finds_a_minimum(optimizer: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    chosen = make_optimizer([weight], config(optimizer=optimizer, learning_rate=0.1))
    for _ in range(200):
        chosen.zero_grad()
        (weight - 1).square().sum().backward()
        chosen.step()
    assert float(weight.detach()) == pytest.approx(1.0, abs=0.05)


# The loop


class Interrupted(Exception):
    """Stands for a power cut."""


def interrupt_after(n_calls: int, patch: pytest.MonkeyPatch) -> None:
    """Let the loss be computed ``n_calls`` times, then break off."""
    import sapis.training.loop as loop

    left = [n_calls]

    def counted(*args: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted
        return loss(*args)

    patch.setattr(loop, "loss", counted)


def without_clock(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in history]


@pytest.mark.parametrize("optimizer", ["muon", "amsgrad"])
def test_a_resumed_training_is_the_same_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    """Cut twice, in the middle of the first and of the second epoch."""
    train, validation = labelled(10), labelled(3, seed=50)
    options = {"batch_size": 2, "optimizer": optimizer, "checkpoint_seconds": 1e-9, "patience": 50}
    whole = training(tmp_path / "whole", train, validation, **options)
    whole.run()
    stopped_at = []
    for n_calls in (4, 6):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(n_calls, patch)
            with pytest.raises(Interrupted):
                training(tmp_path / "cut", train, validation, **options).run()
        stopped_at.append(read_tensors(tmp_path / "cut" / CHECKPOINT)[1]["step"])
    assert all(0 < step < whole.progress.step and step % whole.n_batches for step in stopped_at), stopped_at
    again = training(tmp_path / "cut", train, validation, **options)
    again.run()
    assert again.progress.step == whole.progress.step == 10
    assert without_clock(again.progress.history) == without_clock(whole.progress.history)
    for file in (BEST, CHECKPOINT):
        one, other = (read_tensors(tmp_path / name / file)[0] for name in ("whole", "cut"))
        assert hash_tensors(one) == hash_tensors(other)
    assert hash_tensors(whole.potential.state_dict()) == hash_tensors(again.potential.state_dict())


def test_the_same_seed_gives_the_same_training_and_another_does_not(tmp_path: Path) -> None:
    train, validation = labelled(6), labelled(2, seed=50)
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(hashes))
        settings = config(batch_size=2, epochs=1, seed=seed)
        one = Training(small_potential(**SMALL), train, validation, settings, tmp_path / name)
        one.run()
        hashes.append(hash_tensors(one.potential.state_dict()))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    train, validation = labelled(4), labelled(2, seed=50)
    first = training(tmp_path, train, validation)
    first.run()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(0, patch)
        second = training(tmp_path, train, validation)
        second.run()
    assert second.progress.step == first.progress.step
    assert hash_tensors(first.potential.state_dict()) == hash_tensors(second.potential.state_dict())


@pytest.mark.parametrize("what", ["setting", "weights", "training data", "labels", "validation data"])
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, what: str) -> None:
    train, validation = labelled(4), labelled(2, seed=50)
    training(tmp_path, train, validation, epochs=1).run()
    before = (tmp_path / CHECKPOINT).read_bytes()
    changed_label = [replace(train[0], energy=train[0].energy + 1e-9), *train[1:]]
    other = {
        "setting": lambda: training(tmp_path, train, validation, epochs=2),
        "weights": lambda: training(tmp_path, train, validation, seed=1, epochs=1),
        "training data": lambda: training(tmp_path, train[1:], validation, epochs=1),
        "labels": lambda: training(tmp_path, changed_label, validation, epochs=1),
        "validation data": lambda: training(tmp_path, train, validation[1:], epochs=1),
    }[what]
    with pytest.raises(TrainingError, match="another training"):
        other().run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    train, validation = labelled(4), labelled(2, seed=50)
    training(tmp_path, train, validation, epochs=1).run()
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=CHECKPOINT):
        training(tmp_path, train, validation, epochs=1).run()


def test_the_result_is_the_running_mean_at_its_best_validation(tmp_path: Path) -> None:
    one = training(tmp_path, labelled(8), labelled(3, seed=50), epochs=4, validations=8, learning_rate=0.05)
    progress = one.run()
    losses = [row["validation_loss"] for row in progress.history]
    best, header = read_tensors(tmp_path / BEST)
    assert header["step"] == progress.history[int(np.argmin(losses))]["step"]
    assert header["validation_loss"] == min(losses) == progress.best_score
    assert hash_tensors(best) == hash_tensors(one.potential.state_dict())
    last = {name.removeprefix("weights."): value for name, value in read_tensors(tmp_path / CHECKPOINT)[0].items()
            if name.startswith("weights.")}
    assert hash_tensors(last) != hash_tensors(best), "the mean is not the last weights"


def test_a_validation_set_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="validation set"):
        training(tmp_path, labelled(6), [system.without_labels() for system in labelled(2, seed=50)])


def test_without_validation_frames_the_last_running_mean_is_the_result(tmp_path: Path) -> None:
    one = training(tmp_path, labelled(6), [], batch_size=2)
    one.run()
    mean = {name.removeprefix("mean."): value for name, value in read_tensors(tmp_path / CHECKPOINT)[0].items()
            if name.startswith("mean.")}
    assert hash_tensors(one.potential.state_dict()) == hash_tensors(mean)


def test_the_history_is_written_as_it_is(tmp_path: Path) -> None:
    one = training(tmp_path, labelled(6), labelled(2, seed=50), batch_size=2, epochs=4, validations=4)
    progress = one.run()
    with (tmp_path / "log.csv").open(encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == progress.history
    assert [row["step"] for row in rows] == [3, 6, 9, 12] and [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert (np.diff([row["flops"] for row in rows]) > 0).all()
    # Step 12 is the last of 12, so its rate was set when 11/12 of the budget were spent.
    assert rows[-1]["learning_rate"] == pytest.approx(learning_rate(one.config, step=11, progress=11 / 12))
    assert list((tmp_path / "tensorboard").glob("events*")) or one.board is None


def test_validation_errors_are_those_of_the_result(tmp_path: Path) -> None:
    train, validation = labelled(6), labelled(3, seed=50)
    one = training(tmp_path, train, validation, epochs=1, validations=1)
    row = one.run().history[-1]
    predictions = one.potential.predict(validation)
    force = np.concatenate([(p.forces - s.forces).ravel() for p, s in zip(predictions, validation, strict=True)])
    energy = [(p.energy - s.energy) / len(s) for p, s in zip(predictions, validation, strict=True)]
    assert row["validation_force_rmse_meV_A"] == pytest.approx(1e3 * np.sqrt(np.mean(force**2)), rel=1e-8)
    assert row["validation_energy_rmse_meV_atom"] == pytest.approx(1e3 * np.sqrt(np.mean(np.square(energy))), rel=1e-8)


# Budgets


def test_the_budget_of_epochs(tmp_path: Path) -> None:
    progress = training(tmp_path, labelled(7), labelled(2, seed=50), batch_size=3, epochs=2).run()
    assert progress.step == 2 * 3 and progress.is_finished


@pytest.mark.parametrize("epochs", [None, 10_000])
def test_the_budget_of_cpu_seconds(tmp_path: Path, epochs: int | None) -> None:
    progress = training(tmp_path, labelled(6), labelled(2, seed=50), epochs=epochs, cpu_seconds=0.5).run()
    assert progress.is_finished and progress.step > 1
    assert 0.5 <= progress.cpu_seconds < 1.5, "it ends with the step and the validation that cross the limit"
    assert len(progress.history) == 4


def test_cpu_seconds_are_counted_once(tmp_path: Path) -> None:
    training(tmp_path / "warm", labelled(2), [], epochs=1).run()  # imports, once
    one = training(tmp_path, labelled(4), labelled(30, seed=50), epochs=4, validations=8)
    start = process_time()
    one.run()
    spent = process_time() - start
    assert 0.6 * spent < one.progress.cpu_seconds <= 1.02 * spent


def test_patience_ends_a_training_that_does_not_improve(tmp_path: Path) -> None:
    options = {"epochs": 20, "validations": 20, "learning_rate": 1e-30}
    progress = training(tmp_path, labelled(4), labelled(2, seed=50), patience=3, **options).run()
    assert len(progress.history) == 1 + 3 and progress.is_finished


def test_threads_are_those_of_the_settings(tmp_path: Path) -> None:
    for threads in (2, 1):
        training(tmp_path / str(threads), labelled(2), [], threads=threads)
        assert torch.get_num_threads() == threads


# Refusals


def test_a_weighted_label_that_no_frame_has_is_refused(tmp_path: Path) -> None:
    frames = labelled(4)
    no_forces = [replace(frame, forces=None) for frame in frames]
    no_energy = [replace(frame, energy=None) for frame in frames]
    with pytest.raises(TrainingError, match="forces"):
        training(tmp_path, no_forces, frames)
    with pytest.raises(TrainingError, match="energy"):
        training(tmp_path, no_energy, frames)
    with pytest.raises(TrainingError):
        training(tmp_path, [], frames)
    training(tmp_path, no_forces, frames, force_weight=0.0)
    training(tmp_path, no_energy, frames, energy_weight=0.0)


def test_frames_with_different_labels_train_together(tmp_path: Path) -> None:
    frames = labelled(6)
    mixed = [replace(frame, forces=None) if k % 2 else replace(frame, energy=None) for k, frame in enumerate(frames)]
    progress = training(tmp_path, mixed, frames[:2], batch_size=3).run()
    assert all(np.isfinite(list(row.values())).all() for row in progress.history)
    assert progress.history[-1]["validation_loss"] < 0.7 * progress.history[0]["validation_loss"]


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="epochs"):
        training(tmp_path, labelled(2), [], epochs=None)


def test_an_unknown_element_is_refused(tmp_path: Path) -> None:
    gold = System(numbers=[79], positions=np.zeros((1, 3)), energy=0.0, forces=np.zeros((1, 3)))
    with pytest.raises(ModelError, match="Au"):
        training(tmp_path, [*labelled(2), gold], [])


@pytest.mark.parametrize("how", ["a force beyond float32", "weights that are not numbers"])
def test_numbers_that_break_down_stop_the_training_and_lose_nothing(tmp_path: Path, how: str) -> None:
    frames = labelled(4)
    potential = small_potential("float32", **SMALL)
    if how == "a force beyond float32":
        frames[2] = replace(frames[2], forces=frames[2].forces * 1e300)
    else:
        with torch.no_grad():
            next(potential.parameters())[0] = math.nan
    one = Training(potential, frames, labelled(2, seed=50), config(precision="float32", batch_size=1), tmp_path)
    with pytest.raises(TrainingError, match="finite"):
        one.run()
    for name, weight in potential.named_parameters():
        assert how.startswith("weights") or torch.isfinite(weight).all(), name


def test_labels_that_are_not_numbers_never_get_so_far() -> None:
    with pytest.raises(SapisError):
        replace(labelled(1)[0], energy=math.nan)


# Potentials for data


def test_a_new_potential_takes_its_scales_from_the_data() -> None:
    frames = labelled(12)
    potential, references = new_potential(frames, {}, small_config(**SMALL), precision="float64", seed=3)
    assert potential.elements == tuple(sorted({int(z) for frame in frames for z in frame.numbers}))
    forces = np.concatenate([frame.forces.ravel() for frame in frames])
    assert potential.scale == pytest.approx(np.sqrt(np.mean(forces**2)))
    counts = np.array([[(frame.numbers == z).sum() for z in potential.elements] for frame in frames])
    remains = np.array([frame.energy for frame in frames]) - counts @ potential.reference_energies[0]
    assert remains.sum() == pytest.approx(0, abs=1e-6)
    assert set(by_symbol(references[""].values)) <= {"H", "C", "O"}
    n_edges = sum(int((np.linalg.norm(f.positions[:, None] - f.positions, axis=-1) < 3.5).sum()) - len(f) for f in frames)
    assert potential.average_neighbors == pytest.approx(n_edges / sum(len(f) for f in frames))


def test_energies_of_isolated_atoms_are_used_where_they_are_known() -> None:
    frames, isolated = labelled(6), {1: -10.0, 6: -1000.0, 8: -2000.0}
    potential, references = new_potential(frames, isolated, small_config(**SMALL), precision="float64", seed=0)
    assert references[""].values == isolated
    shifts = potential.reference_energies - np.array([-10.0, -1000.0, -2000.0])
    assert np.ptp(shifts) < 1e-9, "the mean energy that remains is the same for every element"


def test_frames_with_forces_only_give_a_potential() -> None:
    frames = [replace(frame, energy=None) for frame in labelled(4)]
    potential, _ = new_potential(frames, {}, small_config(**SMALL), precision="float64", seed=0)
    assert potential.scale > 0 and not potential.reference_energies.any()


def test_no_frames_give_no_potential() -> None:
    with pytest.raises(TrainingError, match="frame"):
        new_potential([], {}, small_config(), precision="float64", seed=0)


# Learning


@pytest.fixture(scope="module")
def learned(acac: list[System], tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, list[System], list[System]]:
    """A small model after a few seconds on forty frames of acetylacetone."""
    train, validation = acac[:40], acac[40:]
    potential, _ = new_potential(train, {}, small_config(n_layers=1, order=2), precision="float32", seed=0)
    settings = TrainingConfig(epochs=16, learning_rate=0.005, warmup_steps=10, validations=4)  # of the default width
    one = Training(potential, train, validation, settings, tmp_path_factory.mktemp("learned"))
    one.run()
    return one, train, validation


def test_the_loss_goes_down_on_real_frames(learned: tuple[Training, list[System], list[System]]) -> None:
    history = learned[0].progress.history
    assert history[-1]["validation_loss"] < 0.3 * history[0]["validation_loss"]
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]


def test_the_model_beats_the_mean(learned: tuple[Training, list[System], list[System]]) -> None:
    """Against the mean energy and zero forces: what is known without looking at the structure."""
    one, train, validation = learned
    predictions = one.potential.predict(validation)
    mean = np.mean([frame.energy for frame in train])
    energies, truth = np.array([p.energy for p in predictions]), np.array([frame.energy for frame in validation])
    forces = np.concatenate([p.forces for p in predictions])
    true_forces = np.concatenate([frame.forces for frame in validation if frame.forces is not None])
    assert np.sqrt(np.mean((energies - truth) ** 2)) < 0.75 * np.sqrt(np.mean((mean - truth) ** 2))
    assert np.sqrt(np.mean((forces - true_forces) ** 2)) < 0.4 * np.sqrt(np.mean(true_forces**2))
