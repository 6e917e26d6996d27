"""Compiled operations on a tape, and the two derivatives that a potential and its training need.

An operation ``out = f(x)`` is three loops of `sapis.model.compiled`:

- forward;
- backward: gradients of ``<d_out, f(x)>`` by x;
- double backward: with df the change of f along a tangent t of x, df itself and the gradients of ``<d_out, df>`` by x. A last
  input that is a weight has no tangent; its gradient is added to what is there.

A tape holds the energies' operations. Forces need one backward pass over it. A loss on energies e and on g, the gradient of
their sum by positions, needs the gradient of ``<c, e> + <t, g>`` by the weights, where c and t are the loss's own gradients; and
``<t, g>`` is the change of the summed energy along t. So a second pass runs forward along t and back once more (Pearlmutter,
Neural Computation 6, 147, 1994). Torch would do the same; here an operation costs microseconds instead of a hundred of them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Operation(NamedTuple):
    """A recorded operation.

    Attributes:
        name: of the loops.
        inputs, out: values on the tape, by number.
        constants: further arguments of all three loops.
        has_weight: the last input is a weight, whose gradient can be left out.
        is_moved: the outcome depends on positions.
    """

    name: str
    inputs: tuple[int, ...]
    out: int
    constants: tuple[Any, ...]
    has_weight: bool
    is_moved: bool


class Tape:
    """Values and the operations that made them."""

    def __init__(self) -> None:
        self.values: list[Array] = []
        self.is_moved: list[bool] = []
        self.operations: list[Operation] = []
        self.gradients: list[Array | None] = []

    def hold(self, value: Array, *, is_moved: bool = False) -> int:
        """Put a value on the tape: positions (``is_moved``), weights, constants."""
        self.values.append(value)
        self.is_moved.append(is_moved)
        return len(self.values) - 1

    def run(self, name: str, shape: tuple[int, ...], *inputs: int, constants: tuple[Any, ...] = (), has_weight: bool = False,
            ) -> int:
        """Compute and record."""
        operands = [self.values[number] for number in inputs]
        out = np.empty(shape, operands[0].dtype)
        getattr(_loops(), name)(out, *operands, *constants)
        is_moved = any(self.is_moved[number] for number in inputs)
        self.operations.append(Operation(name, inputs, self.hold(out, is_moved=is_moved), constants, has_weight, is_moved))
        return len(self.values) - 1

    def backward(self, out: int, d_out: Array, wanted: int) -> Array:
        """Gradient of ``<d_out, values[out]>`` by the value ``wanted``; all on the way are kept for `double_backward`."""
        self.gradients = [None] * len(self.values)
        self.gradients[out] = d_out
        for operation in reversed(self.operations):
            gradient = self.gradients[operation.out]
            if gradient is not None and operation.is_moved:
                self._add(self.gradients, operation, self._backward(operation, gradient))
        return self._zeros_if_absent(self.gradients[wanted], wanted)

    def double_backward(self, out: int, d_out: Array, moved: int, tangent: Array) -> list[Array | None]:
        """Gradients, by every value, of ``<d_out, values[out]>`` plus the product of ``tangent`` with what `backward` gave."""
        tangents: list[Array | None] = [None] * len(self.values)
        tangents[moved] = tangent
        seconds: list[Array | None] = [None] * len(self.values)
        seconds[out] = d_out
        changes: list[list[Array]] = []
        for operation in self.operations:
            gradient = self.gradients[operation.out]
            is_needed = gradient is not None and operation.is_moved
            changes.append(self._double_backward(operation, gradient, tangents, seconds) if is_needed else [])
        for operation, change in zip(reversed(self.operations), reversed(changes), strict=True):
            gradient = seconds[operation.out]
            if gradient is not None:
                self._add(seconds, operation, self._backward(operation, gradient, seconds))
            self._add(seconds, operation, change)
        return seconds

    def _backward(self, operation: Operation, gradient: Array, sums: list[Array | None] | None = None) -> list[Array]:
        """By all inputs but a weight, to whose entry of ``sums`` its gradient is added, if there are any."""
        operands = [self.values[number] for number in operation.inputs]
        places = [np.zeros_like(operand) for operand in (operands[:-1] if operation.has_weight else operands)]
        # The loop takes an array in every place; if no sums are given it does not touch this one.
        weight = [] if not operation.has_weight else [operands[-1] if sums is None else self._sum(sums, operation.inputs[-1])]
        flag = (sums is not None,) if operation.has_weight else ()
        getattr(_loops(), operation.name + "_backward")(*places, *weight, gradient, *operands, *operation.constants, *flag)
        return places

    def _double_backward(self, operation: Operation, gradient: Array | None, tangents: list[Array | None],
                         sums: list[Array | None]) -> list[Array]:
        """By all inputs but a weight, to whose entry of ``sums`` its gradient is added."""
        operands = [self.values[number] for number in operation.inputs]
        moved = operation.inputs[:-1] if operation.has_weight else operation.inputs
        directions = [self._zeros_if_absent(tangents[number], number) for number in moved]
        places = [np.zeros_like(self.values[number]) for number in moved]
        weight = [self._sum(sums, operation.inputs[-1])] if operation.has_weight else []
        change = np.empty_like(self.values[operation.out])
        getattr(_loops(), operation.name + "_double_backward")(change, *places, *weight, gradient, *operands, *directions,
                                                               *operation.constants)
        tangents[operation.out] = change
        return places

    def _sum(self, sums: list[Array | None], number: int) -> Array:
        """The entry of ``sums``, from zero on."""
        total = sums[number] = self._zeros_if_absent(sums[number], number)
        return total

    def _zeros_if_absent(self, value: Array | None, number: int) -> Array:
        return np.zeros_like(self.values[number]) if value is None else value

    @staticmethod
    def _add(sums: list[Array | None], operation: Operation, gradients: list[Array]) -> None:
        for number, gradient in zip(operation.inputs, gradients, strict=False):
            total = sums[number]
            if total is None:
                sums[number] = gradient
            else:
                total += gradient


@cache
def _loops() -> ModuleType:
    """The compiled loops. Their products are too small to be shared: more threads would only wait for each other."""
    from threadpoolctl import ThreadpoolController

    loops = import_module("sapis.model.compiled")
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
    return loops
