"""The density of an atom's neighbours, atom by atom in cache: compiled for CPUs with numba.

`Attention` says what is computed. Edge quantities of one atom (at most slots x channels numbers) never leave the cache, only
used slots are visited, and the matrix products are BLAS calls. First and second derivatives are written out:

- forward: ``s = q . k_j + R b``, ``a = c (1 + SiLU(s))``, ``U = a v_j``, ``P = Y R``, ``D = P^T U``, rows = couplings of D;
- backward with ``G`` the gradient of D: ``dU = P G``, ``dP = U G^T``, and the chain rule down to q, k, v, R, Y, b;
- double backward: the gradient of ``<G, dD>``, dD the change of D along a tangent of the inputs, by the same chain rule.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from sapis.so3.contraction import Couplings


class DensityPlan(NamedTuple):
    """What is constant in a density: numbers of functions, heads and channels, and the couplings of its rows.

    Attributes:
        couplings: from ``(atoms, lm, radial, lm', channels)`` to coupled rows.
        key_heads: ``(key channels, heads)``, one where a channel belongs to a head.
        value_heads: ``(heads, lm' * channels)``, likewise.
        scale: of the sum over neighbours.
    """

    couplings: Couplings
    key_heads: torch.Tensor
    value_heads: torch.Tensor
    scale: float


def coupled_density(plan: DensityPlan, senders: torch.Tensor, counts: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor,
                    values: torch.Tensor, radial: torch.Tensor, harmonics: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Rows as `Couplings` says of the density, flat.

    Args:
        plan: constants.
        senders: ``(atoms, slots)``.
        counts: used slots of each atom, which come first, ``(atoms,)``.
        queries, keys: ``(atoms, key channels)``.
        values: ``(atoms, lm' * channels)``.
        radial: ``(atoms, slots, radial)``.
        harmonics: ``(atoms, slots, lm)``.
        bias: ``(radial, heads)``.
    """
    return _Density.apply(plan, senders, counts, *(item.contiguous() for item in (queries, keys, values, radial, harmonics, bias)))


class _Density(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: DensityPlan, senders: torch.Tensor, counts: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(senders, counts, *inputs)
        coupled, density = plan.couplings.layouts
        n_carried = inputs[2].shape[1] // density.inner_stride
        rows = inputs[0].new_empty(coupled.size * len(senders), n_carried)
        _loops().forward(_array(rows).reshape(-1), *_constants(plan, senders, counts), *map(_array, inputs))
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        senders, counts, *inputs = ctx.saved_tensors
        return None, None, None, *_DensityBackward.apply(ctx.plan, senders, counts, gradient.contiguous(), *inputs)


class _DensityBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: DensityPlan, senders: torch.Tensor, counts: torch.Tensor, gradient: torch.Tensor,
                *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(senders, counts, gradient, *inputs)
        results = tuple(torch.zeros_like(item) for item in inputs)
        _loops().backward(*map(_array, results), _array(gradient).reshape(-1), *_constants(plan, senders, counts),
                             *map(_array, inputs))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        senders, counts, gradient, *inputs = ctx.saved_tensors
        changes = torch.empty_like(gradient)
        results = tuple(torch.zeros_like(item) for item in inputs)
        _loops().double_backward(
            _array(changes).reshape(-1), *map(_array, results), _array(gradient).reshape(-1),
            *_constants(ctx.plan, senders, counts), *map(_array, inputs), *(_array(item.contiguous()) for item in tangents))
        return None, None, None, changes, *results


@cache
def _loops() -> ModuleType:
    return import_module("sapis.model.compiled")


def _constants(plan: DensityPlan, senders: torch.Tensor, counts: torch.Tensor) -> tuple[Any, ...]:
    coupled, density = plan.couplings.layouts
    constants = plan.couplings
    couplings = (*coupled[:3], density.starts, density.inner_stride, constants.starts, constants.sources,
                 constants.values[plan.key_heads.dtype])
    return couplings, _array(senders), _array(counts), _array(plan.key_heads), _array(plan.value_heads), plan.scale


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
