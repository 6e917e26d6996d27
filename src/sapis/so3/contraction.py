"""Which rows a coupling of degrees adds up: its non-zero coefficients and where rows lie in memory.

A coupling is ``out[k] = sum_e coefficient_e * one[i_e] * other[j_e]``, where about one coefficient in thirty is not zero and
each row is a vector over channels. As a matrix product with a dense table it costs thirty times the arithmetic, and memory for
all pairs of rows; the compiled loops of `sapis.model.compiled` visit the non-zero coefficients only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sapis.so3.coupling import gaunt_table

Path = tuple[int, int, int]


class Layout(NamedTuple):
    """Where rows lie in a flat buffer: row r of atom n and inner index k starts at
    ``(planes[r] * atoms + starts[r] + atom_strides[r] * n + inner_stride * k) * channels``; all rows together take
    ``size * atoms * channels``.
    """

    planes: np.ndarray
    starts: np.ndarray
    atom_strides: np.ndarray
    inner_stride: int
    size: int


def rows_first(n_rows: int) -> Layout:
    """``(rows, atoms, channels)``."""
    rows = np.arange(n_rows)
    return Layout(rows, np.zeros_like(rows), np.ones_like(rows), 0, n_rows)


def paths_last(paths: Sequence[Path], n_inner: int = 1) -> Layout:
    """A block ``(2 l + 1, atoms, paths, inner, channels)`` for each outcome degree l, one after another.

    Rows are numbered as in `entries`. A block is the left factor of one matrix product that mixes paths and channels.
    """
    counts = np.bincount([l3 for _, _, l3 in paths])
    planes, starts, strides, before = [], [], [], 0
    for l3, n_paths in enumerate(counts):
        for path in range(n_paths):
            for m in range(2 * l3 + 1):
                planes.append((before + m * n_paths) * n_inner)
                starts.append(path * n_inner)
                strides.append(n_paths * n_inner)
        before += (2 * l3 + 1) * n_paths
    return Layout(np.array(planes), np.array(starts), np.array(strides), 1, before * n_inner)


def pairs_of_atoms(n_one: int, n_other: int, n_inner: int) -> Layout:
    """``(atoms, one, inner, other, channels)``, rows numbered ``one * n_other + other``."""
    one, other = np.divmod(np.arange(n_one * n_other), n_other)
    strides = np.full(len(one), n_one * n_inner * n_other)
    return Layout(np.zeros_like(one), one * n_inner * n_other + other, strides, n_other, n_one * n_inner * n_other)


def entries(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Non-zero coefficients: outcome row (path by path), lm index of either factor, value (float64)."""
    found, before = [], 0
    for l1, l2, l3 in paths:
        table = gaunt_table(l1, l2, l3)
        found += [(before + m3, l1 * l1 + m1, l2 * l2 + m2, table[m1, m2, m3])
                  for m3, m1, m2 in np.argwhere(np.moveaxis(table, -1, 0))]
        before += 2 * l3 + 1
    outcome, one, other, values = zip(*found, strict=True)
    return np.array(outcome), np.array(one), np.array(other), np.array(values)


class Couplings(NamedTuple):
    """``out[k_e] += c_e one[i_e] other[j_e]``, or without ``other``, over entries e sorted by k.

    Attributes:
        rows: k, i and (if there is one) j of each entry.
        values: c_e in each precision.
        layouts: of outcome, one and (if there is one) other.
        starts: first entry of each row of the outcome, and their number.
    """

    rows: tuple[np.ndarray, ...]
    values: dict[torch.dtype, np.ndarray]
    layouts: tuple[Layout, ...]
    starts: np.ndarray


def product_couplings(paths: Sequence[Path], n_one: int, n_other: int) -> Couplings:
    """Of features ``(lm, atoms, channels)`` with features."""
    outcome, one, other, values = entries(paths)
    return _couplings((outcome, one, other), values, (paths_last(paths), rows_first(n_one), rows_first(n_other)))


def density_couplings(paths: Sequence[Path], n_one: int, n_other: int, n_radial: int) -> Couplings:
    """Of the harmonics of a density ``(atoms, lm, radial, lm', channels)`` with the degrees that it carries."""
    outcome, one, other, values = entries(paths)
    layouts = paths_last(paths, n_radial), pairs_of_atoms(n_one, n_other, n_radial)
    return _couplings((outcome, one * n_other + other), values, layouts)


def _couplings(rows: tuple[np.ndarray, ...], values: np.ndarray, layouts: tuple[Layout, ...]) -> Couplings:
    starts = np.searchsorted(rows[0], np.arange(len(layouts[0].planes) + 1))
    return Couplings(rows, {torch.float32: values.astype(np.float32), torch.float64: values}, layouts, starts)
