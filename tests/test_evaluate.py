"""Errors against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sapis.core.errors import DataError
from sapis.data.system import System
from sapis.evaluate.errors import MAX_PARITY_POINTS, evaluate
from sapis.potential.prediction import Prediction


@dataclass(frozen=True)
class Constant:
    """Predicts 1 eV and 0.1 eV/Å along z per atom, and a stress of 0.01 eV/Å^3 where periodic."""

    elements: tuple[int, ...] = (1, 8)
    cutoff: float = 5.0
    precision: str = "float64"

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        assert all(s.energy is None and s.forces is None for s in systems), "the labels must stay hidden"
        return [
            Prediction(float(len(s)), np.ones(len(s)), np.tile([0.0, 0.0, 0.1], (len(s), 1)),
                       None if s.volume is None else np.full((3, 3), 0.01))
            for s in systems
        ]


def system(numbers: list[int], **labels: object) -> System:
    positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    return System(numbers=np.array(numbers), positions=positions, **labels)  # type: ignore[arg-type]


# Errors in meV: energies +10 of 2 atoms, -40 of 1 atom; forces (H) 0 0 100, (O) 0 0 -200, (H) 0 300 100.
FIRST = system([1, 8], energy=1.990, forces=np.array([[0, 0, 0.0], [0, 0, 0.3]]), tags={"temperature_K": 300})
SECOND = system([1], energy=1.040, forces=np.array([[0, -0.3, 0.0]]), tags={"temperature_K": 600.0})


def test_errors_match_the_numbers_worked_out_by_hand() -> None:
    result = evaluate(Constant(), [FIRST, SECOND])
    assert (result["n"], result["n_energy"], result["n_forces"], result["n_stress"]) == (2, 2, 2, 0)
    assert result["energy_mae_meV_atom"] == pytest.approx((5 + 40) / 2)
    assert result["energy_mae_meV"] == pytest.approx((10 + 40) / 2)
    assert result["energy_rmse_meV_atom"] == pytest.approx(np.sqrt((25 + 1600) / 2))
    assert result["energy_rmse_meV"] == pytest.approx(np.sqrt((100 + 1600) / 2))
    assert result["force_mae_meV_A"] == pytest.approx((100 + 200 + 300 + 100) / 9)
    assert result["force_rmse_meV_A"] == pytest.approx(np.sqrt((100**2 + 200**2 + 300**2 + 100**2) / 9))
    assert result["by_element"]["O"] == pytest.approx({"n": 1, "mae": 200 / 3, "rmse": 200 / np.sqrt(3)})
    assert result["by_element"]["H"]["n"] == 2
    assert result["by_element"]["H"]["rmse"] == pytest.approx(np.sqrt((100**2 + 300**2 + 100**2) / 6))
    assert list(result["by_temperature"]) == ["300", "600"]
    assert result["by_temperature"]["300"] == pytest.approx(
        {"n": 1, "force_rmse_meV_A": np.sqrt((100**2 + 200**2) / 6), "energy_rmse_meV_atom": 5.0})
    assert result["stress_rmse_meV_A3"] is None


def test_parity_holds_reference_and_prediction_about_the_references_mean() -> None:
    parity = evaluate(Constant(), [FIRST, SECOND])["parity"]
    mean = (995 + 1040) / 2
    np.testing.assert_allclose(parity["energy"], [[995 - mean, 1040 - mean], [1000 - mean, 1000 - mean]])
    forces = [[0, 0, 0, 0, 0, 300, 0, -300, 0], [0, 0, 100] * 3]
    np.testing.assert_allclose(parity["force"], forces, atol=1e-12)


def test_stress_counts_six_components_each_once() -> None:
    reference = np.full((3, 3), 0.01)
    reference[0, 1] = reference[1, 0] = 0.016  # one Voigt component is 6 meV/Å^3 off
    periodic = system([1], cell=np.eye(3) * 4, pbc=True, stress=reference)
    result = evaluate(Constant(), [periodic])
    assert result["stress_rmse_meV_A3"] == pytest.approx(6 / np.sqrt(6))
    assert (result["n_stress"], result["n_energy"]) == (1, 0)


def test_absent_labels_are_skipped_and_counted() -> None:
    result = evaluate(Constant(), [replace(FIRST, forces=None), replace(SECOND, energy=None), system([8])])
    assert (result["n"], result["n_energy"], result["n_forces"]) == (3, 1, 1)
    assert result["energy_mae_meV_atom"] == pytest.approx(5.0)
    assert result["by_element"].keys() == {"H"}
    assert result["by_temperature"]["300"]["force_rmse_meV_A"] is None
    only_forces = evaluate(Constant(), [replace(SECOND, energy=None)])
    assert only_forces["energy_rmse_meV_atom"] is None and only_forces["parity"]["energy"] == [[], []]
    only_energy = evaluate(Constant(), [replace(FIRST, forces=None)])
    assert only_energy["force_mae_meV_A"] is None and only_energy["parity"]["force"] == [[], []]


@pytest.mark.parametrize("systems", [[], [system([1, 8])]], ids=["none", "unlabelled"])
def test_nothing_to_compare_with_is_an_error(systems: list[System]) -> None:
    with pytest.raises(DataError, match="label"):
        evaluate(Constant(), systems)


def test_batches_do_not_change_the_result_and_it_is_json() -> None:
    systems = [FIRST, SECOND, FIRST]
    assert evaluate(Constant(), systems, batch_size=1) == evaluate(Constant(), systems, batch_size=2)
    assert json.loads(json.dumps(evaluate(Constant(), systems), allow_nan=False))["n"] == 3


def test_parity_is_thinned_to_the_same_points_every_time_and_shows_all_axes() -> None:
    forces = np.random.default_rng(0).normal(size=(4000, 3)) + np.array([10, 20, 30])
    big = system([1] * 4000, forces=forces)
    reference, prediction = evaluate(Constant(), [big])["parity"]["force"]
    assert len(reference) == len(prediction) == MAX_PARITY_POINTS
    assert evaluate(Constant(), [big])["parity"]["force"][0] == reference
    counts = np.histogram(np.array(reference) / 1000, bins=[5, 15, 25, 35])[0]
    assert (counts > 1000).all()
