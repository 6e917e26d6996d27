"""The Transformer as a program of compiled operations: what `sapis.model.transformer` says, for CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sapis.data.conditions import NAMES
from sapis.model.layers import Attention, Coupling, DegreeLinear, Gate, Product, norm_group
from sapis.model.tape import Tape
from sapis.model.transformer import Layer, Transformer


def energies_and_gradient(transformer: Transformer, species: torch.Tensor, conditions: torch.Tensor, senders: torch.Tensor,
                          counts: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-atom energies ``(atoms,)`` and the gradient of their sum by ``vectors``, both differentiable once by the weights."""
    energies, gradient = _Program.apply(transformer, species, conditions, senders, counts, vectors, *transformer.parameters())
    return energies, gradient


class _Program(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transformer: Transformer, species: torch.Tensor, conditions: torch.Tensor, senders: torch.Tensor,
                counts: torch.Tensor, vectors: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        program = Program(transformer, species.numpy(), conditions.numpy(), senders.numpy(), counts.numpy(),
                          vectors.detach().numpy())
        gradient = program.gradient()
        if any(ctx.needs_input_grad):
            ctx.program, ctx.weights = program, weights
            ctx.set_materialize_grads(False)
        return torch.from_numpy(program.tape.values[program.energies][:, 0].copy()), torch.from_numpy(gradient.copy())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_energies: torch.Tensor | None, d_gradient: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        found = ctx.program.weight_gradients(None if d_energies is None else d_energies.numpy(),
                                             None if d_gradient is None else d_gradient.contiguous().numpy())
        return *(None,) * 6, *(None if item is None else torch.from_numpy(item).view(weight.shape)
                                               for item, weight in zip(found, ctx.weights, strict=True))


class Program:
    """One evaluation of a Transformer on a tape, a new one if none is given."""

    def __init__(self, transformer: Transformer, species: np.ndarray, conditions: np.ndarray, senders: np.ndarray,
                 counts: np.ndarray, vectors: np.ndarray, tape: Tape | None = None) -> None:
        self.tape = Tape() if tape is None else tape
        self.weights: dict[nn.Parameter, int] = {}
        self.read: list[tuple[int, int]] = []  # what the last linear map of each read-out reads, and its weights
        self.transformer, self.species, self.senders, self.counts = transformer, species, senders, counts
        self.conditions = {name: np.ascontiguousarray(conditions[:, k]) for k, name in enumerate(NAMES)}
        self.n_atoms, slots, _ = vectors.shape
        self.vectors = self.tape.hold(vectors, is_moved=True)
        basis, harmonics = transformer.radial, transformer.harmonics
        self.radial = self.tape.run("radial", (self.n_atoms, slots, len(basis.frequencies)), self.vectors,
                                    constants=(basis.frequencies.numpy(), counts, vectors.dtype.type(basis.cutoff)))
        self.harmonics = self.tape.run("harmonics", (self.n_atoms, slots, (harmonics.l_max + 1) ** 2), self.vectors,
                                       constants=(counts, *harmonics.steps(vectors.dtype)))
        self.energies = self._transformer()

    def gradient(self) -> np.ndarray:
        """Of the sum of the energies by the vectors."""
        energies = self.tape.values[self.energies]
        return self.tape.backward(self.energies, np.ones_like(energies), self.vectors)

    def weight_gradients(self, d_energies: np.ndarray | None, d_gradient: np.ndarray | None) -> list[np.ndarray | None]:
        """Of ``<d_energies, energies> + <d_gradient, gradient>`` by the weights, in their order."""
        energies, vectors = self.tape.values[self.energies], self.tape.values[self.vectors]
        seconds = self.tape.double_backward(
            self.energies, np.zeros_like(energies) if d_energies is None else d_energies[:, None].astype(energies.dtype),
            self.vectors, np.zeros_like(vectors) if d_gradient is None else d_gradient)
        return [seconds[self.weights[weight]] if weight in self.weights else None for weight in self.transformer.parameters()]

    def _weight(self, weight: torch.Tensor, *shape: int) -> int:
        assert isinstance(weight, nn.Parameter)
        if weight not in self.weights:
            array = weight.detach().numpy()
            self.weights[weight] = self.tape.hold(array.reshape(shape) if shape else array)
        return self.weights[weight]

    def _transformer(self) -> int:
        module, total = self.transformer, None
        features = self._embed(module.embedding, self.species)
        for name, table in module.conditions.items():
            more = self._embed(table, self.conditions[name])
            features = self.tape.run("add", self.tape.values[features].shape, features, more)
        for t, (layer, read) in enumerate(zip(module.layers, module.readouts, strict=True)):
            assert isinstance(layer, Layer) and isinstance(read, nn.Sequential)
            features = self._layer(layer, features)
            energies = self._readout(read, self._scalars(self._of_level(features, t)))
            total = energies if total is None else self.tape.run("add", (self.n_atoms, 1), total, energies)
        assert total is not None
        return total

    def _embed(self, table: torch.Tensor, rows: np.ndarray) -> int:
        return self.tape.run("embed", (1, self.n_atoms, table.shape[1]), self._weight(table), constants=(rows,), has_weight=True)

    def _of_level(self, features: int, layer: int) -> int:
        weights = self.transformer.level_weights
        if weights is None:
            return features
        values = self.tape.values[features]
        zeros = self.tape.hold(np.zeros((1, *values.shape[1:]), values.dtype))
        return self._weigh(zeros, features, self._weight(weights), layer, self.conditions["level"])

    def _layer(self, layer: Layer, features: int) -> int:
        update = self._linear(layer.update, self._product(layer.product, self._attention(layer.attention, features)))
        weights = self._weight(layer.keep_weights, layer.keep_weights.shape[0], 1, *layer.keep_weights.shape[1:])
        return self._gate(layer.gate, self._weigh(update, self._linear(layer.keep, features), weights, 0))

    def _attention(self, module: Attention, features: int) -> int:
        scalars = self._norm(self._scalars(features))
        keys = self._norm(self._dense(module.key, scalars), module.n_per_head, 1.0)
        queries = self._norm(self._dense(module.query, scalars), module.n_per_head, 1.0)
        shape = self.tape.values[queries].shape
        queries = self.tape.run("scale_heads", shape, queries, self._weight(module.temperature), constants=(module.head_of_key,),
                                has_weight=True)
        values = self._linear(module.value, features)
        n_lm, _, width = self.tape.values[values].shape
        values = self.tape.run("columns", (self.n_atoms, n_lm * width), values)
        coupling = module.coupling
        rows, density = coupling.couplings.layouts
        couplings = (*rows[:3], density.starts, density.inner_stride, coupling.couplings.starts, coupling.couplings.rows[1],
                     coupling.couplings.values[coupling.weight.dtype])
        constants = (couplings, coupling.widths, rows.size, self.senders, self.counts, module.head_of_key, module.head_of_value,
                     module.scale)
        return self.tape.run("collect", self._shape(coupling), queries, keys, values, self.radial, self.harmonics,
                             self._weight(module.radial_bias), self._mixing(coupling), constants=constants, has_weight=True)

    def _product(self, module: Product, features: int) -> int:
        channels = self.tape.values[features].shape[2]
        zeros = np.zeros((module.n_lm_out, self.n_atoms, channels), self.tape.values[features].dtype)
        weights, power = self._weight(module.order_weights), features
        result = self._weigh(self.tape.hold(zeros), features, weights, 0)
        for n, coupling in enumerate(module.couplings, start=1):
            assert isinstance(coupling, Coupling)
            power = self._couple(coupling, power, features)
            result = self._weigh(result, power, weights, n)
        return result

    def _couple(self, coupling: Coupling, one: int, other: int) -> int:
        rows = coupling.couplings.layouts[0]
        paths = (*rows[:3], *coupling.couplings.rows, coupling.couplings.values[coupling.weight.dtype])
        return self.tape.run("couple", self._shape(coupling), one, other, self._mixing(coupling),
                             constants=(paths, coupling.widths, rows.size), has_weight=True)

    def _gate(self, module: Gate, features: int) -> int:
        wide = self._dense(module.widen, self._norm(self._scalars(features)))
        update = self._dense(module.narrow, self.tape.run("swiglu", (self.n_atoms, 2 * module.n_channels), wide))
        return self.tape.run("gate", self.tape.values[features].shape, features, wide, update, constants=(4 * module.n_channels,))

    def _readout(self, module: nn.Sequential, scalars: int) -> int:
        for part in module:
            if part is module[-1]:
                self.read.append((scalars, self._weight(part.get_parameter("weight"))))
            scalars = (self._dense(part, scalars) if isinstance(part, nn.Linear)
                       else self.tape.run("silu", self.tape.values[scalars].shape, scalars))
        return scalars

    def _dense(self, module: nn.Module, values: int) -> int:
        assert isinstance(module, nn.Linear)
        shape = (self.n_atoms, module.out_features)
        out = self.tape.run("dense", shape, values, self._weight(module.weight), has_weight=True)
        return out if module.bias is None else self.tape.run("shift", shape, out, self._weight(module.bias), has_weight=True)

    def _linear(self, module: DegreeLinear, features: int) -> int:
        n_degrees, _, n_out = module.weight.shape
        shape = (n_degrees**2, self.n_atoms, n_out)
        return self.tape.run("linear", shape, features, self._weight(module.weight), has_weight=True)

    def _weigh(self, base: int, values: int, weights: int, order: int, rows: np.ndarray | None = None) -> int:
        return self.tape.run("weigh", self.tape.values[base].shape, base, values, weights,
                             constants=(self.species if rows is None else rows, order), has_weight=True)

    def _norm(self, values: int, group: int | None = None, factor: float | None = None) -> int:
        shape = self.tape.values[values].shape
        if group is None:
            group = norm_group(shape[1])
        constants = (1 / group if factor is None else factor, group, self.transformer.config.norm_epsilon)
        return self.tape.run("norm", shape, values, constants=constants)

    def _scalars(self, features: int) -> int:
        return self.tape.run("scalars", self.tape.values[features].shape[1:], features)

    def _mixing(self, coupling: Coupling) -> int:
        n_paths, n_in, n_out = coupling.weight.shape
        return self._weight(coupling.weight, n_paths * n_in, n_out)

    def _shape(self, coupling: Coupling) -> tuple[int, int, int]:
        return len(coupling.widths) ** 2, self.n_atoms, coupling.weight.shape[2]
