"""Real spherical harmonics, component-normalised: ``sum_m Y_lm(u)^2 = 2l + 1`` on the unit sphere.

Order within a degree is m = -l..l (so l = 1 is y, z, x); degrees follow one another, ``lm = l^2 + l + m``,
and an array with all degrees up to l_max has ``(l_max + 1)^2`` entries along its lm axis.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sapis.so3.coupling import gaunt_table


def degrees(l_max: int) -> np.ndarray:
    """The degree l of each lm index, ``((l_max + 1)^2,)``: 0, 1, 1, 1, 2, …"""
    return np.concatenate([np.full(2 * l + 1, l) for l in range(l_max + 1)])


class Harmonics(torch.nn.Module):
    """Harmonics of unit vectors up to ``l_max``, as a chain of products with degree 1.

    ``Y_{l+1} = c * G(l, 1, l+1) (Y_l ⊗ Y_1)`` holds point by point because the coupled product of two harmonics
    of the same direction is the harmonic of that direction again (Gaunt 1929). The chain needs two operations
    a degree, each a polynomial, so any number of derivatives exists.

    Args:
        l_max: highest degree.
        dtype: of the result; the tables are computed in float64.
    """

    def __init__(self, l_max: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.l_max = l_max
        self._steps: dict[np.dtype, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}
        for l in range(1, l_max):
            self.register_buffer(f"step_{l}", torch.tensor(_raising_table(l), dtype=dtype), persistent=False)

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """``(..., 3)`` unit vectors (x, y, z) -> ``(..., (l_max + 1)^2)``."""
        parts = [torch.ones_like(units[..., :1])]
        if self.l_max >= 1:
            first = math.sqrt(3) * torch.stack((units[..., 1], units[..., 2], units[..., 0]), dim=-1)
            parts.append(first)
        for l in range(1, self.l_max):
            parts.append(row_products(parts[-1], first) @ getattr(self, f"step_{l}"))
        return torch.cat(parts, dim=-1)

    def steps(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same chain as entries: ``Y[outcome] += coefficient * Y[factor] * Y_1[component]``, in this order."""
        if dtype not in self._steps:
            found = [(l * l + 2 * l + 1 + k, l * l + i // 3, i % 3, float(table[i, k]))
                     for l in range(1, self.l_max) for table in [_raising_table(l)] for i, k in np.argwhere(table)]
            outcomes, factors, components, values = zip(*found, strict=True) if found else ((), (), (), ())
            self._steps[dtype] = (np.array(outcomes, dtype=np.int64), np.array(factors, dtype=np.int64),
                                  np.array(components, dtype=np.int64), np.array(values, dtype=dtype))
        return self._steps[dtype]


def row_products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """All products of the last axes, ``(..., a)``, ``(..., b)`` -> ``(..., a * b)``.

    Both are spread by matrices of zeros and ones: broadcasting over short innermost axes, and the sums over them in each
    backward pass, take several times as long.
    """
    n_one, n_other = one.shape[-1], other.shape[-1]
    eyes = torch.eye(n_one, dtype=one.dtype, device=one.device), torch.eye(n_other, dtype=one.dtype, device=one.device)
    return (one @ eyes[0].repeat_interleave(n_other, dim=1)) * (other @ eyes[1].repeat(1, n_one))


def _raising_table(l: int) -> np.ndarray:
    """``((2l+1) * 3, 2l+3)``: takes Y_l ⊗ Y_1 to Y_{l+1}."""
    table = gaunt_table(l, 1, l + 1)
    # A coupled product of unit-variance harmonics of the same direction is a multiple of the harmonic; the
    # multiple follows from one direction, here z, where only m = 0 is non-zero and equals sqrt(2l + 1).
    at_z = table[l, 1, l + 1] * math.sqrt((2 * l + 1) * 3)
    return (table * math.sqrt(2 * l + 3) / at_z).reshape(-1, 2 * l + 3)
