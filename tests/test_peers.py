"""The bench of potentials: what of it needs no environment but this one, and the drivers of peers that are installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.peers.checks import check_peer
from benchmarks.peers.datasets import make_problem
from benchmarks.peers.figure import draw
from benchmarks.peers.flops import count_flops
from benchmarks.peers.jobs import ROOT, Entry, chosen, read_entries
from benchmarks.peers.plain_transformer import Driver
from benchmarks.peers.protocol import Frame, Problem, Recipe, load_peer, read_problem, write_problem
from benchmarks.peers.table import inference_table, passed, training_table
from benchmarks.peers.train import MARKS, Training, errors, loss, rotated

from conftest import ELEMENTS, cluster, small_potential
from sapis.core.errors import ConfigError
from sapis.data.batch import collate, prepare
from sapis.data.system import System
from sapis.evaluate.errors import evaluate
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss as our_loss

ISOLATED = dict(zip(ELEMENTS, small_potential().reference_energies[0].tolist(), strict=True))
SMALL = {"n_channels": 16, "n_heads": 2, "n_layers": 2, "n_radial": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def systems(n_frames: int, n_atoms: int = 5) -> list[System]:
    """Molecules with labels of a Transformer with random weights."""
    bare = [cluster(n_atoms, seed=seed) for seed in range(n_frames)]
    predictions = small_potential(seed=99).predict(bare)
    return [replace(system, energy=p.energy, forces=p.forces) for system, p in zip(bare, predictions, strict=True)]


def problem() -> Problem:
    return make_problem({"train": systems(12), "validation": systems(4, 6), "test": systems(3, 4)}, ISOLATED)


def plain(own: Problem, seed: int = 0) -> Driver:
    peer = load_peer("plain_transformer", own, seed=seed, **SMALL)
    assert isinstance(peer, Driver)
    return peer


def test_problem_is_the_same_after_writing(tmp_path: Path) -> None:
    own = problem()
    write_problem(tmp_path / "problem.npz", own)
    read = read_problem(tmp_path / "problem.npz")
    assert (read.elements, read.scale, read.average_neighbors, read.tests) == (
        own.elements, own.scale, own.average_neighbors, ["test"])
    for name, frames in own.parts.items():
        assert len(read.parts[name]) == len(frames)
        for one, other in zip(frames, read.parts[name], strict=True):
            assert one.energy == other.energy
            for key in ("numbers", "positions", "cell", "pbc", "forces"):
                np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def test_energies_are_less_the_references_and_centred() -> None:
    train = problem().parts["train"]
    assert sum(frame.energy for frame in train) == pytest.approx(0.0, abs=1e-8)


def test_loss_is_that_of_sapis() -> None:
    frames_of, own = systems(3) + systems(2, 7), problem()
    potential = small_potential(seed=1)
    frames = [Frame(s.numbers, s.positions, s.cell, s.pbc, s.energy or 0.0, s.forces) for s in frames_of]
    samples = [prepare(system, elements=potential.elements, cutoff=potential.cutoff) for system in frames_of]
    batch = collate(samples, cutoff=potential.cutoff, dtype=torch.float64)
    energies, forces, virials = potential.double()(batch)
    config = TrainingConfig(epochs=1, energy_weight=0.3, force_weight=2.0, stress_weight=0.0)
    expected = our_loss(batch, energies, forces, virials, config, own.scale)
    totals = torch.zeros(len(frames), dtype=torch.float64).index_add(0, batch.graph, energies)
    found = loss(totals, forces, frames, own.scale, Recipe(energy_weight=0.3, force_weight=2.0))
    torch.testing.assert_close(found, expected)


def test_errors_are_those_of_sapis() -> None:
    labelled, potential = systems(4) + systems(2, 7), small_potential(seed=1)
    expected = evaluate(potential, labelled)
    predictions = potential.predict(labelled)
    frames = [Frame(s.numbers, s.positions, s.cell, s.pbc, s.energy or 0.0, s.forces) for s in labelled]
    found = errors([(np.array([p.energy]), p.forces) for p in predictions], frames)
    assert found == pytest.approx({key: expected[key] for key in found})


def test_plain_transformer_has_forces_that_are_its_gradient() -> None:
    own = problem()
    assert check_peer(plain(own), own.parts["train"][0], own.cutoff) < 0.02


def test_wrong_forces_are_refused() -> None:
    class Wrong(Driver):
        def predict(self, batch, *, create_graph):  # type: ignore[no-untyped-def]
            energies, forces = super().predict(batch, create_graph=create_graph)
            return 100 * energies, 110 * forces

    own = problem()
    with pytest.raises(ValueError, match="not -dE/dr"):
        check_peer(Wrong(own, **SMALL), own.parts["train"][0], own.cutoff)


def test_rounding_of_a_large_energy_is_no_wrong_force_and_hides_none() -> None:
    class Far(Driver):
        factor = 1.0

        def predict(self, batch, *, create_graph):  # type: ignore[no-untyped-def]
            energies, forces = super().predict(batch, create_graph=create_graph)
            return 100 * energies + 200, 100 * self.factor * forces

    own = problem()
    torch.manual_seed(0)
    far = Far(own, **SMALL)
    check_peer(far, own.parts["train"][0], own.cutoff)
    far.factor = 1.2
    with pytest.raises(ValueError, match="not -dE/dr"):
        check_peer(far, own.parts["train"][0], own.cutoff)


def test_plain_transformer_is_smooth_at_its_cutoff_and_blind_beyond() -> None:
    own = problem()
    peer = plain(own)

    def energy(distance: float) -> float:
        frame = Frame(np.array([1, 8]), np.array([[0, 0, 0], [0, 0, distance]]), np.zeros((3, 3)), np.zeros(3, bool), 0.0,
                      np.zeros((2, 3)))
        return float(peer.predict(peer.collate([peer.prepare(frame)]), create_graph=False)[0].detach().double())

    assert energy(own.cutoff + 0.01) == energy(own.cutoff + 3)
    assert energy(own.cutoff - 1e-3) == pytest.approx(energy(own.cutoff + 1e-3), abs=1e-5)
    assert energy(1.0) != pytest.approx(energy(own.cutoff + 1), abs=1e-3)


def test_random_orientations_keep_distances_and_mirror_half_of_the_time() -> None:
    frame, random = problem().parts["train"][0], np.random.default_rng(0)
    own = frame.positions - frame.positions[0]
    mirrored = []
    for _ in range(40):
        other = rotated(frame, random)
        moved = other.positions - other.positions[0]
        np.testing.assert_allclose(moved @ moved.T, own @ own.T, atol=1e-10)
        np.testing.assert_allclose(other.forces @ moved.T, frame.forces @ own.T, atol=1e-10)
        mirrored.append(np.linalg.det(moved[1:4]) * np.linalg.det(own[1:4]) < 0)
    assert 10 < sum(mirrored) < 30


def test_flops_of_a_product_forward_and_backward() -> None:
    left, right = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert count_flops(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 5 * 7


def train(folder: Path, own: Problem, cpu_seconds: float = 1.0, **recipe: float | str | dict[str, float]) -> Training:
    folder.mkdir(exist_ok=True)
    return Training(plain(own), own, Recipe(warmup_steps=2, **recipe), cpu_seconds=cpu_seconds, seed=0, folder=folder)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_looks_at_marks(tmp_path: Path) -> None:
    state = train(tmp_path, problem(), cpu_seconds=3.0, learning_rate=0.003).run()
    scores = [row["validation_loss"] for row in state.history]
    assert min(scores) < 0.9 * scores[0] and 2 <= len(scores) <= len(MARKS)
    assert set(state.errors) == {"validation", "test"} and state.flops > 0


def test_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    own, n_steps, no_end = problem(), 9, 1e9
    whole = train(tmp_path / "whole", own, no_end)
    for _ in range(n_steps):
        whole._step()
    first = train(tmp_path / "stopped", own, no_end)
    for _ in range(4):
        first._step()
    first.save()
    second = train(tmp_path / "stopped", own, no_end)
    second._resume()
    for _ in range(n_steps - 4):
        second._step()
    assert second.progress.step == whole.progress.step
    for name in whole.parameters:
        torch.testing.assert_close(second.parameters[name], whole.parameters[name], rtol=0, atol=0)
        torch.testing.assert_close(second.mean[name], whole.mean[name], rtol=0, atol=0)


def test_plateau_lowers_the_learning_rate_and_second_stage_begins(tmp_path: Path) -> None:
    training = train(tmp_path, problem(), 100.0, schedule="plateau", factor=0.5, patience=1, threshold=0.1,
                     second={"start": 0.5, "energy_weight": 7.0})
    for score in (1.0, 0.95, 0.94, 0.93):
        training._look_for_plateau(score)
    assert training.progress.factor == 0.5
    assert training._stage().energy_weight == 1.0
    training.progress.cpu_seconds, training.progress.best_score = 60.0, 0.1
    assert training._stage().energy_weight == 7.0 and training.progress.best_score == np.inf


def test_entries_have_recipes_that_exist_and_names_are_checked() -> None:
    entries = read_entries()
    for entry in entries:
        if not entry.is_ours:
            Recipe(**entry.recipe)
            assert (ROOT / "benchmarks" / "peers" / f"{entry.driver}.py").exists()
        assert entry.code() or entry.is_ours
    assert chosen(entries, "mace,sapis") == {"mace", "sapis"}
    with pytest.raises(ConfigError, match="mase"):
        chosen(entries, "mase")


def test_tables_and_figure_are_made_from_rows(tmp_path: Path) -> None:
    found = {"energy_rmse_meV": 5.0, "energy_mae_meV_atom": 0.2, "force_rmse_meV_A": 20.0, "force_mae_meV_A": 14.0}
    history = [{"cpu_seconds": t, "flops": 1e9 * t, "validation_force_rmse_meV_A": 100 / t} for t in (1.0, 2.0, 4.0)]
    rows = [{"peer": peer, "seed": seed, "version": "1", "n_parameters": 10, "n_steps": 4, "cpu_seconds": 4.0, "flops": 8e9,
             "errors": {"validation": found | {"force_rmse_meV_A": error}, "test": found}, "history": history}
            for peer, seed, error in (("sapis", 0, 25.0), ("mace", 0, 60.0), ("mace", 1, 60.0), ("nequip", 0, 10.0))]
    assert training_table(rows, "title").row_count == 3
    assert passed(rows) == {"mace": {"cpu_seconds": 0.5, "flops": 0.25}}, "the other is never reached"
    draw(rows, tmp_path / "figure.png", "title")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    timed = [{"peer": "mace", "case": "molecule", "cpu_ms_per_atom": 1.0, "peak_memory_MB": 500.0}]
    assert inference_table(timed).row_count == 1


INSTALLED = [entry for entry in read_entries()
             if entry.environment != "main" and entry.is_installed and not entry.is_inference_only]


@pytest.mark.slow
@pytest.mark.parametrize("entry", INSTALLED, ids=lambda entry: entry.name)
def test_installed_peer_trains(entry: Entry, tmp_path: Path) -> None:
    own = problem()
    write_problem(tmp_path / "problem.npz", own)
    job = {"problem": str(tmp_path / "problem.npz"), "name": entry.name, "driver": entry.driver, "options": entry.options,
           "recipe": entry.recipe, "cpu_seconds": 3.0, "seed": 0}
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run([entry.python, "-W", "ignore", "-m", "benchmarks.peers.train", tmp_path / "job.json"], check=True, cwd=ROOT,
                   env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n_steps"] > 0 and np.isfinite(result["errors"]["test"]["force_rmse_meV_A"])


def test_forces_are_checked_where_no_atom_passes_the_cutoff() -> None:
    """A network that jumps there, and one whose forces are wrong elsewhere."""
    class Jumps(Driver):
        factor = 1.0

        def predict(self, batch, *, create_graph):  # type: ignore[no-untyped-def]
            energies, forces = super().predict(batch, create_graph=create_graph)
            near = (torch.cdist(batch.positions, batch.positions) < batch_cutoff).sum()
            return energies + 0.01 * near, self.factor * forces

    own = problem()
    batch_cutoff = own.cutoff
    frame = own.parts["train"][0]
    away = frame.positions[0] + np.array([0.0, 0.0, own.cutoff + 1e-4])
    frame = replace(frame, numbers=np.append(frame.numbers, 1), positions=np.vstack([frame.positions, away]))
    torch.manual_seed(0)
    jumps = Jumps(own, **SMALL)
    moved = [replace(frame, positions=frame.positions + np.array([[0.0, 0.0, z]] + [[0.0] * 3] * 5)) for z in (-0.001, 0.001)]
    before, after = (float(jumps.predict(jumps.collate([jumps.prepare(one)]), create_graph=False)[0].detach().sum())
                     for one in moved)
    assert after - before == pytest.approx(0.02, abs=0.001)
    assert check_peer(jumps, frame, own.cutoff) < 0.02
    jumps.factor = 1.5
    with pytest.raises(ValueError, match="not -dE/dr"):
        check_peer(jumps, frame, own.cutoff)
