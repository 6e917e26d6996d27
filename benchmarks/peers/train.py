"""The one training loop of the bench: ``python -m benchmarks.peers.train JOB.json``, in the peer's own environment.

Same data, loss, optimiser, schedule, clipping and clock for every peer; a killed run goes on with the same command. Writes
``result.json`` beside the job. It imports nothing of `sapis`: peers' environments do not have its dependencies.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.peers.checks import check_peer
from benchmarks.peers.flops import count_flops
from benchmarks.peers.memory import keep_freed_memory
from benchmarks.peers.protocol import Frame, Peer, Problem, Recipe, load_peer, read_problem

NORM_MEMORY = 100  # steps of the running mean of the gradient's norm
MARKS = 0.5 ** np.arange(6, -0.25, -0.5)  # fractions of the budget at which the validation set is looked at
CHECKPOINT_SECONDS = 20.0
N_WARM_UP = 3  # batches before the clock runs: just-in-time compilers come to rest
N_FLOP_BATCHES = 4
TEST_BATCH = 10


@dataclass
class Progress:
    """Where a training is: everything but tensors.

    Attributes:
        cpu_seconds: of steps; looking at the validation set does not count.
        flops: of matrix products.
        gradient_norm: its running mean.
        best_score: lowest validation loss so far.
        lowest, n_stale, factor: state of the plateau schedule.
        is_second: the second stage has begun.
        errors: of the tests that are done.
    """

    step: int = 0
    cpu_seconds: float = 0.0
    flops: float = 0.0
    gradient_norm: float = 0.0
    best_score: float = math.inf
    lowest: float = math.inf
    n_stale: int = 0
    factor: float = 1.0
    is_second: bool = False
    train_losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def loss(energies: torch.Tensor, forces: torch.Tensor, frames: Sequence[Frame], scale: float, recipe: Recipe) -> torch.Tensor:
    """``(w_F <dF^2> + w_E <dE^2 / n>) / scale^2`` over force components and frames: that of `sapis.training.loss`."""
    n_atoms = torch.tensor([len(frame.numbers) for frame in frames], dtype=forces.dtype)
    known = torch.tensor([frame.energy for frame in frames], dtype=torch.float64)
    known_forces = torch.from_numpy(np.concatenate([frame.forces for frame in frames])).to(forces.dtype)
    energy = ((energies.double() - known).to(forces.dtype).square() / n_atoms**recipe.energy_power).mean()
    return (recipe.force_weight * (forces - known_forces).square().mean() + recipe.energy_weight * energy) / scale**2


def errors(predicted: Sequence[tuple[np.ndarray, np.ndarray]], frames: Sequence[Frame]) -> dict[str, float]:
    """Errors of (energies, forces) of batches that follow one another; names and units as in `sapis.evaluate.errors`."""
    energy = 1e3 * (np.concatenate([energies for energies, _ in predicted]) - [frame.energy for frame in frames])
    force = 1e3 * (np.concatenate([forces for _, forces in predicted]) - np.concatenate([frame.forces for frame in frames]))
    per_atom = energy / [len(frame.numbers) for frame in frames]
    return {
        "n": len(frames), "energy_rmse_meV": _rms(energy), "energy_rmse_meV_atom": _rms(per_atom),
        "energy_mae_meV_atom": float(np.abs(per_atom).mean()), "force_rmse_meV_A": _rms(force),
        "force_mae_meV_A": float(np.abs(force).mean()),
    }


def rotated(frame: Frame, random: np.random.Generator) -> Frame:
    """``frame`` in a random orientation, every other one mirrored (it must not be periodic: its cell is left alone)."""
    matrix, triangle = np.linalg.qr(random.normal(size=(3, 3)))
    matrix *= np.sign(np.diag(triangle))  # uniform over O(3)
    return replace(frame, positions=frame.positions @ matrix, forces=frame.forces @ matrix)


class Training:
    """Trains ``peer`` on ``problem`` in ``folder``; call `run`. Its budget is of CPU seconds, of FLOPs, or of what ends first."""

    n_flop_batches: ClassVar[int] = N_FLOP_BATCHES

    def __init__(self, peer: Peer, problem: Problem, recipe: Recipe, *, seed: int, folder: Path, cpu_seconds: float = math.inf,
                 flops: float = math.inf) -> None:
        self.peer, self.problem, self.recipe, self.folder = peer, problem, recipe, folder
        self.cpu_seconds, self.flops, self.seed = cpu_seconds, flops, seed
        self.frames = problem.parts["train"]
        self.items = [] if peer.is_augmented else [peer.prepare(frame) for frame in self.frames]
        self.batches = {"validation": self._batched("validation")}
        self.parameters = {name: value for name, value in peer.module.named_parameters() if value.requires_grad}
        self.weights = list(self.parameters.values())
        self.optimizer = self._optimizer()
        self.mean = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.best = {name: value.clone() for name, value in self.mean.items()}
        self.progress = Progress()
        self.n_batches = len(self.frames) // recipe.batch_size
        self.flops_of_step = 0.0

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self._groups(), lr=self.recipe.learning_rate, amsgrad=True, foreach=True)

    def _groups(self) -> list[dict[str, Any]]:
        decayed = {id(parameter) for parameter in self.peer.decayed()}
        chosen = [[weight for weight in self.weights if (id(weight) in decayed) == is_decayed] for is_decayed in (True, False)]
        decays = (self.recipe.weight_decay, 0.0)
        return [{"params": weights, "weight_decay": decay} for weights, decay in zip(chosen, decays, strict=True) if weights]

    def _batched(self, part: str) -> list[tuple[list[Frame], Any]]:
        frames = self.problem.parts[part]
        chunks = [frames[start : start + TEST_BATCH] for start in range(0, len(frames), TEST_BATCH)]
        return [(chunk, self.peer.collate([self.peer.prepare(frame) for frame in chunk])) for chunk in chunks]

    # The loop

    def run(self) -> Progress:
        """Train to the end of the budget, from the last checkpoint if there is one; then test the best weights."""
        self._resume()
        state, saved = self.progress, time.monotonic()
        if self.spent() < 1:
            self.peer.module.train()
            self._warm_up()
        clock = time.process_time()
        while self.spent() < 1:
            before = self.spent()
            self._step()
            now = time.process_time()
            state.cpu_seconds += now - clock
            is_epoch = self.recipe.schedule == "plateau" and state.step % self.n_batches == 0
            is_mark = ((before < MARKS) & (self.spent() >= MARKS)).any()
            if is_epoch or is_mark:
                self._validate(is_epoch=is_epoch, is_mark=bool(is_mark))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            clock = time.process_time()
        self.save()
        self._test()
        return state

    def spent(self) -> float:
        """Fraction of the budget."""
        return max(self.progress.cpu_seconds / self.cpu_seconds, self.progress.flops / self.flops)

    def _warm_up(self) -> None:
        """Compile what is compiled at first use, and count FLOPs, before the clock runs."""
        for k in range(N_WARM_UP):
            self._gradient(self._indices(k))
        counted = [count_flops(lambda k=k: self._gradient(self._indices(k))) for k in range(self.n_flop_batches)]  # type: ignore[misc]
        self.flops_of_step = float(np.mean(counted))
        self.optimizer.zero_grad(set_to_none=True)

    def _indices(self, step: int) -> np.ndarray:
        """Of the frames of a step: a new order each epoch, by the seed; an incomplete batch is left out."""
        epoch, position = divmod(step, self.n_batches)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.frames))
        return order[position * self.recipe.batch_size : (position + 1) * self.recipe.batch_size]

    def _gradient(self, indices: np.ndarray) -> float:
        frames = [self.frames[i] for i in indices]
        if self.peer.is_augmented:
            random = np.random.default_rng((self.seed, self.progress.step, 1))
            frames = [rotated(frame, random) for frame in frames]
            items = [self.peer.prepare(frame) for frame in frames]
        else:
            items = [self.items[i] for i in indices]
        self.optimizer.zero_grad(set_to_none=True)
        energies, forces = self.peer.predict(self.peer.collate(items), create_graph=True)
        value = loss(energies, forces, frames, self.problem.scale, self._stage())
        value.backward()
        return float(value.detach())

    def _step(self) -> None:
        state, recipe = self.progress, self._stage()
        torch.manual_seed(1_000_003 * self.seed + state.step)  # of peers that draw random numbers: the same after a stop
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(recipe)
        state.train_losses.append(self._gradient(self._indices(state.step)))
        norm = float(torch.nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None]))
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {state.step}: loss {state.train_losses[-1]}, norm of the gradient {norm}")
        state.gradient_norm = norm if state.step == 0 else state.gradient_norm
        limit = recipe.clip if recipe.is_clip_absolute else recipe.clip * state.gradient_norm
        torch.nn.utils.clip_grads_with_norm_(self.weights, limit, torch.tensor(norm))
        state.gradient_norm += (min(norm, limit) - state.gradient_norm) / NORM_MEMORY
        self.optimizer.step()
        # Early on the mean forgets faster, so that the first weights leave no trace.
        decay = min(recipe.ema_decay, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), self.weights, 1 - decay)
        state.step += 1
        state.flops += self.flops_of_step

    def _stage(self) -> Recipe:
        """The recipe of this moment."""
        second = dict(self.recipe.second)
        is_begun = bool(second) and self.spent() >= second.pop("start")
        if is_begun and not self.progress.is_second:  # its loss has other weights: the best is sought anew
            self.progress.is_second, self.progress.best_score = True, math.inf
        return replace(self.recipe, **second) if is_begun else self.recipe

    def _learning_rate(self, recipe: Recipe) -> float:
        warmup = min(1.0, (self.progress.step + 1) / (recipe.warmup_steps + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent())))
        return recipe.learning_rate * warmup * (cosine if recipe.schedule == "cosine" else self.progress.factor)

    # Looking at it

    def _validate(self, *, is_epoch: bool, is_mark: bool) -> None:
        """Errors of the mean weights on the validation frames; the best so far are kept."""
        state = self.progress
        found, score = self._evaluated(self.mean, self.batches["validation"])
        if score < state.best_score:
            state.best_score = score
            self.best = {name: value.clone() for name, value in self.mean.items()}
        if is_epoch:
            self._look_for_plateau(score)
        if is_mark:
            row = {"step": state.step, "cpu_seconds": state.cpu_seconds, "flops": state.flops, "validation_loss": score,
                   "train_loss": float(np.mean(state.train_losses)), "learning_rate": self.optimizer.param_groups[0]["lr"]}
            state.history.append(row | {f"validation_{name}": value for name, value in found.items()})
            state.train_losses = []
            print(f"{state.cpu_seconds:7.1f} CPU-s  step {state.step:6d}  loss {row['train_loss']:.4g}  validation: "
                  f"F {found['force_rmse_meV_A']:.1f} meV/Å  E {found['energy_rmse_meV_atom']:.2f} meV/atom", flush=True)

    def _look_for_plateau(self, score: float) -> None:
        state = self.progress
        if score < state.lowest * (1 - self.recipe.threshold):
            state.lowest, state.n_stale = score, 0
            return
        state.n_stale += 1
        if state.n_stale > self.recipe.patience:
            state.factor, state.n_stale = state.factor * self.recipe.factor, 0

    def _evaluated(self, weights: dict[str, torch.Tensor], batches: list[tuple[list[Frame], Any]],
                   ) -> tuple[dict[str, float], float]:
        """Errors and loss of ``weights`` on ``batches``."""
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._set(weights)
        self.peer.module.eval()
        torch.manual_seed(0)
        predicted, losses, frames, recipe = [], [], [], self._stage()
        for chunk, batch in batches:
            energies, forces = (value.detach() for value in self.peer.predict(batch, create_graph=False))
            losses.append(float(loss(energies, forces, chunk, self.problem.scale, recipe)) * len(chunk))
            predicted.append((energies.double().numpy(), forces.double().numpy()))
            frames += chunk
        self.peer.module.train()
        self._set(own)
        return errors(predicted, frames), sum(losses) / len(frames)

    @torch.no_grad()
    def _set(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def _test(self) -> None:
        for name in ("validation", *self.problem.tests):
            if name not in self.progress.errors:
                self.progress.errors[name] = self._evaluated(self.best, self._batched(name))[0]
                self.save()
            found = self.progress.errors[name]
            print(f"{name}: F {found['force_rmse_meV_A']:.1f} meV/Å  E {found['energy_rmse_meV']:.1f} meV", flush=True)
        self._set(self.best)

    # Checkpoints

    def save(self) -> None:
        """Write the checkpoint from which `run` goes on."""
        state = {"weights": {name: value.detach() for name, value in self.parameters.items()}, "mean": self.mean,
                 "best": self.best, "optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress),
                 "flops_of_step": self.flops_of_step}
        part = self.folder / "last.part"
        torch.save(state, part)
        part.replace(self.folder / "last.pt")

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self._set(state["weights"])
        self.mean, self.best, self.flops_of_step = state["mean"], state["best"], state["flops_of_step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        print(f"goes on at step {self.progress.step}, {self.progress.cpu_seconds:.1f} CPU-s", flush=True)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def run_job(path: Path) -> dict[str, Any]:
    """Train as the job says; figures of the result, JSON values."""
    job = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    keep_freed_memory()
    problem = read_problem(Path(job["problem"]))
    peer = load_peer(job["driver"], problem, seed=job["seed"], **job["options"])
    force_check = check_peer(peer, problem.parts["validation"][0], problem.cutoff)
    n_parameters = sum(value.numel() for value in peer.module.parameters() if value.requires_grad)
    print(f"{job['name']}: {peer.package} {version(peer.package)}, {n_parameters:,} parameters, "
          f"forces = -dE/dr within {force_check:.1e}", flush=True)
    training = Training(peer, problem, Recipe(**job["recipe"]), cpu_seconds=job["cpu_seconds"], seed=job["seed"],
                        folder=path.parent)
    state = training.run()
    return {
        "package": peer.package, "version": version(peer.package), "torch": torch.__version__, "n_parameters": n_parameters,
        "n_steps": state.step, "cpu_seconds": state.cpu_seconds, "flops": state.flops,
        "flops_per_step": training.flops_of_step, "history": state.history, "errors": state.errors,
        "force_check": {"untrained": force_check, "trained": check_peer(peer, problem.parts["validation"][0], problem.cutoff)},
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """JSON, atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    own_job = Path(sys.argv[1])
    write_result(own_job.parent / "result.json", run_job(own_job))
