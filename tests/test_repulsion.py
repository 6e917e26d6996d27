"""The repulsion of nuclei: the published formula, smooth, and lawful with the model around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.data import covalent_radii

from conftest import ELEMENTS, cluster, crystal, small_potential
from sapis.data.batch import collate, prepare
from sapis.data.system import System
from sapis.model.edges import Slots
from sapis.model.repulsion import Repulsion
from sapis.testing.laws import check_potential
from sapis.testing.tolerances import LITERATURE_DIGITS

CUTOFF = 3.5


def pair(one: int, other: int, distance: float) -> System:
    return System(numbers=[one, other], positions=[[0, 0, 0], [0.6 * distance, 0, 0.8 * distance]])


def repulsion(system: System) -> float:
    """eV, of the whole system."""
    batch = collate([prepare(system, elements=ELEMENTS, cutoff=CUTOFF)], cutoff=CUTOFF, dtype=torch.float64)
    return float(Repulsion(ELEMENTS, CUTOFF).energies(batch.species, Slots.of(batch), batch.vectors).sum())


def universal(one: int, other: int, distance: float) -> float:
    """The formula as LAMMPS documents it (pair_style zbl): 14.399645 eV Å, a = 0.46850 Å / (Z^0.23 + Z'^0.23)."""
    x = distance * (one**0.23 + other**0.23) / 0.46850
    screening = (0.18175 * np.exp(-3.19980 * x) + 0.50986 * np.exp(-0.94229 * x) + 0.28022 * np.exp(-0.40290 * x)
                 + 0.02817 * np.exp(-0.20162 * x))
    return float(14.399645 * one * other / distance * screening)


@pytest.mark.parametrize("one, other", [(1, 1), (1, 8), (6, 6), (6, 8)])
def test_close_pairs_repel_by_the_published_formula(one: int, other: int) -> None:
    contact = covalent_radii[one] + covalent_radii[other]
    for fraction in (0.05, 0.2, 0.5, 0.9):
        x = fraction
        switch = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
        expected = universal(one, other, x * contact) * switch
        assert repulsion(pair(one, other, x * contact)) == pytest.approx(expected, rel=LITERATURE_DIGITS.float64)
    assert repulsion(pair(one, other, 1.0001 * contact)) == 0.0


def test_it_vanishes_with_two_derivatives() -> None:
    contact, step = covalent_radii[6] + covalent_radii[8], 1e-3
    values = [repulsion(pair(6, 8, contact - n * step)) for n in range(3)]
    assert abs(values[0]) < 1e-12 and abs(values[1] - values[0]) / step < 1e-4
    assert abs(values[2] - 2 * values[1] + values[0]) / step**2 < 1.0, "of a curvature of hundreds of eV/Å^2 at half the distance"


def test_a_model_with_it_obeys_the_laws() -> None:
    systems = [cluster(6), crystal(3), pair(6, 8, 0.8)]
    with_it, without = small_potential(zbl=True), small_potential()
    difference = with_it.predict(systems)[2].energy - without.predict(systems)[2].energy
    assert difference == pytest.approx(repulsion(systems[2]), rel=1e-9)
    assert with_it.from_settings(with_it.settings()).repulsion is not None
    assert all(result.passed for result in check_potential(with_it, systems))
