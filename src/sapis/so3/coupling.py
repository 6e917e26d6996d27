"""Products of real harmonics: exact coupling tables by quadrature.

Only natural-parity couplings (l1 + l2 + l3 even) are used: they are closed, keep the parity (-1)^l of every
degree, and so give equivariance under the full group O(3), inversion included.
"""

from __future__ import annotations

from functools import cache

import numpy as np


def harmonics_reference(l_max: int, units: np.ndarray) -> np.ndarray:
    """Harmonics by the Legendre recurrence, float64: ``(..., 3)`` -> ``(..., (l_max + 1)^2)``.

    Independent of `sapis.so3.harmonics.Harmonics`, which it checks, and the source of the coupling tables.
    Recurrence: Abramowitz and Stegun 8.5.3, divided by (1 - z^2)^(m/2) so that it is polynomial in x, y, z.
    """
    x, y, z = np.moveaxis(np.asarray(units, dtype=np.float64), -1, 0)
    result = np.zeros((*x.shape, (l_max + 1) ** 2))
    wave = np.ones(x.shape, dtype=complex)
    for m in range(l_max + 1):
        below, here = np.zeros_like(z), np.full_like(z, float(np.prod(np.arange(1, 2 * m, 2))))
        for l in range(m, l_max + 1):
            ratio = float(np.prod(np.arange(l - m + 1, l + m + 1)))
            norm = np.sqrt((2 * l + 1) * (2 if m else 1) / ratio)
            result[..., l * l + l + m] = norm * here * wave.real
            if m:
                result[..., l * l + l - m] = norm * here * wave.imag
            below, here = here, ((2 * l + 1) * z * here - (l + m) * below) / (l + 1 - m)
        wave = wave * (x + 1j * y)
    return result


@cache
def gaunt_table(l1: int, l2: int, l3: int) -> np.ndarray:
    """Coupling coefficients ``(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)``, float64, natural parity only.

    Normalised so that ``sum_{m1 m2} table^2 = 1`` for each m3: independent inputs of unit variance give an
    output of unit variance. Proportional to the integral of three harmonics over the sphere, computed exactly
    by Gauss-Legendre quadrature in z times equal steps in the azimuth.

    Raises:
        ValueError: the three degrees violate the triangle rule or natural parity.
    """
    if (l1 + l2 + l3) % 2 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"no natural-parity coupling of degrees {l1}, {l2} to {l3}")
    total = l1 + l2 + l3
    z, weights = np.polynomial.legendre.leggauss(total // 2 + 1)
    azimuth = 2 * np.pi * np.arange(total + 1) / (total + 1)
    radius = np.sqrt(1 - z**2)
    units = np.stack([
        np.outer(radius, np.cos(azimuth)), np.outer(radius, np.sin(azimuth)),
        np.broadcast_to(z[:, None], (len(z), len(azimuth))),
    ], axis=-1)
    values = harmonics_reference(max(l1, l2, l3), units)
    first, second, third = (values[..., l * l : (l + 1) ** 2] for l in (l1, l2, l3))
    table = np.einsum("z,zpa,zpb,zpc->abc", weights, first, second, third)
    table[np.abs(table) < 1e-12 * np.abs(table).max()] = 0.0
    return table / np.sqrt((table**2).sum(axis=(0, 1)))


def coupling_paths(l1_max: int, l2_max: int, l3_max: int, *, is_symmetric: bool = False) -> list[tuple[int, int, int]]:
    """All natural-parity (l1, l2, l3), sorted by l3. ``is_symmetric``: one of (l1, l2) and (l2, l1) only."""
    return [
        (l1, l2, l3)
        for l3 in range(l3_max + 1) for l1 in range(l1_max + 1) for l2 in range(l2_max + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0 and (l1 <= l2 or not is_symmetric)
    ]
