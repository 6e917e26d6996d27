"""FLOPs of the loops of `sapis.model.compiled`, from shapes alone.

A loop is split into pieces. Of each, contractions (matrix products, sums over coupling coefficients and over neighbours: what a
tensor library would give to a matrix product) are told from element-wise work; every addition, multiplication, division, root and
exponential is one FLOP. Left out are copies, the sums of gradients on the tape, and those of the weights' gradients of groups of
atoms: a few per cent. `tests/test_cost.py` runs the loops on numbers that count their operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Counts(NamedTuple):
    """FLOPs of the loops of an operation: forward, backward without and for the weight alone, double backward."""

    forward: float = 0.0
    backward: float = 0.0
    weight: float = 0.0
    double: float = 0.0


class Piece(NamedTuple):
    """A piece of an operation.

    Attributes:
        name: what it is for; empty where the operation is of one piece.
        products: contractions.
        elementwise: the rest.
        operands: which inputs it reads, by number, and -1 for the outcome; those of one-piece operations are all.
    """

    name: str
    products: Counts
    elementwise: Counts
    operands: tuple[int, ...] | None = None


def pieces(name: str, out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    """Those of the operation ``name``; arguments as of `sapis.model.tape.Tape.run`. All slots count as used."""
    return _OPERATIONS[name](out, inputs, constants)


def _sum(*terms: tuple[float, tuple[float, float, float, float]]) -> Counts:
    """Of multiples."""
    return Counts(*(sum(factor * counts[loop] for factor, counts in terms) for loop in range(4)))


def _each(*per_element: float) -> Callable[[Shape, Sequence[Shape], Sequence[Any]], list[Piece]]:
    """The same for every element of the outcome."""
    def count(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
        size = 1
        for length in out:
            size *= length
        return [Piece("", Counts(), Counts(*(size * flops for flops in per_element)))]
    return count


def _norm(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    size = out[0] * out[1]
    return [Piece("", Counts(), _sum((size, (3, 7, 0, 18)), (size / constants[1], (5, 10, 0, 16))))]


def _dense(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    size = out[1] * inputs[0][1]
    return [Piece("", _sum((2 * out[0] * size, (1, 1, 1, 2))), _sum((size, (0, 0, 1, 1))))]


def _linear(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    n_degrees, n_in, n_out = inputs[1]
    size = n_degrees * n_in * n_out
    return [Piece("", _sum((2 * n_degrees * out[1] * size, (1, 1, 1, 2))), _sum((size, (0, 0, 1, 1))))]


def _weigh(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    size = min(out[0], inputs[1][0]) * out[1] * out[2]
    return [Piece("", Counts(), _sum((size, (2, 2, 2, 4))))]


def _gate(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    size = out[1] * out[2]
    n_gates = inputs[1][1] // out[2] - 4  # see `sapis.model.layers.Gate`
    return [Piece("", Counts(), _sum((size, (1, 0, 0, 1)), (n_gates * size, (4, 9, 0, 11)),
                                     ((out[0] - 1) * size, (1, 4, 0, 13))))]


def _mix(out: Shape, widths: Sequence[int]) -> float:
    """The map of paths and channels of one forward pass."""
    return float(sum(2 * (2 * l + 1) * out[1] * int(width) * out[2] for l, width in enumerate(widths)))


def _couple(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    paths, widths, _ = constants
    size = len(paths[-1]) * out[1] * inputs[0][2]  # non-zero coefficients
    return [Piece("", _sum((_mix(out, widths), (1, 1, 1, 3)), (size, (3, 5, 3, 11))), Counts())]


def _collect(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    (atoms, n_keys), _, (_, n_values), (_, slots, n_radial), (_, _, n_lm), (_, n_heads), _ = inputs
    couplings, widths = constants[:2]
    edges, n_basis = atoms * slots, n_lm * n_radial
    matches = edges * n_keys, (2, 6, 0, 14)
    biases = edges * n_radial * n_heads, (2, 6, 0, 14)
    coupled = 2 * len(couplings[-1]) * n_radial * (n_values // couplings[4]) * atoms, (1, 1, 1, 2)
    return [
        Piece("logits", _sum(matches, biases), _sum((edges * n_heads, (7, 13, 7, 26))), (0, 1, 5)),
        Piece("density", _sum((2 * edges * n_basis * n_values, (1, 2, 1, 6))),
              _sum((edges * n_basis, (1, 5, 0, 12)), (edges * n_values, (1, 6, 0, 15)), (edges * (n_lm + n_radial), (0, 1, 0, 1)),
                   (atoms * n_basis * n_values, (0, 0, 0, 1))), (2, 3, 4)),
        Piece("coupling", _sum(coupled), Counts(), ()),
        Piece("mixing", _sum((_mix(out, widths), (1, 1, 1, 3))), Counts(), (6, -1)),
    ]


def _radial(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    edges, n_radial = out[0] * out[1], out[2]
    # What does not depend on the function is worked out once, what a pass does not need, not at all.
    return [Piece("", Counts(), _sum((edges, (24, 45, 0, 75)), (edges * n_radial, (4, 11, 0, 24))))]


def _harmonics(out: Shape, inputs: Sequence[Shape], constants: Sequence[Any]) -> list[Piece]:
    edges, n_entries = out[0] * out[1], len(constants[-1])
    chain = (3, 8, 0, 22) if out[2] > 1 else (0, 0, 0, 0)
    rest = (12, 29, 0, 92) if out[2] > 1 else (9, 0, 0, 0)
    return [Piece("", Counts(), _sum((edges * n_entries, chain), (edges, rest)))]


_OPERATIONS: dict[str, Callable[[Shape, Sequence[Shape], Sequence[Any]], list[Piece]]] = {
    "embed": _each(0, 0, 1, 0), "scalars": _each(0, 0, 0, 0), "columns": _each(0, 0, 0, 0), "add": _each(1, 0, 0, 1),
    "shift": _each(1, 0, 1, 0), "scale_heads": _each(1, 1, 2, 3), "silu": _each(4, 9, 0, 18), "norm": _norm,
    "swiglu": _each(5, 12, 0, 27), "dense": _dense, "linear": _linear, "weigh": _weigh, "gate": _gate, "couple": _couple,
    "collect": _collect, "radial": _radial, "harmonics": _harmonics,
}
