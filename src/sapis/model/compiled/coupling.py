"""Products of features, mixed: `sapis.model.program`."""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np
from numba import uint64

from sapis.model.compiled.mixing import add_mix_weight, fetch, group, jit, mix, mix_back, store


@jit
def _add_products(rows, one, other, paths, first, m):
    """Adds ``c_e one[i_e] other[j_e]`` to the rows of a group of atoms."""
    planes, starts, strides, row_of, one_of, other_of, values = paths
    atoms, width = one.shape[1], uint64(one.shape[2])
    one, other = one.reshape(-1), other.reshape(-1)
    for atom in range(m):
        for entry in range(len(values)):
            row, value = row_of[entry], values[entry]
            here = uint64(planes[row] * m + starts[row] + strides[row] * atom) * width
            left = uint64(one_of[entry] * atoms + first + atom) * width
            right = uint64(other_of[entry] * atoms + first + atom) * width
            for channel in range(width):
                rows[here + channel] += value * one[left + channel] * other[right + channel]


@jit
def _add_products_back(d_one, d_other, rows, one, other, paths, first, m):
    """Adds the gradients of ``<rows, products>`` by both factors."""
    planes, starts, strides, row_of, one_of, other_of, values = paths
    atoms, width = one.shape[1], uint64(one.shape[2])
    d_one, d_other, one, other = d_one.reshape(-1), d_other.reshape(-1), one.reshape(-1), other.reshape(-1)
    for atom in range(m):
        for entry in range(len(values)):
            row, value = row_of[entry], values[entry]
            here = uint64(planes[row] * m + starts[row] + strides[row] * atom) * width
            left = uint64(one_of[entry] * atoms + first + atom) * width
            right = uint64(other_of[entry] * atoms + first + atom) * width
            for channel in range(width):
                change = value * rows[here + channel]
                d_one[left + channel] += change * other[right + channel]
                d_other[right + channel] += change * one[left + channel]


@jit
def couple(out, one, other, weight, paths, widths, n_rows):
    """``out = mix(products(one, other))``."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, one.dtype), np.empty(out.shape[0] * size * n_out, one.dtype)
    for first in range(0, atoms, size):
        m = min(size, atoms - first)
        rows[:] = 0
        _add_products(rows, one, other, paths, first, m)
        mix(mixed, rows, weight, widths, m)
        store(out, mixed, first, m)


@jit
def couple_backward(d_one, d_other, d_weight, d_out, one, other, weight, paths, widths, n_rows, is_weight_wanted):
    """Adds the gradients of ``<d_out, out>`` to the first three arguments."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, one.dtype), np.empty(d_out.shape[0] * size * n_out, one.dtype)
    scratch = np.empty(widths.max() * n_out, one.dtype)
    for first in range(0, atoms, size):
        m = min(size, atoms - first)
        fetch(mixed, d_out, first, m)
        mix_back(rows, mixed, weight, widths, m)
        _add_products_back(d_one, d_other, rows, one, other, paths, first, m)
        if is_weight_wanted:
            rows[:] = 0
            _add_products(rows, one, other, paths, first, m)
            add_mix_weight(d_weight, scratch, rows, mixed, widths, m)


@jit
def couple_double_backward(d_d_out, d_one, d_other, d_weight, d_out, one, other, weight, t_one, t_other, paths, widths, n_rows):
    """The change of ``out`` along the tangent into ``d_d_out``; adds the gradients of its product with ``d_out``."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, one.dtype), np.empty(d_out.shape[0] * size * n_out, one.dtype)
    more, scratch = np.empty_like(mixed), np.empty(widths.max() * n_out, one.dtype)
    for first in range(0, atoms, size):
        m = min(size, atoms - first)
        rows[:] = 0
        _add_products(rows, t_one, other, paths, first, m)
        _add_products(rows, one, t_other, paths, first, m)
        mix(more, rows, weight, widths, m)
        fetch(mixed, d_out, first, m)
        add_mix_weight(d_weight, scratch, rows, mixed, widths, m)
        store(d_d_out, more, first, m)
        mix_back(rows, mixed, weight, widths, m)
        _add_products_back(d_one, d_other, rows, t_one, t_other, paths, first, m)
