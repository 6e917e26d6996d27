"""The steps of a layer as single differentiable operations, compiled for CPUs with numba.

`couple` makes products of features and mixes them; `collect` makes the density of an atom's neighbours, couples and mixes it.
Both work group by group of atoms, so that what lies between input and output never leaves the cache. First and second
derivatives are written out (`sapis.model.compiled`):

- backward of ``out = f(x)`` with ``d_out`` the gradient of its outcome: the gradients of ``<d_out, f(x)>``;
- double backward with ``t`` the gradients of those: ``<d_out, df>``, where df is the change of f along the tangent t, and its
  gradients by x.

For `collect` that is the chain rule through ``s = q . k_j + R b``, ``a = c (1 + SiLU(s))``, ``U = a v_j``, ``P = Y R``,
``D = P^T U``, ``out = mix(couplings of D)`` (names as in `sapis.model.layers.Attention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from sapis.so3.contraction import Couplings

_weights_vary = ContextVar("gradients by weights are wanted", default=True)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within this, backward passes leave out gradients by weights, at a third of the cost: forces do not need them."""
    token = _weights_vary.set(False)
    try:
        yield
    finally:
        _weights_vary.reset(token)


class Plan(NamedTuple):
    """Constants of `couple` and `collect`.

    Attributes:
        couplings: which rows arise from what, with which coefficients.
        widths: numbers of each degree's paths times channels.
        n_lm_out: rows of the outcome.
    """

    couplings: Couplings
    widths: np.ndarray
    n_lm_out: int


class Heads(NamedTuple):
    """Constants of the attention.

    Attributes:
        of_key: the head of each channel of queries and keys.
        of_value: the head of each column of the values, ``(lm' * channels,)``.
        scale: of the sum over neighbours.
    """

    of_key: np.ndarray
    of_value: np.ndarray
    scale: float


class Operation(NamedTuple):
    """One of the loops of `sapis.model.compiled`.

    Attributes:
        name: of the loop; its derivatives have the same name with ``_backward`` and ``_double_backward``.
        shape: of the outcome.
        constants: further arguments of all three.
        has_weight: the last input is a weight, whose gradient is left out within `constant_weights`.
    """

    name: str
    shape: tuple[int, ...]
    constants: tuple[Any, ...] = ()
    has_weight: bool = True

    def run(self, kind: str, *tensors: torch.Tensor, flag: bool = True) -> None:
        """Call the loop on contiguous tensors."""
        flags = (flag,) if self.has_weight and kind else ()
        getattr(_loops(), self.name + kind)(*map(_array, tensors), *self.constants, *flags)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return _Fused.apply(self, *(item.contiguous() for item in inputs))


def couple(plan: Plan, one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``(lm1, atoms, channels)``, ``(lm2, atoms, channels)``, ``(paths * channels, n_out)`` -> ``(lm_out, atoms, n_out)``."""
    rows, (row_of, *factors) = plan.couplings.layouts[0], plan.couplings.rows
    paths = (*rows[:3], row_of, *factors, plan.couplings.values[one.dtype])
    shape = (plan.n_lm_out, one.shape[1], weight.shape[1])
    return Operation("couple", shape, (paths, plan.widths, rows.size))(one, other, weight)


def collect(plan: Plan, heads: Heads, senders: torch.Tensor, counts: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """Mixed couplings of the density, ``(lm_out, atoms, n_out)``.

    Args:
        plan, heads: constants.
        senders: ``(atoms, slots)``.
        counts: used slots of each atom, which come first, ``(atoms,)``.
        inputs: queries and keys ``(atoms, key channels)``, values ``(atoms, lm' * channels)``, radial functions
            ``(atoms, slots, radial)``, harmonics ``(atoms, slots, lm)``, bias ``(radial, heads)``, weight
            ``(paths * radial * channels, n_out)``.
    """
    rows, density = plan.couplings.layouts
    couplings = (*rows[:3], density.starts, density.inner_stride, plan.couplings.starts, plan.couplings.rows[1],
                 plan.couplings.values[inputs[0].dtype])
    constants = (couplings, plan.widths, rows.size, _array(senders), _array(counts), *heads)
    return Operation("collect", (plan.n_lm_out, len(senders), inputs[-1].shape[1]), constants)(*inputs)


def linear(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The first degrees of ``(lm, atoms, n_in)`` times ``(degrees, n_in, n_out)``."""
    return Operation("linear", (len(weight) ** 2, features.shape[1], weight.shape[2]))(features, weight)


def weigh(base: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, species: torch.Tensor, order: int) -> torch.Tensor:
    """``base + values * weight[species, order]``, ``(lm, atoms, channels)``; ``values`` may have more rows, or fewer.

    Args:
        weight: ``(species, orders, degrees, channels)``.
    """
    return Operation("weigh", tuple(base.shape), (_array(species), order))(base, values, weight)


def norm(values: torch.Tensor, group: int, factor: float) -> torch.Tensor:
    """``x / sqrt(factor * sum(x^2) + epsilon)`` over groups of columns."""
    return Operation("norm", tuple(values.shape), (factor, group), has_weight=False)(values)


def swiglu(wide: torch.Tensor, width: int) -> torch.Tensor:
    """``wide[:, :width] * SiLU(wide[:, width : 2 * width])``."""
    return Operation("swiglu", (len(wide), width), has_weight=False)(wide)


def gate(features: torch.Tensor, wide: torch.Tensor, update: torch.Tensor, n_up: int) -> torch.Tensor:
    """Scalars plus ``update``, degree l times ``2 sigmoid(wide[:, n_up + (l - 1) * channels :])``."""
    return Operation("gate", tuple(features.shape), (n_up,), has_weight=False)(features, wide, update)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: Operation, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.operation = operation
        ctx.save_for_backward(*inputs)
        out = inputs[0].new_empty(operation.shape)
        operation.run("", out, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_FusedBackward.apply(ctx.operation, _weights_vary.get(), d_out.contiguous(), *ctx.saved_tensors)


class _FusedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: Operation, weights_vary: bool, d_out: torch.Tensor, *inputs: torch.Tensor,
                ) -> tuple[torch.Tensor | None, ...]:
        ctx.operation = operation
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d_out, *inputs)
        is_left_out = operation.has_weight and not weights_vary
        results = [torch.zeros_like(item) for item in (inputs[:-1] if is_left_out else inputs)]
        # The loop takes an array in every place; this one it does not touch.
        operation.run("_backward", *results, *inputs[-1:] * is_left_out, d_out, *inputs, flag=not is_left_out)
        return (*results, None) if is_left_out else tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        d_out, *inputs = ctx.saved_tensors
        d_d_out, results = torch.empty_like(d_out), [torch.zeros_like(item) for item in inputs]
        moved = [torch.zeros_like(item) if tangent is None else tangent.contiguous()
                 for tangent, item in zip(tangents, inputs, strict=True)]
        ctx.operation.run("_double_backward", d_d_out, *results, d_out, *inputs, *moved, flag=tangents[-1] is not None)
        return None, None, d_d_out, *results


@cache
def _loops() -> ModuleType:
    """The compiled loops. Their products are too small to be shared: more threads would only wait for each other."""
    from threadpoolctl import ThreadpoolController

    loops = import_module("sapis.model.compiled")
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
    return loops


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
