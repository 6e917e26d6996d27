"""Harmonics, their products and their rotations against independent sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from scipy.stats import kstest

from sapis.so3.coupling import coupling_paths, gaunt_table, harmonics_reference
from sapis.so3.harmonics import Harmonics, degrees
from sapis.so3.rotations import harmonics_rotation, random_rotation

L_MAX = 6
EXACT = 1e-12


def directions(count: int = 50, seed: int = 0) -> np.ndarray:
    """Random unit vectors, and the poles and axes, where recurrences divide by zero."""
    units = np.random.default_rng(seed).normal(size=(count, 3))
    units = np.concatenate([units, np.eye(3), -np.eye(3)])
    return units / np.linalg.norm(units, axis=1, keepdims=True)


def harmonics(units: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    return Harmonics(l_max, torch.float64)(torch.from_numpy(units)).numpy()


def harmonics_of_scipy(l_max: int, units: np.ndarray) -> np.ndarray:
    """Complex harmonics (Condon-Shortley phase) made real and component-normalised."""
    polar, azimuth = np.arccos(units[:, 2]), np.arctan2(units[:, 1], units[:, 0])
    columns = []
    for l in range(l_max + 1):
        for m in range(-l, l + 1):
            value = (-1.0) ** m * sph_harm_y(l, abs(m), polar, azimuth)
            part = math.sqrt(2) * value.imag if m < 0 else value.real if m == 0 else math.sqrt(2) * value.real
            columns.append(math.sqrt(4 * math.pi) * part)
    return np.stack(columns, axis=1)


def all_paths(l_max: int = 3) -> list[tuple[int, int, int]]:
    return coupling_paths(l_max, l_max, l_max)


@pytest.mark.parametrize("l_max", range(L_MAX + 1))
def test_harmonics_agree_with_scipy(l_max: int) -> None:
    units = directions()
    expected = harmonics_of_scipy(l_max, units)
    np.testing.assert_allclose(harmonics(units, l_max), expected, atol=EXACT)
    np.testing.assert_allclose(harmonics_reference(l_max, units), expected, atol=EXACT)


def test_harmonics_agree_with_closed_forms_up_to_degree_three() -> None:
    x, y, z = directions().T
    expected = np.stack([
        np.ones_like(x),
        *(math.sqrt(3) * c for c in (y, z, x)),
        math.sqrt(15) * x * y, math.sqrt(15) * y * z, math.sqrt(5) / 2 * (3 * z**2 - 1),
        math.sqrt(15) * x * z, math.sqrt(15) / 2 * (x**2 - y**2),
        math.sqrt(35 / 8) * y * (3 * x**2 - y**2), math.sqrt(105) * x * y * z,
        math.sqrt(21 / 8) * y * (5 * z**2 - 1), math.sqrt(7) / 2 * z * (5 * z**2 - 3),
        math.sqrt(21 / 8) * x * (5 * z**2 - 1), math.sqrt(105) / 2 * z * (x**2 - y**2),
        math.sqrt(35 / 8) * x * (x**2 - 3 * y**2),
    ], axis=1)
    np.testing.assert_allclose(harmonics(directions(), 3), expected, atol=EXACT)


def test_harmonics_are_component_normalised() -> None:
    values = harmonics(directions()) ** 2
    for l in range(L_MAX + 1):
        np.testing.assert_allclose(values[:, l * l : (l + 1) ** 2].sum(axis=1), 2 * l + 1, rtol=EXACT)


def test_harmonics_have_natural_parity() -> None:
    units = directions()
    np.testing.assert_allclose(harmonics(-units), (-1.0) ** degrees(L_MAX) * harmonics(units), atol=EXACT)


def test_harmonics_keep_leading_axes_and_dtype() -> None:
    result = Harmonics(2, torch.float32)(torch.zeros(4, 5, 3))
    assert result.shape == (4, 5, 9) and result.dtype == torch.float32


def test_float32_tables_are_rounded_only_once() -> None:
    units = torch.from_numpy(directions())
    exact, coarse = Harmonics(L_MAX, torch.float64)(units), Harmonics(L_MAX, torch.float32)(units.float())
    assert float((exact - coarse.double()).abs().max()) < 20 * torch.finfo(torch.float32).eps


def test_derivatives_of_harmonics_of_first_and_second_order() -> None:
    module = Harmonics(4, torch.float64)
    vectors = torch.from_numpy(directions(3)[:3]).requires_grad_()

    def of_vectors(v: torch.Tensor) -> torch.Tensor:
        return module(v / v.norm(dim=-1, keepdim=True))

    assert torch.autograd.gradcheck(of_vectors, vectors)
    assert torch.autograd.gradgradcheck(of_vectors, vectors)


def test_degrees_label_the_lm_axis() -> None:
    assert degrees(2).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert len(degrees(0)) == 1


@pytest.mark.parametrize("is_improper", [False, True])
def test_harmonics_rotation_turns_harmonics(is_improper: bool) -> None:
    rotation = random_rotation(np.random.default_rng(3), is_improper=is_improper)
    matrix = harmonics_rotation(L_MAX, rotation)
    units = directions()
    np.testing.assert_allclose(harmonics(units @ rotation.T), harmonics(units) @ matrix.T, atol=EXACT)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=EXACT)
    for l in range(L_MAX + 1):
        block = slice(l * l, (l + 1) ** 2)
        sign = (-1.0) ** l if is_improper else 1.0
        assert np.linalg.det(matrix[block, block]) == pytest.approx(sign, abs=1e-10)
        assert not matrix[block, (l + 1) ** 2 :].any(), "degrees do not mix"


def test_harmonics_rotation_is_a_representation() -> None:
    first, second = (random_rotation(np.random.default_rng(seed)) for seed in (1, 2))
    product = harmonics_rotation(3, first) @ harmonics_rotation(3, second)
    np.testing.assert_allclose(harmonics_rotation(3, first @ second), product, atol=EXACT)


@pytest.mark.parametrize("path", all_paths(), ids=str)
def test_couplings_are_equivariant_and_of_unit_variance(path: tuple[int, int, int]) -> None:
    table = gaunt_table(*path)
    assert table.shape == tuple(2 * l + 1 for l in path) and table.dtype == np.float64
    np.testing.assert_allclose((table**2).sum(axis=(0, 1)), 1.0, rtol=EXACT)
    for is_improper in (False, True):
        rotation = random_rotation(np.random.default_rng(5), is_improper=is_improper)
        matrix = harmonics_rotation(max(path), rotation)
        one, two, three = (matrix[l * l : (l + 1) ** 2, l * l : (l + 1) ** 2] for l in path)
        # sum_ab table_abc (D1 x)_a (D2 y)_b = D3 sum_ab table_abc x_a y_b for all x and y
        turned_inputs = np.einsum("abc,ai,bj->ijc", table, one, two)
        turned_result = np.einsum("ijd,cd->ijc", table, three)
        np.testing.assert_allclose(turned_inputs, turned_result, atol=EXACT)


def test_a_coupling_of_the_wrong_parity_would_not_survive_a_reflection() -> None:
    """The cross product (1, 1 -> 1) is the excluded kind: equivariant under rotations, flipped by reflections."""
    cross = np.zeros((3, 3, 3))
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[a, b, c], cross[b, a, c] = 1.0, -1.0
    for is_improper in (False, True):
        matrix = harmonics_rotation(1, random_rotation(np.random.default_rng(5), is_improper=is_improper))[1:, 1:]
        gap = np.einsum("abc,ai,bj->ijc", cross, matrix, matrix) - np.einsum("ijd,cd->ijc", cross, matrix)
        assert (np.abs(gap).max() > 0.1) == is_improper


def test_couplings_are_gaunt_integrals() -> None:
    """Against a plain sum over many points, up to the factor of the normalisation."""
    units = directions(200_000, seed=1)[:-6]
    values = harmonics_reference(2, units)
    for l1, l2, l3 in ((1, 1, 0), (1, 1, 2), (1, 2, 1), (2, 2, 2)):
        blocks = (values[:, l * l : (l + 1) ** 2] for l in (l1, l2, l3))
        integral = np.einsum("pa,pb,pc->abc", *blocks, optimize=True) / len(units)
        table = gaunt_table(l1, l2, l3)
        factor = (integral * table).sum() / (table**2).sum()
        assert factor > 0
        np.testing.assert_allclose(integral / factor, table, atol=0.03)


@pytest.mark.parametrize("path", [(1, 1, 1), (0, 1, 2), (1, 1, 3), (2, 2, 1), (3, 1, 1)], ids=str)
def test_forbidden_couplings_are_refused(path: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="natural-parity"):
        gaunt_table(*path)


def test_coupling_paths_are_all_allowed_ones() -> None:
    def is_allowed(*path: int) -> bool:
        try:
            gaunt_table(*path)
        except ValueError:
            return False
        return True

    every = {(a, b, c) for a in range(4) for b in range(3) for c in range(3)}
    assert set(coupling_paths(3, 2, 2)) == {path for path in every if is_allowed(*path)}
    halved = coupling_paths(3, 3, 2, is_symmetric=True)
    assert {tuple(sorted(path[:2])) + path[2:] for path in coupling_paths(3, 3, 2)} == set(halved)


def test_random_rotations_are_orthogonal_with_the_right_determinant() -> None:
    random = np.random.default_rng(0)
    for is_improper in (False, True):
        for _ in range(20):
            matrix = random_rotation(random, is_improper=is_improper)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=EXACT)
            assert np.linalg.det(matrix) == pytest.approx(-1 if is_improper else 1)


@pytest.mark.parametrize("is_improper", [False, True])
def test_random_rotations_are_uniform(is_improper: bool) -> None:
    """Where an axis goes is uniform over the sphere, and the angle has the density (1 - cos a)/pi of Haar's measure."""
    random = np.random.default_rng(7)
    matrices = np.array([random_rotation(random, is_improper=is_improper) for _ in range(3000)])
    for element in (matrices[:, 2, 2], matrices[:, 0, 1], matrices[:, 1, 0]):
        assert kstest(element, "uniform", args=(-1, 2)).pvalue > 1e-3
    proper = -matrices if is_improper else matrices
    angles = np.arccos(np.clip((np.trace(proper, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 1e-3
