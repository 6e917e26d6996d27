"""What every potential that knows its doubt must obey, checked by what `posterior` and `variance_gradients` return.

Laws, as those of `sapis.testing.laws`, take ``(potential, systems, rng)``. Covariances are divided by the largest component of
those of the system, variances by their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.potential.posterior import Posterior, UncertainPotential
from sapis.testing import tolerances
from sapis.testing.laws import STENCIL_STEPS, STENCIL_WEIGHTS, Check, judged

N_COMPONENTS = 6  # of each gradient that are tried: each costs four posteriors

Law = Callable[[UncertainPotential, Sequence[System], np.random.Generator], Check]


def check_posterior(potential: UncertainPotential, systems: Sequence[System], *, seed: int = 0) -> list[Check]:
    """Put every law to a potential.

    Args:
        systems: of elements that the potential knows, about which it has some doubt.
        seed: of the random matrices, orders and components.

    Returns:
        One check a law, in the order of `LAWS`.
    """
    plain = [system.without_labels() for system in systems]
    return [law(potential, plain, generator(seed, "laws", name)) for name, law in LAWS.items()]


def turning(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """``S(Rr) = R S(r) R^T`` for random orthogonal R, of either sign, and the variance of the energy is that of before."""
    matrices = [np.linalg.qr(rng.standard_normal((3, 3)))[0] * rng.choice([-1, 1]) for _ in systems]
    turned = [replace(system, positions=system.positions @ matrix.T, cell=system.cell @ matrix.T)
              for system, matrix in zip(systems, matrices, strict=True)]
    return _compare("covariance_turns", potential, systems, turned,
                    lambda before, k: replace(before, force_covariance=matrices[k] @ before.force_covariance @ matrices[k].T),
                    "covariances of forces turn with the system, mirror images included")


def permutation(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """Of another order of the atoms."""
    orders = [rng.permutation(len(system)) for system in systems]
    shuffled = [replace(system, numbers=system.numbers[order], positions=system.positions[order])
                for system, order in zip(systems, orders, strict=True)]
    return _compare("covariance_permutation", potential, systems, shuffled,
                    lambda before, k: replace(before, force_covariance=before.force_covariance[orders[k]]),
                    "the order in which atoms are listed does not matter to what is known of them")


def batching(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """What is asked together equals what is asked one by one."""
    together = potential.posterior([*systems, *reversed(systems)])
    alone = [potential.posterior([system])[0] for system in systems]
    errors = [_error(one, expected) for one, expected in zip(together, [*alone, *reversed(alone)], strict=True)]
    return judged("covariance_batching", errors, tolerances.POSTERIOR, potential, "doubt does not depend on what else is asked")


def mean(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """`predict` gives the means of `posterior`."""
    pairs = zip(potential.predict(systems), potential.posterior(systems), strict=True)
    errors = [_largest(abs(one.energy - found.mean.energy) / len(one.forces), np.abs(one.forces - found.mean.forces).max())
              for one, found in pairs]
    return judged("mean", errors, tolerances.EQUIVARIANCE, potential, "what is predicted is the mean of the posterior")


def positive(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """Covariances are symmetric and have no negative eigenvalue; variances are not negative."""
    errors = []
    for found in potential.posterior(systems):
        matrices, size = found.force_covariance, _size(found)
        if not np.isfinite(matrices).all():
            errors.append(np.inf)
            continue
        skew = np.abs(matrices - matrices.transpose(0, 2, 1)).max() / size
        errors.append(_largest(skew, -np.linalg.eigvalsh(matrices).min() / size, 0.0 if found.energy_variance >= 0 else np.inf))
    return judged("covariance_is_one", errors, tolerances.POSTERIOR, potential,
                  "covariances are symmetric, and nothing has a negative variance")


def gradients(potential: UncertainPotential, systems: Sequence[System], rng: np.random.Generator) -> Check:
    """`variance_gradients` are the differences of the energy variance."""
    step, errors = tolerances.FORCE_STEP.at(potential.precision), []
    for system, gradient in zip(systems, potential.variance_gradients(systems), strict=True):
        for component in rng.permutation(gradient.size)[:N_COMPONENTS]:
            along = np.zeros(gradient.size)
            along[component] = step
            moved = [replace(system, positions=system.positions + k * along.reshape(-1, 3)) for k in STENCIL_STEPS]
            slope = np.array([found.energy_variance for found in potential.posterior(moved)]) @ STENCIL_WEIGHTS / step
            errors.append(abs(float(slope) - float(gradient.ravel()[component])) / max(np.abs(gradient).max(), TINY))
    return judged("variance_gradients", errors, tolerances.VARIANCE_GRADIENTS, potential,
                  "gradients of the variance are its differences")


LAWS: dict[str, Law] = {"turning": turning, "permutation": permutation, "batching": batching, "mean": mean, "positive": positive,
                        "gradients": gradients}
TINY = 1e-12  # eV^2, eV^2/Å^2: where nothing is uncertain there is nothing to compare with


def _compare(name: str, potential: UncertainPotential, systems: Sequence[System], varied: Sequence[System],
             expected: Callable[[Posterior, int], Posterior], what: str) -> Check:
    found = potential.posterior([*systems, *varied])
    before, after = found[: len(systems)], found[len(systems) :]
    errors = [_error(got, expected(before[k], k)) for k, got in enumerate(after)]
    return judged(name, errors, tolerances.POSTERIOR, potential, what)


def _size(found: Posterior) -> float:
    return max(float(np.abs(found.force_covariance).max()), TINY)


def _error(got: Posterior, expected: Posterior) -> float:
    """The larger of the relative errors of the energy variance and of the covariances."""
    if got.force_covariance.shape != expected.force_covariance.shape:
        return np.inf
    return _largest(abs(got.energy_variance - expected.energy_variance) / max(expected.energy_variance, TINY),
                    np.abs(got.force_covariance - expected.force_covariance).max() / _size(expected))


def _largest(*errors: float) -> float:
    """NaN, if one is."""
    return float(np.max(errors))
