"""Scaling laws: planted ones come back, floors that were measured count, and what was left out is foretold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.scaling_laws import TRUTH, coverage, shared, study

from sapis.core.errors import DataError
from sapis.core.seeds import generator
from sapis.scaling.fit import Floor, fit
from sapis.scaling.forms import (
    FLOOR,
    FORMS,
    JOINT,
    POWER,
    REPEATED,
    SHARPNESS,
    STEPS,
    Form,
    Points,
    broken,
    effective_frames,
    in_quadrature,
)
from sapis.scaling.laws import BREAK_MARGIN, OF_COMPUTE, _fitted, left_out


def along_compute(floor: float, noise: float = 0.0, seed: int = 0, n: int = 16) -> Points:
    flops = np.logspace(10, 15, n)
    loss = floor + 40.0 * (flops / 1e12) ** -0.25
    loss = loss * np.exp(noise * generator(seed, "noise").standard_normal(n))
    return Points(flops, np.full(n, 1e5), np.full(n, 1e3), np.ones(n), loss)


@pytest.mark.parametrize("form", list(FORMS.values()), ids=list(FORMS))
def test_a_law_without_noise_comes_back(form: Form) -> None:
    points = study(0, noise=0.0)
    truth = np.array([*([np.log(6.0)] if form.has_floor else []), *[3.0, 0.3] * len(form.terms), *([1.5] * len(form.extras))])
    inputs = form.inputs(points, truth[len(truth) - len(form.extras) :])
    amplitudes, exponents = truth[int(form.has_floor) :: 2][: len(form.terms)], np.full(len(form.terms), 0.3)
    terms = np.exp(amplitudes)[:, None] * (inputs / np.exp(np.log(inputs).mean(axis=1))[:, None]) ** -exponents[:, None]
    floor, rest = 6.0 if form.has_floor else 0.0, terms.sum(axis=0)
    points = points.with_loss(np.hypot(floor, rest) if form.is_quadratic else floor + rest)
    found = fit(points, form, n_samples=5)
    assert np.allclose(found.predict(points)[0], points.loss, rtol=1e-5)
    if not form.extras:  # how often a frame is worth seeing is nearly the same thing as the exponent of frames
        assert found.floor == pytest.approx(6.0 if form.has_floor else 0.0, rel=1e-3)
        assert [found.intervals[f"exponent_{term}"][0] for term in form.terms] == pytest.approx([0.3] * len(form.terms), rel=1e-3)


def test_planted_laws_lie_in_their_intervals() -> None:
    found = coverage("weights and frames, one law", 24, noise=0.03, n_samples=60)
    for name in TRUTH:
        assert found[name]["inside"] >= 0.7, name  # 0.9 by intent; `python -m benchmarks.scaling_laws` measures it on 200
    assert found["exponent_n_parameters"]["median_relative_error"] < 0.1
    assert found["exponent_n_frames"]["median_relative_error"] < 0.1


def test_no_floor_is_found_where_there_is_none_and_a_floor_where_there_is_one() -> None:
    without, with_one = (fit(along_compute(floor, noise=0.02), FLOOR) for floor in (0.0, 20.0))
    assert without.intervals["floor"][1] < 1.0 and without.intervals["floor"][0] < 4.0
    value, low, high = with_one.intervals["floor"]
    assert low < 20.0 < high and value == pytest.approx(20.0, rel=0.15)
    assert fit(along_compute(0.0, noise=0.02), POWER).bic < without.bic, "a floor that is not needed is not paid for"
    assert fit(along_compute(20.0, noise=0.02), POWER).bic > with_one.bic + 10


def test_noise_of_labels_adds_in_quadrature_and_is_found() -> None:
    """Where the labels of test frames have noise, squares add: the floor is that noise, and the exponent that of the truth."""
    exact = along_compute(0.0, noise=0.02, n=24)
    law = _fitted(exact.with_loss(np.hypot(exact.loss, 8.0)), OF_COMPUTE, None, 0)[0]
    value, low, high = law.intervals["floor"]
    assert law.form == in_quadrature(FLOOR) and low < 8.0 < high and value == pytest.approx(8.0, rel=0.1)
    assert law.intervals["exponent_flops"][0] == pytest.approx(0.25, rel=0.1)
    assert _fitted(exact.with_loss(exact.loss + 8.0), OF_COMPUTE, None, 0)[0].form == FLOOR


def test_outliers_bend_no_law_and_choose_no_form() -> None:
    points = along_compute(20.0, noise=0.02)
    spoiled = points.with_loss(np.where(np.arange(16) == 7, 3.0, 1.0) * points.loss)
    clean, robust = (fit(each, FLOOR, n_samples=20) for each in (points, spoiled))
    assert robust.intervals["exponent_flops"][0] == pytest.approx(clean.intervals["exponent_flops"][0], rel=0.1)
    for each, margin in ((clean, 10), (robust, 2)):
        assert fit(each.points, POWER, n_samples=0).bic > each.bic + margin


def test_a_measured_floor_bounds_the_law_from_below_and_a_wrong_one_is_noticed() -> None:
    points = along_compute(10.0, noise=0.05, n=9)
    alone = fit(points, FLOOR)
    right = fit(points, FLOOR, floor=Floor(10.0, 0.5))
    width = [found.intervals["floor"][2] - found.intervals["floor"][1] for found in (alone, right)]
    assert width[1] < width[0] and right.intervals["floor"][1] > 9.0 and not right.is_in_conflict
    wrong = fit(along_compute(10.0, noise=0.01), FLOOR, floor=Floor(25.0, 0.5))
    assert wrong.is_in_conflict and wrong.disagreement is not None and wrong.disagreement < 0
    assert wrong.to_record()["is_in_conflict"]
    # What a model cannot represent is above what was measured, and is no contradiction.
    points = along_compute(10.0, noise=0.01)
    above = fit(points, FLOOR, floor=Floor(0.0, 1e-3))
    assert above.floor == pytest.approx(fit(points, FLOOR, n_samples=0).floor) and not above.is_in_conflict


def test_intervals_know_that_trainings_share_their_frames() -> None:
    name, inside = "exponent_n_frames", dict.fromkeys(("told", "not told"), 0)
    for seed in range(20):
        points, truth = shared(seed, 0.03)
        for kind, each in (("told", points), ("not told", replace(points, groups=np.arange(len(points))))):
            _, low, high = fit(each, JOINT, n_samples=60, seed=seed).intervals[name]
            inside[kind] += low <= truth[name] <= high
    assert inside["told"] >= 14 > inside["not told"]


def test_the_highest_level_is_foretold() -> None:
    found = [left_out(along_compute(8.0, noise=0.03, seed=seed), [POWER, FLOOR], factor=4.0) for seed in range(12)]
    assert np.mean([each["inside"] for each in found]) >= 0.75
    assert np.median([each["rms_relative_error"] for each in found]) < 0.06
    assert all(each["n_points"] < 16 for each in found)


def test_frames_seen_again_are_worth_less() -> None:
    assert effective_frames(np.array([100.0]), np.array([1.0]), 5.0) == 100.0
    few, many = effective_frames(np.array([100.0, 100.0]), np.array([2.0, 1e6]), 5.0)
    assert 180 < few < 200 and many == pytest.approx(600.0)
    assert STEPS.parameters[-1] == "exponent_frames_seen" and REPEATED.parameters[-1] == "log_repeats"


def test_the_same_seed_gives_the_same_fit() -> None:
    points = study(3, noise=0.03)
    assert fit(points, JOINT, n_samples=10).to_record() == fit(points, JOINT, n_samples=10).to_record()


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="more than 5"):
        fit(study(0)[:5], JOINT)
    with pytest.raises(DataError, match="positive"):
        replace(study(0), loss=np.full(50, -1.0))
    with pytest.raises(DataError, match="positive"):
        Points(*(np.ones(3) for _ in range(4)), np.array([1.0, np.nan, 1.0]))


def test_a_law_breaks_only_where_the_data_do() -> None:
    """An exponent that goes from 0.15 to 0.45 comes back with the place of the break; a law without a break stays whole."""
    whole = along_compute(5.0, noise=0.01, n=24)
    x = np.log(whole.flops / 1e12)
    bent = whole.with_loss(200.0 * np.exp(-0.15 * x - 0.3 * SHARPNESS * np.logaddexp(0.0, x / SHARPNESS))
                           * np.exp(0.01 * generator(3, "noise").standard_normal(24)))
    found = fit(bent, broken(bent), n_samples=20)
    values = {name: value for name, (value, _, _) in found.intervals.items()}
    assert values["log_break"] == pytest.approx(np.log(1e12), abs=0.7)
    assert values["exponent_flops"] == pytest.approx(0.15, abs=0.03)
    assert values["exponent_flops"] * np.exp(values["log_exponent_ratio"]) == pytest.approx(0.45, abs=0.06)
    assert found.bic < fit(bent, FLOOR, n_samples=5).bic - BREAK_MARGIN
    assert fit(whole, broken(whole), n_samples=5).bic > fit(whole, FLOOR, n_samples=5).bic - BREAK_MARGIN
