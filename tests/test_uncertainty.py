"""Uncertainty: closed forms for planted noise, nothing for identical members, and laws of covariances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.stats import chi, norm
from scipy.stats import t as student

from command import sapis
from sapis.api import load, save
from sapis.core.config import parse_config
from sapis.core.errors import ConfigError, DataError, ModelError, SimulationError, TrainingError
from sapis.core.seeds import derive_seed
from sapis.data.formats import read_systems
from sapis.data.formats.xyz import write_systems
from sapis.data.system import System
from sapis.labelers.labeler import LabelerConfig
from sapis.model.backend import backend
from sapis.model.config import dial
from sapis.model.dropout import channel_factors, dropped
from sapis.model.last_layer import LastLayer, last_weights
from sapis.model.potential import TransformerPotential
from sapis.pipeline.members import trained_members
from sapis.potential.biased import BiasedCalculator
from sapis.potential.calibration import LEVELS, Calibration, least_stated
from sapis.potential.posterior import Posterior, UncertainPotential
from sapis.potential.prediction import Prediction
from sapis.simulate.md import run_nve
from sapis.simulate.sampling import CandidatesConfig, Trajectory, simulate
from sapis.so3.rotations import random_rotation
from sapis.testing.posteriors import check_posterior
from sapis.training.config import TrainingConfig
from sapis.training.loop import Training, _Dropped
from sapis.training.loss import loss
from sapis.uncertainty import one_model
from sapis.uncertainty.assess import assess, calibrate
from sapis.uncertainty.config import UncertaintyConfig
from sapis.uncertainty.distance import Distance
from sapis.uncertainty.dropout import Dropout
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.evidential import Evidential, evidential_loss, variance
from sapis.uncertainty.last_layer import Laplace, Rows, Shallow
from sapis.uncertainty.one_model import OneModel
from sapis.uncertainty.scores import auroc, auroc_shifted, crps, scores
from sapis.uncertainty.select import in_common_units, points_of, select
from sapis.uncertainty.uncertain import Uncertain

N = 20_000
SAMPLE = Path(__file__).parents[1] / "docs" / "data" / "organic-gfn2-v1" / "sample.extxyz.gz"


def planted(d: int, seed: int = 0, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Errors of known deviations, stated ``factor`` times too small."""
    rng = np.random.default_rng(seed)
    stds = 0.05 * np.exp(rng.normal(0, 0.7, N))
    return stds * np.linalg.norm(rng.standard_normal((d, N)), axis=0), stds / factor


@pytest.mark.parametrize("d", [1, 3])
def test_planted_noise_has_the_scores_of_its_closed_forms(d: int) -> None:
    errors, stds = planted(d)
    found = scores(errors, stds, d)
    assert found["nll"] == pytest.approx(np.mean(np.log(stds)) + 0.5 * np.log(2 * np.pi) + 0.5, abs=0.02)
    assert found["crps"] == pytest.approx(stds.mean() / np.sqrt(np.pi), rel=0.02)  # of a normal distribution by itself
    assert found["miscalibration_area"] < 0.01 and found["ence"] < 0.05
    assert found["spearman"] == pytest.approx(found["spearman_ceiling"], abs=0.02)
    for level in (50, 90, 95):
        assert found[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.01)
    assert found["risk_coverage_area"] < 0.7 and found["auroc_worst_decile"] > 0.8
    blind = scores(errors, np.random.default_rng(1).permutation(stds), d)
    assert blind["nll"] > found["nll"] and blind["crps"] > found["crps"] and abs(blind["spearman"]) < 0.03
    assert blind["risk_coverage_area"] == pytest.approx(1.0, abs=0.05)
    assert blind["auroc_worst_decile"] == pytest.approx(0.5, abs=0.03)


def test_crps_is_the_integral_that_defines_it() -> None:
    rng = np.random.default_rng(2)
    std, vector = 0.3, rng.normal(0, 0.5, 3)
    grid = np.linspace(-6, 6, 20_001)

    def of_component(x: float) -> float:
        return float(np.trapezoid((norm.cdf(grid / std) - (grid >= x)) ** 2, grid))

    assert crps(np.array([0.4]), np.array([std]), 1) == pytest.approx(of_component(0.4), rel=1e-3)
    axes = rng.standard_normal((400, 3))
    along = axes @ vector / np.linalg.norm(axes, axis=1)
    expected = np.mean([of_component(x) for x in along])
    assert crps(np.array([np.linalg.norm(vector)]), np.array([std]), 3) == pytest.approx(expected, rel=0.03)


def test_areas_under_curves_count_pairs() -> None:
    rng = np.random.default_rng(3)
    stds, is_bad = rng.random(60), rng.random(60) > 0.7
    pairs = stds[is_bad][:, None] > stds[~is_bad][None]
    assert auroc(stds, is_bad) == pytest.approx(pairs.mean())
    assert auroc_shifted(stds, stds + 2) == 1.0 and np.isnan(auroc(stds, np.zeros(60, dtype=bool)))


def test_deviations_that_are_none_are_refused() -> None:
    for errors, stds in (([0.1, 0.2], [0.1, 0.0]), ([0.1], [0.1]), ([0.1, np.nan], [0.1, 0.1]), ([0.1, 0.2], [0.1, 0.1, 0.1])):
        with pytest.raises(DataError, match="deviation"):
            scores(np.array(errors), np.array(stds), 1)


@pytest.mark.parametrize("d", [1, 3])
def test_calibration_finds_the_factor_of_each_group(d: int) -> None:
    groups = np.random.default_rng(4).integers(0, 3, N)
    truth = np.array([0.5, 2.0, 7.0])[groups]
    errors, stds = planted(d)
    found = Calibration.of(errors, stds / truth, d, groups=groups)
    for group, factor in enumerate((0.5, 2.0, 7.0)):
        assert found.factors[group] == pytest.approx(factor, rel=0.02)
    assert scores(errors, found.corrected(stds / truth, groups), d)["miscalibration_area"] < 0.01
    few = Calibration.of(errors[:100], stds[:100], d, groups=np.where(np.arange(100) < 5, 8, 1))
    assert 8 not in few.factors and few.corrected(np.ones(1), [8])[0] == few.factors[None]
    one = Calibration.of(errors[:100], stds[:100], d, groups=np.where(np.arange(100) < 40, 8, 1),
                         frames=np.maximum(0, np.arange(100) - 39))
    assert 8 not in one.factors and 1 in one.factors, "forty atoms of one frame are one sample"
    again = Calibration.from_json(found.to_json())
    assert again == found
    with pytest.raises(DataError, match="hold out more"):
        Calibration.of(errors[:4], stds[:4], d)
    with pytest.raises(DataError, match="a level among"):
        found.bounds(stds, 0.8)


def test_calibration_finds_a_planted_power() -> None:
    rng = np.random.default_rng(6)
    stds, groups = np.exp(rng.normal(0, 0.3, N)), rng.integers(0, 2, N)
    truth = np.array([0.5, 2.0])[groups] * stds**2
    errors = np.linalg.norm(truth[:, None] * rng.normal(size=(N, 3)), axis=1)
    found = Calibration.of(errors, stds, 3, groups=groups, with_power=True)
    assert found.power == pytest.approx(2.0, abs=0.03)
    np.testing.assert_allclose(found.corrected(stds, groups), truth, rtol=0.1)
    assert Calibration.from_json(found.to_json()) == found
    assert Calibration.of(errors, stds, 3, groups=groups).power == 1.0, "where none was asked for"
    noisy = Calibration.of(errors, truth * np.exp(rng.normal(0, 0.5, N)), 3, groups=groups, with_power=True)
    assert noisy.power == pytest.approx(1.0, abs=1e-4), "noise in what is stated does not flatten it"
    few = Calibration.of(errors[:60], stds[:60], 3, frames=np.arange(60) // 30, with_power=True)
    assert few.power < 1.3, "two frames say little"


@pytest.mark.parametrize("n", [1, 30, 700])
def test_atoms_that_no_member_has_a_force_on_do_not_spoil_their_element(n: int) -> None:
    """Without neighbours they have none, and no deviation but that of rounding, while their labels have some noise."""
    errors, stds = planted(3)
    found = Calibration.of(np.append(errors[:600], np.full(n, 0.001)), np.append(stds[:600], np.full(n, 1e-9)), 3,
                           groups=np.ones(600 + n, dtype=int), with_power=True)
    assert found.power == pytest.approx(1.0, abs=0.05) and found.factors[1] == pytest.approx(1.0, rel=0.1)
    assert found.quantiles[0.95] == pytest.approx(chi.ppf(0.95, 3), rel=0.1)


def test_one_wild_deviation_does_not_spoil_the_others() -> None:
    errors, stds = 0.05 * np.stack(planted(3))[:, :900]
    wild = np.append(errors, 100.0), np.append(stds, 500.0)
    found = Calibration.of(*wild, 3)
    assert found.bounds(found.corrected(stds), 0.9) == pytest.approx(chi.ppf(0.9, 3) * stds, rel=0.1)
    assert least_stated(wild[1]) < stds.min(), "scores are of what is stated"
    with pytest.raises(DataError, match="with a deviation"):
        Calibration.of(np.ones(6), np.array([1e-9, 1e-9, 1e-9, 1e-9, 1.0, 1.0]), 1)


def test_quantiles_hold_whatever_the_distribution() -> None:
    """Errors with heavy tails: regions of a normal distribution are wrong, conformal ones are not."""
    rng = np.random.default_rng(5)
    kept = []
    for _ in range(200):
        errors = np.abs(rng.standard_t(2.5, 400))
        known = Calibration.of(errors[:200], np.ones(200), 1)
        kept.append([np.mean(errors[200:] <= known.bounds(known.corrected(np.ones(200)), level)) for level in LEVELS])
    np.testing.assert_allclose(np.mean(kept, axis=0), LEVELS, atol=0.01)
    normal = np.mean(np.abs(rng.standard_t(2.5, N)) / known.factors[None] <= chi.ppf(0.5, 1))
    assert abs(normal - 0.5) > 0.1


@pytest.fixture(scope="module")
def members() -> list[TransformerPotential]:
    config = dial(16, {"preset": "nano", "n_layers": 1})
    return [TransformerPotential(config, elements=[1, 8], reference_energies=[0.0, 0.0], scale=1.0, average_neighbors=2.0,
                                 precision="float64", seed=seed) for seed in range(4)]


def water() -> System:
    return System(numbers=np.array([8, 1, 1]), positions=np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]]))


def test_the_covariance_turns_with_the_system(members: list[TransformerPotential]) -> None:
    rotation = random_rotation(np.random.default_rng(6))
    system = water()
    turned = replace(system, positions=system.positions @ rotation.T)
    one, other = (Posterior.of_members([member.predict([each])[0] for member in members]) for each in (system, turned))
    np.testing.assert_allclose(other.force_covariance, rotation @ one.force_covariance @ rotation.T, atol=1e-10)
    np.testing.assert_allclose(other.force_std, one.force_std, atol=1e-10)
    assert other.energy_variance == pytest.approx(one.energy_variance, abs=1e-10) and one.energy_std > 0
    assert np.linalg.eigvalsh(one.force_covariance).min() > -1e-12
    moved = one.forces - one.forces.mean(axis=0) if one.forces is not None else np.zeros(0)
    np.testing.assert_allclose(one.force_covariance[1], np.cov(moved[:, 1].T), atol=1e-12)


def test_identical_members_are_sure_and_one_is_none(members: list[TransformerPotential]) -> None:
    (prediction,) = members[0].predict([water()])
    sure = Posterior.of_members([prediction] * 3)
    assert sure.energy_variance == 0 and not sure.force_covariance.any() and not sure.force_std.any()
    assert sure.mean.energy == pytest.approx(prediction.energy)
    np.testing.assert_allclose(sure.mean.forces, prediction.forces, atol=1e-15)
    with pytest.raises(ModelError, match="at least two"):
        Posterior.of_members([prediction])


def test_an_ensemble_is_kept_with_its_calibration_and_tells_its_doubt_to_ase(
        members: list[TransformerPotential], tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    systems = [replace(water(), positions=water().positions + rng.normal(0, 0.05, (3, 3))) for _ in range(40)]
    plain = Ensemble(members)
    found = plain.posterior(systems)
    labelled = [replace(system, energy=0.0, forces=np.zeros((3, 3))) for system in systems]
    calibrations = calibrate(found, labelled)
    ensemble = Ensemble(members, calibrations)
    save(tmp_path / "many.sapis", ensemble, {})
    again = load(tmp_path / "many.sapis")
    (one,), (other,) = ensemble.posterior(systems[:1]), again.potential.posterior(systems[:1])
    assert one.energy_std == other.energy_std and (one.force_covariance == other.force_covariance).all()
    np.testing.assert_allclose(one.force_std, calibrations["forces"].corrected(found[0].force_std, systems[0].numbers))
    assert one.energy_std == pytest.approx(calibrations["energy"].factors[None] * found[0].energy_std)
    assert one.mean.energy == pytest.approx(np.mean([member.predict(systems[:1])[0].energy for member in members]))
    scored = assess(ensemble.posterior(systems), labelled, calibrations=calibrations)
    assert 0.9 <= scored["forces"]["conformal_90"] <= 0.93, "on the frames that set it"
    assert scored["forces"]["n"] == 120 and scored["energy"]["std"] == pytest.approx(scored["energy"]["rmse"], rel=0.5)
    moved = assess(ensemble.posterior(systems), labelled, own=ensemble.posterior(systems))
    assert moved["forces"]["auroc_shifted"] == pytest.approx(0.5)

    atoms = systems[0].to_atoms()
    atoms.calc = again.calculator()
    assert atoms.get_potential_energy() == pytest.approx(one.mean.energy)
    assert atoms.calc.get_property("energy_uncertainty", atoms) == pytest.approx(one.energy_std)
    np.testing.assert_allclose(atoms.calc.get_property("forces_uncertainty", atoms), one.force_std)
    with pytest.raises(ModelError, match="one model"):
        _ = again.single
    with pytest.raises(ModelError, match="members of one elements"):
        Ensemble([members[0], TransformerPotential(members[0].config, elements=[1, 6, 8], reference_energies=[0.0] * 3, scale=1.0,
                                                   average_neighbors=2.0, precision="float64")])


def labelled_by(potential: TransformerPotential, n: int = 60, noise: tuple[float, float] = (0.01, 0.03)) -> list[System]:
    """Rattled water with the labels of ``potential`` and noise on energies (eV) and force components (eV/Å)."""
    rng = np.random.default_rng(8)
    systems = [replace(water(), positions=water().positions + rng.normal(0, 0.08, (3, 3))) for _ in range(n)]
    return [replace(system, energy=found.energy + noise[0] * rng.standard_normal(),
                    forces=found.forces + noise[1] * rng.standard_normal((3, 3)))
            for system, found in zip(systems, potential.predict(systems), strict=True)]


def test_labels_are_a_linear_problem_in_the_last_weights(members: list[TransformerPotential]) -> None:
    systems = labelled_by(members[0])
    rows = Rows.of(members[0], systems)
    found = members[0].predict(systems)
    energies = rows.energies - rows.energy @ rows.own
    np.testing.assert_allclose(energies, [(system.energy or 0) - one.energy for system, one in zip(systems, found, strict=True)],
                               atol=1e-10)
    assert rows.noises() == (pytest.approx(0.01, rel=0.2), pytest.approx(0.03, rel=0.1))
    # The rows are derivatives: one weight moved a little moves all labels by its column.
    layer = LastLayer(members[0], next(members[0].batches(systems)).batch)
    moved = rows.own.clone()
    moved[3] += 1e-3
    change = layer.forces(moved)[0] - layer.forces(rows.own)[0]
    torch.testing.assert_close(change.flatten(), 1e-3 * rows.force[:, 3], rtol=0, atol=1e-9)
    torch.testing.assert_close(layer.force_changes(moved - rows.own), change, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [Laplace, Shallow, Distance, Evidential])
def test_one_model_knows_its_doubt_and_keeps_it_in_its_file(
        members: list[TransformerPotential], tmp_path: Path, kind: type[OneModel]) -> None:
    systems = labelled_by(members[0])
    plain = kind.fitted(members[0], systems)  # type: ignore[attr-defined]
    plain.calibrations = calibrate(plain.posterior(systems), systems)
    save(tmp_path / "model.sapis", plain, {})
    again = load(tmp_path / "model.sapis")
    n_weights = sum(weight.numel() for weight in again.potential.parameters())  # type: ignore[union-attr]
    assert f"{n_weights:,} parameters" in sapis("info", tmp_path / "model.sapis").text
    far = replace(water(), positions=1.3 * water().positions)
    known, other = plain.posterior([systems[0], far]), again.potential.posterior([systems[0], far])  # type: ignore[union-attr]
    for one, two in zip(known, other, strict=True):
        assert one.energy_variance == pytest.approx(two.energy_variance, rel=1e-9)
        np.testing.assert_allclose(one.force_covariance, two.force_covariance, rtol=1e-9)
    if kind is not Evidential:  # which knows the errors of frames like its own, and nothing of others
        assert known[1].energy_std > 2 * known[0].energy_std and (known[1].force_std > known[0].force_std).all()
    if kind is not Shallow:
        assert known[0].mean.energy == pytest.approx(members[0].predict(systems[:1])[0].energy, abs=1e-9)
        np.testing.assert_allclose(known[0].mean.forces, members[0].predict(systems[:1])[0].forces, atol=1e-11)
    scored = assess(plain.posterior(systems), systems)
    assert scored["forces"]["coverage_90"] == pytest.approx(0.9, abs=0.12)
    assert again.single.config == members[0].config
    double = again.potential.with_precision("float64")
    assert double.precision == "float64" and double.predict([far])[0].energy == pytest.approx(known[1].mean.energy)


@pytest.mark.parametrize("kind", [Laplace, Shallow, Distance, Evidential, Ensemble, Dropout])
def test_posteriors_obey_the_laws(members: list[TransformerPotential], kind: type[Uncertain]) -> None:
    systems = labelled_by(members[0], 30)
    asked = [systems[0], replace(water(), positions=1.1 * water().positions)]
    doubtful = doubtful_of(kind, members, systems)
    failed = [str(check) for check in check_posterior(doubtful, asked) if not check.passed]
    assert not failed and all(found.energy_std > 0 for found in doubtful.posterior(asked))


def doubtful_of(kind: type[Uncertain], members: list[TransformerPotential], systems: list[System]) -> Uncertain:
    found = {Ensemble: lambda: Ensemble(members), Dropout: lambda: Dropout(members[0], 0.2, 4, 0)}.get(
        kind, lambda: kind.fitted(members[0], systems))()  # type: ignore[attr-defined]
    found.calibrations = calibrate(found.posterior(systems), systems)
    return found


class Faulty:
    """An ensemble with a fault in its posteriors or in its gradients."""

    def __init__(self, members: list[TransformerPotential], fault: Callable[..., Posterior] | None = None,
                 scale: float = 1.0) -> None:
        self.sound, self.fault, self.scale = Ensemble(members), fault, scale
        self.elements, self.cutoff, self.precision = self.sound.elements, self.sound.cutoff, "float64"

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        return self.sound.predict(systems)

    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        found = self.sound.posterior(systems)
        return found if self.fault is None else [self.fault(one, len(systems)) for one in found]

    def variance_gradients(self, systems: Sequence[System]) -> list[np.ndarray]:
        return [self.scale * found for found in self.sound.variance_gradients(systems)]


@pytest.mark.parametrize(("fault", "caught_by"), [
    (lambda found, n: replace(found, force_covariance=found.force_covariance * np.diag([1.0, 2, 1])), "covariance_turns"),
    (lambda found, n: replace(found, force_covariance=found.force_covariance * np.arange(1, 4)[:, None, None]),
     "covariance_permutation"),
    (lambda found, n: replace(found, energy_variance=found.energy_variance * (1 + 1e-6 * n)), "covariance_batching"),
    (lambda found, n: replace(found, mean=replace(found.mean, energy=found.mean.energy + 1e-6)), "mean"),
    (lambda found, n: replace(found, force_covariance=-found.force_covariance), "covariance_is_one"),
    (lambda found, n: replace(found, energy_variance=-1.0), "covariance_is_one"),
    (lambda found, n: replace(found, mean=replace(found.mean, forces=np.nan * found.mean.forces)), "mean"),
    (lambda found, n: replace(found, force_covariance=np.nan * found.force_covariance), "covariance_is_one"),
    (lambda found, n: replace(found, force_covariance=np.nan * found.force_covariance), "covariance_turns"),
])
def test_a_planted_fault_of_a_posterior_is_caught(
        members: list[TransformerPotential], fault: Callable[..., Posterior], caught_by: str) -> None:
    asked = [water(), replace(water(), positions=1.1 * water().positions)]
    assert caught_by in [check.name for check in check_posterior(Faulty(members, fault), asked) if not check.passed]
    wrong = check_posterior(Faulty(members, scale=1.001), asked)
    assert [check.name for check in wrong if not check.passed] == ["variance_gradients"]


def test_laplace_propagates_the_weights_covariance_to_forces(members: list[TransformerPotential]) -> None:
    systems = labelled_by(members[0])
    known, rows = Laplace.fitted(members[0], systems), Rows.of(members[0], systems)
    (found,) = known.posterior(systems[:1])
    jacobian = rows.force[: systems[0].positions.size].reshape(-1, 3, rows.force.shape[1])
    exact = torch.einsum("aip,pq,ajq->aij", jacobian, known.get_buffer("covariance"), jacobian).numpy()
    # Draws estimate it, and for the covariance of the draws themselves it is exact.
    assert np.trace(found.force_covariance.sum(0)) == pytest.approx(np.trace(exact.sum(0)), rel=0.8)
    draws = known.get_buffer("draws")
    sampled = torch.einsum("aip,pq,ajq->aij", jacobian, draws.T @ draws / len(draws), jacobian).numpy()
    np.testing.assert_allclose(found.force_covariance, sampled, atol=1e-9 * sampled.max())


@pytest.mark.parametrize("name", ["compiled", "padded", "edges"])
@pytest.mark.parametrize("kind", [Laplace, Shallow, Distance, Evidential, Ensemble])
def test_gradients_of_the_variance_are_its_differences(
        members: list[TransformerPotential], kind: type[Uncertain], name: str) -> None:
    systems = labelled_by(members[0], 30)
    one = Ensemble(members) if kind is Ensemble else kind.fitted(members[0], systems)  # type: ignore[attr-defined]
    one.calibrations = calibrate(one.posterior(systems), systems)
    system, step = systems[0], 1e-4
    with backend(name):
        other, found = one.variance_gradients([replace(systems[1], positions=1.1 * water().positions), system])
        assert not np.allclose(other, found)
        for place in (0, 4, 8):
            moved = np.zeros(9)
            moved[place] = step
            high, low = one.posterior([replace(system, positions=system.positions + sign * moved.reshape(3, 3))
                                       for sign in (1, -1)])
            slope = (high.energy_variance - low.energy_variance) / (2 * step)
            assert found.flat[place] == pytest.approx(slope, rel=1e-4, abs=1e-6 * np.abs(found).max())


def test_what_is_strange_makes_its_neighbours_uncertain_and_smoothly_so(members: list[TransformerPotential]) -> None:
    known = Distance.fitted(members[0], labelled_by(members[0]))
    one, cutoff = water(), known.cutoff

    def beside(apart: float) -> np.ndarray:
        both = np.concatenate([one.positions, one.positions + np.array([0, 0, apart])])
        (found,) = known.posterior([System(numbers=np.tile(one.numbers, 2), positions=both)])
        return found.force_std

    alone = known.posterior([one])[0].force_std
    assert (beside(3.0) > alone.max()).all(), "nothing of the kind was in the training set"
    np.testing.assert_allclose(beside(2 * cutoff), np.tile(alone, 2), rtol=1e-9)
    for edge in (cutoff, np.hypot(cutoff, 0.96), np.hypot(cutoff, 0.97)):
        np.testing.assert_allclose(beside(edge - 1e-6), beside(edge + 1e-6), rtol=1e-5)


def test_an_element_of_which_one_atom_was_seen_has_a_scale_too() -> None:
    potential = TransformerPotential(dial(16, {"preset": "nano", "n_layers": 1}), elements=[1, 7, 8], scale=1.0,
                                     reference_energies=[0.0] * 3, average_neighbors=2.0, precision="float64", seed=0)
    ammonia = System(numbers=np.array([7, 1, 1, 1]),
                     positions=np.array([[0, 0, 0.1], [0.95, 0, -0.3], [-0.5, 0.8, -0.3], [-0.5, -0.8, -0.3]]))
    rng = np.random.default_rng(12)
    waters = [replace(water(), positions=water().positions + rng.normal(0, 0.08, (3, 3))) for _ in range(40)]
    known = Distance.fitted(potential, [*waters, ammonia])
    moved = replace(ammonia, positions=ammonia.positions + rng.normal(0, 0.05, (4, 3)))
    rare, common = known.posterior([moved, replace(water(), positions=water().positions + rng.normal(0, 0.05, (3, 3)))])
    assert 0.1 * common.force_std.max() < rare.force_std.max() < 50 * common.force_std.max()


def test_a_bias_draws_dynamics_to_what_is_not_known(members: list[TransformerPotential], tmp_path: Path) -> None:
    systems = labelled_by(members[0])
    doubtful = Distance.fitted(members[0], systems)
    doubtful.calibrations = calibrate(doubtful.posterior(systems), systems)
    atoms = systems[0].to_atoms()
    atoms.calc = BiasedCalculator(doubtful, 0.3)
    plain, (gradient,) = doubtful.posterior(systems[:1])[0], doubtful.variance_gradients(systems[:1])
    bias = atoms.get_forces() - plain.mean.forces
    assert np.linalg.norm(bias, axis=1).mean() == pytest.approx(0.3 * np.linalg.norm(plain.mean.forces, axis=1).mean())
    np.testing.assert_allclose(bias / np.linalg.norm(bias), gradient / np.linalg.norm(gradient), atol=1e-9)
    assert atoms.get_potential_energy() < plain.mean.energy
    atoms.calc = BiasedCalculator(doubtful, -0.3, above=0.99 * plain.force_std.max())
    np.testing.assert_allclose(atoms.get_forces() - plain.mean.forces, -bias, atol=1e-9)
    assert atoms.get_potential_energy() > plain.mean.energy
    atoms.calc = BiasedCalculator(doubtful, -0.3, above=1.01 * plain.force_std.max())
    np.testing.assert_allclose(atoms.get_forces(), plain.mean.forces, atol=1e-9)

    save(tmp_path / "model.sapis", doubtful, {})
    driver = LabelerConfig(name="potential", arguments={"path": str(tmp_path / "model.sapis")}, is_stateless=True)
    plan = Trajectory("md", systems[0].without_labels(), 300.0, 20)
    how = CandidatesConfig(equilibration_fs=5, decorrelation_fs=2)
    doubts = []
    for strength in (0.0, 0.5):
        frames, ending = simulate(plan, driver, how.model_copy(update={"bias": strength}), 1)
        assert len(frames) == 20 and not ending
        doubts.append(np.mean([found.energy_std for found in doubtful.posterior(frames)]))
    assert doubts[1] > 1.15 * doubts[0]
    limit = float(max(found.force_std.max() for found in doubtful.posterior([plan.start]))) * 1.02
    frames, ending = simulate(plan, driver, how.model_copy(update={"max_uncertainty_eV_A": limit, "bias": 0.5}), 1)
    assert ending and "uncertain" in ending and 0 < len(frames) < 20
    assert doubtful.posterior(frames[-1:])[0].force_std.max() > limit
    with pytest.raises(ConfigError, match="knows its doubt"):
        simulate(plan, LabelerConfig(name="lj"), how.model_copy(update={"bias": 0.5}), 1)


def test_an_evidential_model_leaves_alone_what_is_not_its_own(members: list[TransformerPotential]) -> None:
    found = Evidential.fitted(members[0], labelled_by(members[0]))
    torch.manual_seed(0)
    again = Evidential.from_settings(found.settings())
    assert float(torch.rand(1)) == pytest.approx(0.4963, abs=1e-4), "numbers at random of others"
    moved = found.with_precision("float32").to("meta")
    assert all(weight.device.type == "cpu" for weight in found.networks.parameters())
    assert {weight.device.type for weight in moved.parameters()} == {"meta"} and isinstance(again, Evidential)


def test_labelled_frames_are_found_between_others(members: list[TransformerPotential], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_model, "N_TO_FIT", 4)
    systems = [system for each in labelled_by(members[0])[:4] for system in (each.without_labels(), each)]
    assert len(one_model.with_labels(systems)) == 4
    with pytest.raises(DataError, match="8 without"):
        one_model.with_labels([system.without_labels() for system in systems])


def test_settings_that_a_method_does_not_use_are_refused() -> None:
    for wrong in ({"method": "laplace", "members": 64}, {"method": "distance", "dropout": 0.1}):
        with pytest.raises(ConfigError, match="with method"):
            parse_config(UncertaintyConfig, wrong, where="settings")
    dropout = UncertaintyConfig(method="dropout", dropout=0.2)
    assert dropout.trained_with(TrainingConfig()).dropout == dropout.trained_with(TrainingConfig(dropout=0.2)).dropout == 0.2
    with pytest.raises(ConfigError, match="one dropout"):
        dropout.trained_with(TrainingConfig(dropout=0.3))


def test_the_evidential_loss_is_the_likelihood_of_students_distribution() -> None:
    evidence = torch.tensor([[1.3], [2.4], [0.7]], dtype=torch.float64)
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    nu, alpha, beta = (float(value) for value in evidence)
    expected = student(2 * alpha, scale=np.sqrt(beta * (1 + nu) / (nu * alpha)))
    for error in (0.0, 0.4, -2.0):
        own = float(evidential_loss(torch.tensor([error], dtype=torch.float64), evidence)) - 0.01 * abs(error) * (2 * nu + alpha)
        assert own == pytest.approx(-expected.logpdf(error), rel=1e-9)
    density = torch.from_numpy(expected.pdf(grid.numpy()))
    assert float(variance(evidence)) == pytest.approx(float(torch.trapezoid(density * grid**2, grid)), rel=1e-2)


def test_dropped_channels_make_nothing_and_gradients_are_those_of_the_whole_weights() -> None:
    potential = TransformerPotential(dial(16, {"preset": "nano"}), elements=[1, 8], reference_energies=[0.0, 0.0], scale=1.0,
                                     average_neighbors=2.0, precision="float64", seed=0)
    factors = channel_factors(potential, 0.5, 3)
    assert {name.split(".", 3)[3] for name in factors} == {"update.weight", "keep.weight", "gate.narrow.weight"}
    other = dropped(potential, 0.5, 3)
    layer, one = other.transformer.layers[0], factors["transformer.layers.0.gate.narrow.weight"][:, 0]
    assert 0 < int((one == 0).sum()) < 16 and set(one.tolist()) == {0.0, 2.0}
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda *arguments: seen.append(arguments[2].detach()))
    with backend("padded"):
        other.predict([water()])
    assert not seen[0][:, :, one == 0].any() and seen[0][:, :, one != 0].any()
    assert dropped(potential, 0.0, 3).predict([water()])[0].energy == pytest.approx(potential.predict([water()])[0].energy)

    systems = labelled_by(potential, 4)
    config = TrainingConfig(epochs=1, batch_size=2, dropout=0.5, precision="float64", optimizer="amsgrad")
    with TemporaryDirectory() as folder:
        training = Training(potential, systems, [], config, Path(folder))
        before = {name: value.detach().clone() for name, value in training.parameters.items()}
        batch = training.loader.batch(np.arange(2))
        with _Dropped(potential, training.parameters, config, 0):
            loss(batch, *potential(batch, create_graph=True), config, potential.scale).backward()
        assert all((training.parameters[name] == value).all() for name, value in before.items())
        step = channel_factors(potential, 0.5, derive_seed(config.seed, "dropout", 0))
        twin = dropped(potential, 0.5, derive_seed(config.seed, "dropout", 0))
        loss(batch, *twin(batch, create_graph=True), config, potential.scale).backward()
        for name, value in twin.named_parameters():
            own = training.parameters[name].grad
            if own is not None and value.grad is not None:
                torch.testing.assert_close(own, value.grad * step.get(name, torch.ones(())), rtol=0, atol=1e-12)


def test_members_by_dropout_are_potentials_of_their_own(members: list[TransformerPotential], tmp_path: Path) -> None:
    doubtful = Dropout(members[0], 0.3, 5, seed=1)
    (found,) = doubtful.posterior([water()])
    assert found.energies is not None and len(set(found.energies.tolist())) == 5 and found.energy_std > 0
    save(tmp_path / "model.sapis", doubtful, {})
    again = load(tmp_path / "model.sapis")
    assert again.single.config == members[0].config and isinstance(again.potential, Dropout)
    assert (again.potential.posterior([water()])[0].energies == found.energies).all()
    with torch.no_grad():
        again.single.transformer.embedding.mul_(1.1)
    assert (again.potential.posterior([water()])[0].energies != found.energies).all(), "copies are those of the present weights"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distance", "ensemble", "dropout"])
def test_a_training_with_uncertainty(tmp_path: Path, method: str) -> None:
    systems = [system for system in read_systems(SAMPLE)
               if set(system.numbers) <= {1, 6, 7, 8} and (system.charge, system.spin) == (0, 1)]
    write_systems(tmp_path / "data.extxyz", systems[:-10])
    write_systems(tmp_path / "test.extxyz", systems[-10:])
    members = "" if method == "distance" else ", members: 2"
    (tmp_path / "settings.yaml").write_text("model: {preset: nano, n_layers: 1}\n"
                                            f"uncertainty: {{method: {method}{members}}}\n")
    command = ("train", tmp_path / "data.extxyz", "--output", tmp_path / "out", "--config", tmp_path / "settings.yaml",
               "--epochs", "1", "--n-validation", "10", "--test", tmp_path / "test.extxyz")
    assert sapis(*command).code in (0, 1)
    model = load(tmp_path / "out" / "model.sapis")
    assert isinstance(model.potential, UncertainPotential) and model.card["uncertainty"]["method"] == method
    assert model.card["test"]["test"]["uncertainty"]["forces"]["n"] == sum(len(system) for system in systems[-10:])
    assert method in sapis("info", tmp_path / "out" / "model.sapis").text
    before = (tmp_path / "out" / "model.sapis").read_bytes()
    assert sapis(*command).text.count("done before") == 5 and (tmp_path / "out" / "model.sapis").read_bytes() == before
    for single in ("grow", "info --cost"):
        arguments = ["grow", tmp_path / "out" / "model.sapis", tmp_path / "larger.sapis", "--n-layers", "2"]
        ending = sapis(*(arguments if single == "grow" else ["info", "--cost", tmp_path / "out" / "model.sapis"]))
        assert (ending.code == 0) == (method != "ensemble"), ending.text


def test_members_side_by_side_are_those_that_one_process_trains(members: list[TransformerPotential], tmp_path: Path) -> None:
    systems = labelled_by(members[0])
    settings = TrainingConfig(cpu_seconds=1e9, precision="float64", seed=3, warmup_steps=5, validations=2)
    once = Training(copy.deepcopy(members[0]), systems[:50], systems[50:],
                    settings.model_copy(update={"epochs": 1}), tmp_path / "once")
    budget = 2 * once.run(is_quiet=True).flops

    def begin(seed: int, number: int) -> TransformerPotential:
        return copy.deepcopy(members[number])

    found, cost = trained_members(3, begin, systems[:50], systems[50:], settings, tmp_path, flops=budget, workers=2)
    assert len(found) == 2 and cost["flops"] == pytest.approx(2 * budget, rel=0.1)
    for number, member in enumerate(found, 1):
        seed = derive_seed(3, "member", number)
        own = settings.model_copy(update={"cpu_seconds": None, "flops": budget, "seed": seed})
        alone = Training(begin(seed, number), systems[:50], systems[50:], own, tmp_path / f"alone-{number}")
        alone.run(is_quiet=True)
        for name, weights in alone.potential.state_dict().items():
            assert torch.equal(weights, member.state_dict()[name]), name
    with pytest.raises(TrainingError, match="member-1"):
        trained_members(2, lambda seed, number: torch.nn.Linear(1, 1), systems[:50], systems[50:], settings, tmp_path / "no",
                        flops=budget, workers=1)


def test_dynamics_stop_where_a_force_is_too_uncertain(members: list[TransformerPotential], tmp_path: Path) -> None:
    systems = labelled_by(members[0])
    known = Distance.fitted(members[0], systems)
    known.calibrations = calibrate(known.posterior(systems), systems)
    save(tmp_path / "model.sapis", known, {})
    usual = max(float(found.force_std.max()) for found in known.posterior(systems))
    broken = replace(water(), positions=water().positions + np.array([[0, 0, 0], [1.2, 0, 0], [0, 0, 0]]))
    write_systems(tmp_path / "start.extxyz", [water()])
    write_systems(tmp_path / "broken.extxyz", [broken])
    command = ("--time-ps", "0.02", "--temperature-K", "10", "--stopped", tmp_path / "stopped.extxyz")
    ending = sapis("md", tmp_path / "model.sapis", tmp_path / "broken.extxyz", *command, "--stop-above", str(2 * usual))
    assert ending.code == 3 and "uncertain: the force on" in ending.text
    (frame,) = read_systems(tmp_path / "stopped.extxyz")
    np.testing.assert_allclose(frame.positions, broken.positions, atol=1e-6)
    assert str(frame.tags["reason"]).startswith("uncertain")
    assert sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *command, "--stop-above", "1e9").code == 0
    (tmp_path / "stopped.extxyz").unlink()
    warned = sapis("md", tmp_path / "model.sapis", tmp_path / "broken.extxyz", *command, "--warn-above", str(2 * usual))
    assert warned.code == 0 and "warning: at " in warned.text
    assert read_systems(tmp_path / "stopped.extxyz")[0].tags["reason"] == f"uncertain by more than {2 * usual:g} eV/Å"
    both = sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *command, "--warn-above", "1", "--stop-above", "1")
    assert both.code != 0 and "either" in both.text
    biased = ("--bias", "0.3", "--time-ps", "0.01")
    assert "--ensemble nvt" in sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *biased).text
    assert sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *biased, "--ensemble", "nvt").code == 0
    back = ("--bias", "-0.3", "--bias-above", "0.1", "--time-ps", "0.01", "--ensemble", "nvt",
            "--stopped", tmp_path / "stopped.extxyz")
    assert sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *back).code == 0
    (tmp_path / "stopped.extxyz").unlink()
    always = (*biased, "--ensemble", "nvt", "--bias-above", "1e-9", "--stopped", tmp_path / "stopped.extxyz")
    told = sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", *always)
    assert told.code == 0 and "warning: at " in told.text and (tmp_path / "stopped.extxyz").exists()
    assert "say how strong" in sapis("md", tmp_path / "model.sapis", tmp_path / "start.extxyz", "--bias-above", "0.1").text

    atoms = water().to_atoms()
    atoms.calc = load(tmp_path / "model.sapis").calculator()
    calm = run_nve(atoms, temperature_K=3000.0, timestep_fs=0.5, time_ps=0.05, seed=0)
    assert calm.final is not None
    seen: list[float] = []
    limit = 1.5 * float(known.posterior([water()])[0].force_std.max())
    stop = run_nve(watched(atoms, seen), temperature_K=3000.0, timestep_fs=0.5, time_ps=0.05, seed=0, max_uncertainty_eV_A=limit)
    assert stop.reason.startswith("uncertain") and seen[-1] > limit and max(seen[:-1]) <= limit  # at once
    save(tmp_path / "plain.sapis", members[0], {})
    atoms.calc = load(tmp_path / "plain.sapis").calculator()
    with pytest.raises(SimulationError, match="how uncertain"):
        run_nve(atoms, temperature_K=300.0, timestep_fs=0.5, time_ps=0.01, seed=0, max_uncertainty_eV_A=0.1)


def watched(atoms: Atoms, seen: list[float]) -> Atoms:
    """``atoms`` whose calculator notes the largest uncertainty of each calculation."""
    calculator, original = atoms.calc, atoms.calc.calculate

    def calculate(*arguments: object, **settings: object) -> None:
        original(*arguments, **settings)
        seen.append(float(calculator.results["forces_uncertainty"].max()))

    calculator.calculate = calculate
    return atoms


def test_of_many_alike_one_is_chosen() -> None:
    rng = np.random.default_rng(10)
    centres = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    groups = np.repeat(range(4), (500, 20, 20, 20))
    points = centres[groups] + 0.1 * rng.standard_normal((len(groups), 2))
    stds = np.where(groups == 1, 2.0, 1.0) + 0.01 * rng.random(len(points))
    arguments = {"stds": stds, "points": points, "known": centres[:1], "rng": rng}
    assert set(groups[select(3, "diverse", **arguments)]) == {1, 2, 3}  # the one that is known is not chosen
    assert set(groups[select(10, "largest", **arguments)]) == {1}
    assert set(groups[select(60, "random", **arguments)]) >= {0} and len(set(select(60, "random", **arguments).tolist())) == 60
    both = select(4, "largest and diverse", **arguments)
    assert set(groups[both]) == {1} and len(set(both.tolist())) == 4
    everything = select(10**6, "diverse", **arguments)
    assert sorted(everything.tolist()) == list(range(len(points)))
    same = select(5, "diverse", stds=np.ones(8), points=np.ones((8, 2)), known=np.ones((1, 2)), rng=rng)
    assert len(set(same.tolist())) == 5
    with pytest.raises(DataError, match="for each candidate"):
        select(1, "diverse", stds=stds[:3], points=points, known=centres, rng=rng)


def test_information_is_the_growth_of_the_determinant() -> None:
    rng = np.random.default_rng(11)
    points, known = rng.standard_normal((40, 5)), rng.standard_normal((6, 5))
    curvature = known.T @ known
    curvature += 1e-3 * np.trace(curvature) / 5 * np.eye(5)
    expected = list[int]()
    for _ in range(8):
        gains = [-np.inf if k in expected else np.linalg.slogdet(curvature + np.outer(x, x))[1] for k, x in enumerate(points)]
        expected.append(int(np.argmax(gains)))
        curvature += np.outer(points[expected[-1]], points[expected[-1]])
    found = select(8, "information", stds=np.ones(40), points=points, known=known, rng=rng)
    assert found.tolist() == expected


def test_points_are_sums_over_atoms(members: list[TransformerPotential]) -> None:
    systems = labelled_by(members[0], 6)
    points = points_of(members[0], systems)
    energies = np.array([found.energy for found in members[0].predict(systems)])
    np.testing.assert_allclose(members[0].scale * points @ last_weights(members[0]).numpy(), energies, atol=1e-10)
    one, other = in_common_units(points[:2], points[2:])
    np.testing.assert_allclose(np.concatenate([one, other]).std(axis=0)[points.std(axis=0) > 0], 1.0)
