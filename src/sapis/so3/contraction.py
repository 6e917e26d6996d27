"""Sparse sums of products of rows, compiled for CPUs: what coupling coefficients do to features.

A coupling of degrees is ``out[k] = sum_e coefficient_e * one[i_e] * other[j_e]``, where about one coefficient in thirty is
not zero and each row is a vector over channels. As matrix products that costs thirty times the arithmetic, and memory for
all pairs of rows; here each non-zero coefficient is one multiply-add over contiguous channels. Derivatives of any order
are sums of the same kind. Needs numba, and tensors on a CPU: see `is_compiled`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from sapis.so3.coupling import coupling_paths, gaunt_table

Path = tuple[int, int, int]


_is_allowed = ContextVar("compiled sums are allowed", default=True)


def is_compiled(tensor: torch.Tensor) -> bool:
    """Whether the compiled loops serve ``tensor``; where not, matrix products with dense tables do."""
    return _is_allowed.get() and tensor.device.type == "cpu" and _has_numba()


@contextmanager
def matrix_products_only() -> Iterator[None]:
    """Within this, nothing compiled is used: the same arithmetic as on a GPU, to compare with."""
    token = _is_allowed.set(False)
    try:
        yield
    finally:
        _is_allowed.reset(token)


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


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


class Products:
    """``out[k] = sum_e c_e one[i_e] other[j_e]`` with the three operands in given layouts; any number of derivatives.

    Args:
        rows: of outcome (ascending), one and other for each entry e.
        values: c_e.
        layouts: of outcome, one and other.
    """

    def __init__(self, rows: tuple[np.ndarray, ...], values: np.ndarray, layouts: tuple[Layout, ...]) -> None:
        self.rows, self.layouts, self.n_entries = rows, layouts, len(values)
        self.values = {torch.float32: values.astype(np.float32), torch.float64: values}

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Contiguous ``one`` and ``other`` (their last axis is the channels) -> flat ``(size * atoms, channels)``."""
        return _Products.apply(self, one, other)

    def constants(self, one: torch.Tensor) -> tuple[Any, ...]:
        """What the compiled loops take besides their operands."""
        channels = one.shape[-1]
        atoms = one.numel() // (channels * self.layouts[1].size)
        return tuple(layout[:3] for layout in self.layouts), self.rows, self.values[one.dtype], atoms, channels


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        ctx.products = products
        ctx.save_for_backward(one, other)
        constants = products.constants(one)
        out = one.new_zeros(products.layouts[0].size * constants[-2], one.shape[-1])
        _loops().products(_flat(out), _flat(one), _flat(other), *constants)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_ProductsBackward.apply(ctx.products, gradient.contiguous(), *ctx.saved_tensors)


class _ProductsBackward(torch.autograd.Function):
    """Gradients by both factors. Its own derivatives are sums of the same two kinds, since all is linear in each operand."""

    @staticmethod
    def forward(ctx: Any, products: Products, gradient: torch.Tensor, one: torch.Tensor, other: torch.Tensor,
                ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.products = products
        ctx.save_for_backward(gradient, one, other)
        by_one, by_other = torch.zeros_like(one), torch.zeros_like(other)
        _loops().products_backward(_flat(by_one), _flat(by_other), _flat(gradient), _flat(one), _flat(other),
                                   *products.constants(one))
        return by_one, by_other

    @staticmethod
    def backward(ctx: Any, by_one: torch.Tensor, by_other: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, one, other = ctx.saved_tensors
        by_one, by_other = by_one.contiguous(), by_other.contiguous()
        by_gradient = _Products.apply(ctx.products, by_one, other) + _Products.apply(ctx.products, one, by_other)
        return None, by_gradient, *_ProductsBackward.apply(ctx.products, gradient, by_one, by_other)


class Couplings(NamedTuple):
    """``out[k] = sum_e c_e one[i_e]`` in given layouts: the coupled rows of a density.

    Attributes:
        starts: first entry of each row of the outcome, and their number.
        sources: i_e.
        values: c_e in each precision.
        layouts: of outcome and one.
    """

    starts: np.ndarray
    sources: np.ndarray
    values: dict[torch.dtype, np.ndarray]
    layouts: tuple[Layout, Layout]


def density_couplings(l_max: int, l_max_carried: int, n_radial: int) -> Couplings:
    """Couples the harmonics of a density ``(atoms, lm, radial, lm', channels)`` with the degrees that it carries."""
    paths = coupling_paths(l_max, l_max_carried, l_max)
    outcome, one, other, values = entries(paths)
    n_one, n_other = (l_max + 1) ** 2, (l_max_carried + 1) ** 2
    layouts = paths_last(paths, n_radial), pairs_of_atoms(n_one, n_other, n_radial)
    starts = np.searchsorted(outcome, np.arange(len(layouts[0].planes) + 1))
    return Couplings(starts, one * n_other + other, {torch.float32: values.astype(np.float32), torch.float64: values}, layouts)


@cache
def _loops() -> ModuleType:
    return import_module("sapis.so3.compiled")


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().view(-1).numpy()
