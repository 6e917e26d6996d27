"""What an evaluation of the Transformer costs, part by part: arithmetic, traffic to memory, weights.

FLOPs count what a back-end really does (docs/conventions.md). The compiled loops visit non-zero coupling coefficients and used
slots only (`cost`); torch's matrix products take dense tables and, padded, all slots (`sapis.model.products`). Contractions are
told from element-wise work, because torch's counter, by which other models are measured, sees matrix products only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from sapis.data.batch import Batch
from sapis.model.arithmetic import Counts, pieces
from sapis.model.config import ModelConfig
from sapis.model.edges import EdgeList
from sapis.model.layers import Attention, Coupling, Gate, Product
from sapis.model.products import torch_flops
from sapis.model.program import Program
from sapis.model.tape import Operation, Tape
from sapis.model.transformer import Layer, Transformer


@dataclass(frozen=True)
class Work:
    """Arithmetic and traffic.

    Attributes:
        products: FLOPs of contractions, two for a multiplication with an addition.
        elementwise: FLOPs of all else.
        n_bytes: operands and results, each once: an estimate, for caches keep some and loops read some again.
    """

    products: float = 0.0
    elementwise: float = 0.0
    n_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return (self.products + self.elementwise) / self.n_bytes if self.n_bytes else 0.0


@dataclass(frozen=True)
class Part:
    """A part of the model and what it costs.

    Attributes:
        name: of the part.
        n_parameters: its weights.
        forward: energies.
        forces: energies, forces and virials.
        training: these, and the gradient of a loss on them by the weights.
    """

    name: str
    n_parameters: int = 0
    forward: Work = Work()
    forces: Work = Work()
    training: Work = Work()

    def __add__(self, other: Part) -> Part:
        return Part(self.name, self.n_parameters + other.n_parameters, self.forward + other.forward, self.forces + other.forces,
                    self.training + other.training)


def cost(transformer: Transformer, *, n_atoms: int, n_neighbors: int) -> list[Part]:
    """What the compiled loops do for ``n_atoms`` with ``n_neighbors`` each, part by part; on any machine, numba or not."""
    plan = _Plan(transformer, n_atoms, n_neighbors)
    tape = plan.tape
    assert isinstance(tape, _Shapes)
    names, owners = {number: weight for weight, number in plan.weights.items()}, set[int]()
    parts: dict[str, Part] = {}
    for operation, label in zip(tape.operations, tape.labels, strict=True):
        inputs = [tape.values[number] for number in operation.inputs]
        out = tape.values[operation.out]
        for piece in pieces(operation.name, out.shape, [item.shape for item in inputs], operation.constants):
            chosen = range(-1, len(inputs)) if piece.operands is None else piece.operands
            found = {operation.inputs[place]: inputs[place] for place in chosen if place >= 0}
            traffic = _traffic(sum(item.nbytes for item in found.values()), out.nbytes if -1 in chosen else 0)
            counts = [_passes(operation, item) for item in (piece.products, piece.elementwise, traffic)]
            own = {number for number in found if number in names} - owners
            owners |= own
            name = label.format(piece=piece.name)
            part = Part(name, sum(names[number].numel() for number in own), *(Work(*each) for each in zip(*counts, strict=True)))
            parts[name] = parts[name] + part if name in parts else part
    edges = n_atoms * n_neighbors
    size = 18 * edges, 15 * edges * out.itemsize  # g_ij times d_ij, and back
    virial = Work(size[0], 6 * edges, size[1])
    return [*parts.values(), Part("forces and virials", forces=virial, training=virial + virial)]


def cost_of(config: ModelConfig, *, n_atoms: int, n_neighbors: int, n_species: int = 4) -> list[Part]:
    """As `cost`, of a model in float32 that need not exist yet."""
    transformer = Transformer(config, n_species=n_species, average_neighbors=1.0, dtype=torch.float32)
    return cost(transformer, n_atoms=n_atoms, n_neighbors=n_neighbors)


def total(parts: Sequence[Part]) -> Part:
    """The sum of ``parts``."""
    return sum(parts, Part("total"))


def counted_flops(transformer: Transformer, name_of_pass: str = "training") -> Callable[[Batch, str], float]:
    """Contractions of a training step as a function of batch and back-end: what a record gives as ``flops``.

    Args:
        name_of_pass: another pass of `Part`: ``forward`` or ``forces``.
    """
    lone, one = (getattr(total(cost(transformer, n_atoms=1, n_neighbors=n)), name_of_pass).products for n in (0, 1))

    def count(batch: Batch, name: str) -> float:
        n_atoms, n_edges = len(batch.species), int(batch.counts.sum())
        if name == "compiled":
            return n_atoms * lone + n_edges * (one - lone)
        if name == "padded":
            return torch_flops(transformer, n_atoms=n_atoms, n_edges=batch.senders.numel())[name_of_pass]
        n_grouped = sum(group.numel() for group in EdgeList.of(batch).groups)
        return torch_flops(transformer, n_atoms=n_atoms, n_edges=n_edges, n_grouped=n_grouped)[name_of_pass]

    return count


def _traffic(inputs: float, out: float) -> Counts:
    """Bytes of the loops: operands, their tangents and gradients, the outcome and its gradient and change."""
    return Counts(inputs + out, 2 * inputs + out, 0.0, 3 * inputs + 2 * out)


def _passes(operation: Operation, counts: Counts) -> tuple[float, float, float]:
    """Of energies, forces, training: which loops `sapis.model.tape` calls for them."""
    back, twice = (counts.backward, counts.double) if operation.is_moved else (0.0, 0.0)
    forces = counts.forward + back
    return counts.forward, forces, forces + twice + counts.backward + counts.weight


class _Shapes(Tape):
    """A tape that computes nothing: its values have shapes but take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.part = "", ""
        self.labels: list[str] = []

    def run(self, name: str, shape: tuple[int, ...], *inputs: int, constants: tuple[Any, ...] = (), has_weight: bool = False,
            ) -> int:
        out = np.broadcast_to(np.zeros((), self.values[inputs[0]].dtype), shape)
        is_moved = any(self.is_moved[number] for number in inputs)
        self.labels.append(self.layer + _PARTS.get((self.part, name), self.part))
        self.operations.append(Operation(name, inputs, self.hold(out, is_moved=is_moved), constants, has_weight, is_moved))
        return len(self.values) - 1


# Operations that do not belong to the part around them.
_PARTS = {
    ("attention", "scalars"): "logits", ("attention", "norm"): "logits", ("attention", "dense"): "logits",
    ("attention", "scale_heads"): "logits", ("attention", "linear"): "values", ("attention", "columns"): "values",
    ("attention", "collect"): "{piece}", ("", "embed"): "embedding", ("", "radial"): "radial functions",
    ("", "harmonics"): "harmonics", ("", "scalars"): "read-out", ("", "add"): "read-out", ("", "weigh"): "read-out",
}


class _Plan(Program):
    """A program on a tape of shapes, whose operations know which part of the model they are."""

    tape: _Shapes

    def __init__(self, transformer: Transformer, n_atoms: int, n_neighbors: int) -> None:
        self.n_layers = self.order = 0
        dtype = transformer.embedding.detach().cpu().numpy().dtype
        nothing = np.broadcast_to(np.zeros((), dtype), (n_atoms, n_neighbors, 3))
        species, senders = np.zeros(n_atoms, dtype=np.int64), np.zeros((n_atoms, n_neighbors), dtype=np.int64)
        conditions = np.zeros((n_atoms, 3), dtype=np.int64)
        super().__init__(transformer, species, conditions, senders, np.full(n_atoms, n_neighbors), nothing, tape=_Shapes())

    def _within(self, part: str, function: Callable[..., int], *arguments: Any) -> int:
        before, self.tape.part = self.tape.part, part
        result = function(*arguments)
        self.tape.part = before
        return result

    def _layer(self, layer: Layer, features: int) -> int:
        self.n_layers, self.order = self.n_layers + 1, 1
        self.tape.layer = f"layer {self.n_layers} "
        result = self._within("update and keep", super()._layer, layer, features)
        self.tape.layer = ""
        return result

    def _attention(self, module: Attention, features: int) -> int:
        return self._within("attention", super()._attention, module, features)

    def _product(self, module: Product, features: int) -> int:
        return self._within("order 1", super()._product, module, features)

    def _couple(self, coupling: Coupling, one: int, other: int) -> int:
        self.order += 1
        self.tape.part = f"order {self.order}"  # until the product ends
        return super()._couple(coupling, one, other)

    def _gate(self, module: Gate, features: int) -> int:
        return self._within("gate", super()._gate, module, features)

    def _readout(self, module: nn.Sequential, scalars: int) -> int:
        return self._within("read-out", super()._readout, module, scalars)
