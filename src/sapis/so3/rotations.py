"""Random rotations and reflections, and how harmonics turn with them."""

from __future__ import annotations

import numpy as np

from sapis.so3.coupling import harmonics_reference


def random_rotation(random: np.random.Generator, *, is_improper: bool = False) -> np.ndarray:
    """A uniformly distributed orthogonal ``(3, 3)`` matrix with determinant +1 (-1 if ``is_improper``)."""
    matrix, triangle = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    wanted = -1.0 if is_improper else 1.0
    return matrix * (wanted * np.sign(np.linalg.det(matrix)))


def harmonics_rotation(l_max: int, rotation: np.ndarray) -> np.ndarray:
    """``D`` with ``Y(R u) = D Y(u)``, ``((l_max+1)^2, (l_max+1)^2)`` (the Wigner matrices of all degrees)."""
    points = np.random.default_rng(0).normal(size=(4 * (l_max + 1) ** 2, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before, after = harmonics_reference(l_max, points), harmonics_reference(l_max, points @ rotation.T)
    matrix = np.zeros(((l_max + 1) ** 2,) * 2)
    for l in range(l_max + 1):
        block = slice(l * l, (l + 1) ** 2)
        matrix[block, block] = np.linalg.lstsq(before[:, block], after[:, block], rcond=None)[0].T
    return matrix
