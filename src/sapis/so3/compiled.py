"""Compiled loops of `sapis.so3.contraction`; importing this module needs numba.

Loops go over atoms outside and entries inside, so that the rows of one atom stay in cache. Indices are unsigned, so that numba
does not test each for a negative value.
"""

from __future__ import annotations

# mypy: ignore-errors
from numba import njit, uint64

# Not "nnan" and "ninf": a training must see that a number is not finite.
_jit = njit(cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", nogil=True)


@_jit
def _start(layout, row, atom, atoms, channels):
    """Where a row of an atom starts (see `Layout`)."""
    planes, starts, strides = layout
    return uint64((planes[row] * atoms + starts[row] + strides[row] * atom) * channels)


@_jit
def products(out, one, other, layouts, rows, values, atoms, channels):
    """Adds ``c_e one[i_e] other[j_e]`` to ``out[k_e]``."""
    width = uint64(channels)
    for atom in range(atoms):
        for entry in range(len(values)):
            value = values[entry]
            here = _start(layouts[0], rows[0][entry], atom, atoms, channels)
            first = _start(layouts[1], rows[1][entry], atom, atoms, channels)
            second = _start(layouts[2], rows[2][entry], atom, atoms, channels)
            for channel in range(width):
                out[here + channel] += value * one[first + channel] * other[second + channel]


@_jit
def products_backward(by_one, by_other, gradient, one, other, layouts, rows, values, atoms, channels):
    """Adds the gradients of the products by both factors."""
    width = uint64(channels)
    for atom in range(atoms):
        for entry in range(len(values)):
            value = values[entry]
            here = _start(layouts[0], rows[0][entry], atom, atoms, channels)
            first = _start(layouts[1], rows[1][entry], atom, atoms, channels)
            second = _start(layouts[2], rows[2][entry], atom, atoms, channels)
            for channel in range(width):
                change = value * gradient[here + channel]
                by_one[first + channel] += change * other[second + channel]
                by_other[second + channel] += change * one[first + channel]
