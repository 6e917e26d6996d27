"""The one training loop: deterministic, resumable to the bit, with its record as it goes."""

from __future__ import annotations

import csv
import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapis.core.errors import FileError, TrainingError
from sapis.core.files import hash_json, replacing
from sapis.core.progress import progress_bar
from sapis.core.seeds import derive_seed
from sapis.data.batch import Batch, collate
from sapis.data.loader import Loader
from sapis.data.system import System, hash_systems
from sapis.model.backend import backend_of
from sapis.model.cost import counted_flops
from sapis.model.dropout import channel_factors
from sapis.model.potential import TransformerPotential
from sapis.potential.bundle import hash_tensors, read_tensors, write_tensors
from sapis.training.config import TrainingConfig
from sapis.training.loss import graph_sums, loss
from sapis.training.optimizer import RunningMean, learning_rate, make_optimizer, optimizer_flops, weight_groups

CHECKPOINT = "last.safetensors"
BEST = "best.safetensors"
OF_GROUP = "_force_rmse_meV_A"
NORM_MEMORY = 100  # steps of the running mean of the gradient's norm


@dataclass
class Progress:
    """Where a training is: everything of its state but tensors.

    Attributes:
        step: updates made.
        warm_from: step at which the learning rate began to rise: 0, or when the model last grew.
        cpu_seconds: spent, over all runs of this training.
        flops: arithmetic spent on contractions, validation left out (docs/conventions.md).
        backends: steps that each back-end made.
        gradient_norm: running mean of the norm of the gradient.
        best_score: lowest validation loss so far.
        n_stale: validations since then.
        history: one row per validation.
        train_losses: since the last validation.
        is_finished: the budget is spent or patience ran out.
    """

    step: int = 0
    warm_from: int = 0
    cpu_seconds: float = 0.0
    flops: float = 0.0
    backends: dict[str, int] = field(default_factory=dict)
    gradient_norm: float = 0.0
    best_score: float = math.inf
    n_stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    is_finished: bool = False


class Training:
    """Trains ``potential`` (in place) in ``folder``; call `run`.

    Args:
        potential: with the precision of the configuration.
        train: labelled systems.
        validation: labelled systems that choose among the weights of the run; if there are none, the last weights are it.
        config: budget and hyper-parameters.
        folder: checkpoints (`last.safetensors`, `best.safetensors`), `log.csv`, TensorBoard events.
        groups: a name for each validation system, old and new for example: the force error of each group is shown and logged,
            too, and settles nothing.

    Raises:
        TrainingError: no labels that the loss weighs; a checkpoint in ``folder`` of another training.
    """

    def __init__(self, potential: TransformerPotential, train: Sequence[System], validation: Sequence[System],
                 config: TrainingConfig, folder: Path, *, groups: Sequence[str] = ()) -> None:
        _require_labels(train, config, "training set")
        if validation:
            _require_labels(validation, config, "validation set")
        if config.epochs is None and config.cpu_seconds is None and config.flops is None:
            raise TrainingError(expected="an end: epochs, cpu_seconds or flops (or several: whichever comes first)",
                                received="none", where="training settings", todo="give one of them")
        torch.set_num_threads(config.threads)
        self.potential, self.config, self.folder = potential, config, folder
        self.loader = Loader(
            train, potential.sample, cutoff=potential.cutoff, dtype=potential.dtype, batch_size=config.batch_size,
            max_atoms=config.max_atoms, weights=config.level_weights, seed=config.seed, n_workers=config.workers)
        self.validation = [potential.sample(system) for system in validation]
        of_atoms = np.repeat(groups, [len(system) for system in validation]) if groups else np.zeros(0, dtype=str)
        self.groups = {str(name): torch.from_numpy(of_atoms == name) for name in np.unique(of_atoms)}
        self.weights = list(potential.parameters())
        self.parameters: dict[str, torch.Tensor] = dict(potential.named_parameters())
        self.optimizer = make_optimizer(weight_groups(potential), config)
        self.mean = RunningMean(self.parameters, config.ema_decay)
        self.learning_rate = 0.0  # of the last step
        self.progress = Progress()
        self.n_batches = self.loader.n_batches
        self.identity = hash_json({
            "model": potential.settings(), "weights": hash_tensors(self.parameters), "training": config.model_dump(),
            "train": hash_systems(train), "validation": hash_systems(validation),
        })
        self.flops_of_batch = counted_flops(potential.transformer)
        self.board: Any = None

    def run(self, *, until: float = 1.0, is_quiet: bool = False) -> Progress:
        """Train to the end of the budget, from the last checkpoint if there is one; the potential gets the best weights
        that a validation has seen.

        Args:
            until: fraction of the budget at which to stop before its end; a later `run` goes on from there.
            is_quiet: show no progress.
        """
        self._resume()
        if not self.progress.is_finished:
            self._warm_up()
        self.board = _tensorboard(self.folder / "tensorboard")
        clock, saved = time.process_time(), time.monotonic()
        bar = progress_bar(is_hidden=is_quiet)
        with bar:
            total = self.total_steps()
            task = bar.add_task("train", total=total or 1000, completed=self._done(total), note="")
            for batch in () if self._is_over(until) else self.loader.batches(self.progress.step):
                self._step(batch)
                now = time.process_time()
                self.progress.cpu_seconds += now - clock
                clock = now
                if self._is_validation_due():
                    self._validate()
                    clock = time.process_time()
                    bar.update(task, note=self._note())
                bar.update(task, completed=self._done(total))
                if self._is_over(until):
                    break
                if time.monotonic() - saved > self.config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
        self._finish()
        return self.progress

    def _warm_up(self) -> None:
        """Loops that were never used on this machine are compiled before the clock runs (about a minute, then kept)."""
        batch = self.loader.batch(np.zeros(1, dtype=int))
        energies, forces, virials = self.potential(batch, create_graph=True)
        value = loss(batch, energies, forces, virials, self.config, self.potential.scale)
        torch.autograd.grad(value, self.weights, allow_unused=True)

    def total_steps(self) -> int | None:
        """Steps of the epoch budget; None if there is none."""
        return None if self.config.epochs is None else self.config.epochs * self.n_batches

    def spent(self) -> float:
        """Fraction of the budget that is spent: of steps, CPU seconds or FLOPs, whichever is furthest."""
        state, config = self.progress, self.config
        budgets = ((state.step, self.total_steps()), (state.cpu_seconds, config.cpu_seconds), (state.flops, config.flops))
        return min(1.0, max(spent / budget for spent, budget in budgets if budget))

    def _done(self, total: int | None) -> int:
        return int(self.spent() * (total or 1000))

    def _note(self) -> str:
        row = self.progress.history[-1]
        apart = ", ".join(f"{name} {row[name + OF_GROUP]:.1f}" for name in self.groups)
        return (f"F {row['validation_force_rmse_meV_A']:.1f} {f'({apart}) ' if apart else ''}meV/Å  "
                f"E {row['validation_energy_rmse_meV_atom']:.2f} meV/atom  {self.progress.cpu_seconds:.0f} CPU-s  "
                f"{self.progress.flops / 1e12:.2f} TFLOP  {', '.join(self.progress.backends)}")

    def _is_over(self, until: float) -> bool:
        return self.progress.is_finished or self.spent() >= until

    def _step(self, batch: Batch) -> None:
        state, config = self.progress, self.config
        self.learning_rate = learning_rate(config, step=state.step, warm_from=state.warm_from, progress=self.spent())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        with _Dropped(self.potential, self.parameters, config, state.step):
            energies, forces, virials = self.potential(batch, create_graph=True)
            value = loss(batch, energies, forces, virials, config, self.potential.scale)
            value.backward(inputs=self.weights)
        norm = float(torch.nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None]))
        if not math.isfinite(norm):
            raise TrainingError(
                expected="finite gradients", received=f"loss {float(value.detach()):g}, gradient norm {norm:g}",
                where=f"step {state.step}", todo="lint the data (`sapis data lint`), or lower the learning rate",
            )
        # A single frame with huge errors would fill the optimiser's memory of squared gradients (AMSGrad never forgets them).
        state.gradient_norm = state.gradient_norm or norm  # that of the first batch with labels
        limit = config.clip * state.gradient_norm
        torch.nn.utils.clip_grads_with_norm_(self.weights, limit, torch.tensor(norm))
        state.gradient_norm += (min(norm, limit) - state.gradient_norm) / NORM_MEMORY
        self.optimizer.step()
        self.mean.update(self.parameters, state.step)
        state.step += 1
        name = backend_of(batch)
        state.flops += self.flops_of_batch(batch, name) + optimizer_flops(self.optimizer)
        state.backends[name] = state.backends.get(name, 0) + 1
        state.train_losses.append(float(value.detach()))

    def _is_validation_due(self) -> bool:
        """At equal fractions of the budget; the last one is at its end."""
        state = self.progress
        state.is_finished = self.spent() >= 1.0
        return state.is_finished or int(self.spent() * self.config.validations) > len(state.history)

    def _validate(self) -> None:
        state, clock = self.progress, time.process_time()
        with _Weights(self.parameters, self.mean.values):
            errors = self._validation_errors()
        state.cpu_seconds += time.process_time() - clock
        state.history.append({
            "step": state.step, "epoch": state.step / self.n_batches, "cpu_seconds": state.cpu_seconds, "flops": state.flops,
            "learning_rate": self.learning_rate, "train_loss": float(np.mean(state.train_losses)), **errors,
        })
        state.train_losses = []
        # Without a validation set the latest weights are the best ones.
        loss = errors["validation_loss"]
        if not self.validation or loss < state.best_score or state.best_score == math.inf:
            state.best_score, state.n_stale = (loss if self.validation and math.isfinite(loss) else math.inf), 0
            write_tensors(self.folder / BEST, self.mean.values, {"step": state.step, **errors})
        else:
            state.n_stale += 1
        if self.config.patience is not None and state.n_stale >= self.config.patience:
            state.is_finished = True
        self._log()

    def _validation_errors(self) -> dict[str, float]:
        losses, sizes, energy, force = [], [], [], []
        for start in range(0, len(self.validation), self.config.batch_size):
            samples = self.validation[start : start + self.config.batch_size]
            batch = collate(samples, cutoff=self.potential.cutoff, dtype=self.potential.dtype)
            energies, forces, virials = (value.detach() for value in self.potential(batch))
            losses.append(float(loss(batch, energies, forces, virials, self.config, self.potential.scale)))
            sizes.append(len(samples))
            energy.append(((graph_sums(energies, batch) - batch.energies) / batch.n_atoms).square())
            force.append((forces - batch.forces).square())
        return {
            "validation_loss": float(np.average(losses, weights=sizes)) if losses else math.nan,
            "validation_force_rmse_meV_A": 1e3 * _root_mean(force), "validation_energy_rmse_meV_atom": 1e3 * _root_mean(energy),
            **{name + OF_GROUP: 1e3 * _root_mean([torch.cat(force)[mask]]) for name, mask in self.groups.items()},
        }

    def _log(self) -> None:
        rows = self.progress.history
        with replacing(self.folder / "log.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
            writer.writeheader()
            writer.writerows(rows)
        if self.board is not None:
            for name, value in rows[-1].items():
                self.board.add_scalar(name, value, rows[-1]["step"])

    def save(self) -> None:
        """Write the checkpoint from which `run` goes on as if nothing had happened."""
        tensors = {f"weights.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"mean.{name}": value for name, value in self.mean.values.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        # An infinite best score (nothing validated yet) is not JSON.
        state = {**vars(self.progress), "best_score": min(self.progress.best_score, 1e300), "identity": self.identity}
        write_tensors(self.folder / CHECKPOINT, tensors, state)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        tensors, state = read_checkpoint(path)
        if state.pop("identity", None) != self.identity:
            raise TrainingError(
                expected="a checkpoint of this same training (model, data, settings)", received="one of another training",
                where=str(path), todo=f"choose another output folder, or delete the folder {path.parent}",
            )
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                kind, rest = name.split(".", 1)
                if kind == "weights":
                    self.parameters[rest].copy_(tensor)
                elif kind == "mean":
                    self.mean.values[rest].copy_(tensor)
                else:
                    index, moment = rest.split(".", 1)
                    moments.setdefault(int(index), {})[moment] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.progress = Progress(**state)
        if self.progress.history:
            read_checkpoint(self.folder / BEST)  # its damage would otherwise show at the end, when all is spent

    def _finish(self) -> None:
        self.save()
        if self.board is not None:
            self.board.close()
        if self.progress.history:
            self.potential.load_state_dict(read_checkpoint(self.folder / BEST)[0])


class _Dropped:
    """Leave channels out inside a ``with`` block; at its end gradients are those by the whole weights."""

    def __init__(self, potential: TransformerPotential, parameters: dict[str, torch.Tensor], config: TrainingConfig, step: int,
                 ) -> None:
        factors = channel_factors(potential, config.dropout, derive_seed(config.seed, "dropout", step)) if config.dropout else {}
        self.changed = [(parameters[name], factor, parameters[name].detach().clone()) for name, factor in factors.items()]

    @torch.no_grad()
    def __enter__(self) -> None:
        for weight, factor, _ in self.changed:
            weight.mul_(factor)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for weight, factor, whole in self.changed:
            weight.copy_(whole)
            if weight.grad is not None:
                weight.grad.mul_(factor)


class _Weights:
    """Exchange the weights for others inside a ``with`` block."""

    def __init__(self, parameters: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
        self.parameters, self.others = parameters, others

    def __enter__(self) -> None:
        self.kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._set(self.others)

    def __exit__(self, *_: Any) -> None:
        self._set(self.kept)

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises:
        FileError: no whole checkpoint; the message says how to start again.
    """
    try:
        return read_tensors(path)
    except FileError as error:
        raise FileError(
            expected=error.expected, received=error.received, where=error.where,
            todo=f"delete {CHECKPOINT} and {BEST} in {path.parent}; the same command then trains from the start",
        ) from None


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _root_mean(squares: list[torch.Tensor]) -> float:
    values = torch.cat(squares) if squares else torch.zeros(0)
    return float(values[torch.isfinite(values)].double().mean().sqrt())


def _require_labels(systems: Sequence[System], config: TrainingConfig, where: str) -> None:
    """A weighted label that no frame has would be a loss of zero that goes unnoticed."""
    if not systems:
        raise TrainingError(expected="at least one frame", received="none", where=where, todo="give more frames")
    for name, weight in (("energy", config.energy_weight), ("forces", config.force_weight)):
        n_labelled = sum(getattr(system, name) is not None for system in systems)
        if weight and n_labelled == 0:
            raise TrainingError(
                expected=f"{name} labels, since {name} has the weight {weight:g}", received=f"none in {len(systems)} systems",
                where=where, todo=f"give the key of the {name} labels, or set the weight to 0",
            )
