"""Runs the loops of a small model as plain Python on numbers that count their operations: needs NUMBA_DISABLE_JIT=1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conftest import small_potential
from sapis.model import compiled
from sapis.model.arithmetic import pieces
from sapis.model.cost import _Plan

N_ATOMS, N_NEIGHBORS = 4, 3
COUNT = 0


class Number:
    """A real number each of whose operations is counted."""

    def __init__(self, value: float) -> None:
        self.value = float(value)

    def sqrt(self) -> Number:
        return _counted(math.sqrt(self.value))

    def exp(self) -> Number:
        return _counted(math.exp(self.value))

    def __neg__(self) -> Number:
        return _counted(-self.value)


def _counted(value: float) -> Number:
    global COUNT
    COUNT += 1
    return Number(value)


def _value(item: Any) -> float:
    return item.value if isinstance(item, Number) else float(item)


for symbol in ("add", "sub", "mul", "truediv"):
    def _operate(self: Number, other: Any, symbol: str = symbol) -> Number:
        return _counted(getattr(self.value, f"__{symbol}__")(_value(other)))

    def _operate_right(self: Number, other: Any, symbol: str = symbol) -> Number:
        return _counted(getattr(_value(other), f"__{symbol}__")(self.value))

    setattr(Number, f"__{symbol}__", _operate)
    setattr(Number, f"__r{symbol}__", _operate_right)


def _dot(one: np.ndarray, other: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    global COUNT
    COUNT += 2 * one.shape[0] * one.shape[1] * other.shape[1]
    out = np.empty((one.shape[0], other.shape[1]), object) if out is None else out
    out[:] = np.array([Number(0.1)])
    return out


def numbers(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return np.array([Number(value) for value in random.normal(size=math.prod(shape))], dtype=object).reshape(shape)


def operations(options: dict[str, int]) -> dict[str, dict[str, tuple[float, int]]]:
    """Of every operation of the model, by loop: FLOPs by the formula, and counted."""
    global COUNT
    np.dot = _dot
    random = np.random.default_rng(0)
    plan = _Plan(small_potential(**options).transformer, N_ATOMS, N_NEIGHBORS)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for operation in plan.tape.operations:
        name = operation.name
        if name == "radial":  # a compiler leaves out derivatives that are not asked for, which plain Python works out
            continue
        shapes = [plan.tape.values[number].shape for number in operation.inputs]
        out = plan.tape.values[operation.out].shape
        inputs = [numbers(shape, random) for shape in shapes]
        d_out, tangents = numbers(out, random), [numbers(shape, random) for shape in shapes]
        expected = pieces(name, out, shapes, operation.constants)

        def run(loop: str, kind: str, *arguments: Any, expected: Any = expected, constants: Any = operation.constants,
                name: str = name) -> None:
            global COUNT
            COUNT = 0
            getattr(compiled, name + kind)(*arguments[:-1], *constants, *arguments[-1])
            total = sum(getattr(piece.products, loop) + getattr(piece.elementwise, loop) for piece in expected)
            before = found.setdefault(name, {}).get(loop, (0, 0))
            found[name][loop] = before[0] + total, before[1] + COUNT

        zeros = [np.full(shape, None, dtype=object) for shape in shapes]
        for item in zeros:
            item[...] = Number(0)
        run("forward", "", np.empty(out, object), *inputs, ())
        moved = inputs[:-1] if operation.has_weight else inputs
        run("backward", "_backward", *zeros, d_out, *inputs, (False,) if operation.has_weight else ())
        if operation.has_weight:
            run("weight", "_backward", *zeros, d_out, *inputs, (True,))
        if name == "embed":  # its weight is all that it has
            continue
        run("double", "_double_backward", np.empty(out, object), *zeros, d_out, *inputs, *tangents[: len(moved)], ())
    for loops in found.values():
        if "weight" in loops:  # the loop does what does not depend on the weight's gradient too
            loops["weight"] = loops["weight"][0] + loops["backward"][0], loops["weight"][1]
    return found
