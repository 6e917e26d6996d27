"""From a trained model to one that knows its doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sapis.data.system import System
from sapis.model.potential import TransformerPotential
from sapis.uncertainty.assess import calibrate
from sapis.uncertainty.config import UncertaintyConfig
from sapis.uncertainty.distance import Distance
from sapis.uncertainty.dropout import Dropout
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.evidential import Evidential
from sapis.uncertainty.last_layer import Laplace, Shallow
from sapis.uncertainty.uncertain import Uncertain


def uncertain(model: TransformerPotential, config: UncertaintyConfig, train: Sequence[System], held: Sequence[System], *,
              others: Callable[[], Sequence[TransformerPotential]], seed: int = 0) -> Uncertain:
    """``model`` with the uncertainty that ``config`` asks for (not ``none``), calibrated on ``held``.

    Args:
        model: trained; for dropout with that.
        train: what it was trained on.
        held: labelled frames that its weights were not fitted to.
        others: trains the other members of an ensemble.
        seed: of what is random.

    Raises:
        DataError: too few labels to fit or to calibrate on.
    """
    found: Uncertain
    if config.method == "ensemble":
        found = Ensemble([model, *others()])
    elif config.method == "dropout":
        found = Dropout(model, config.rate, config.n_members, seed)
    elif config.method == "shallow":
        found = Shallow.fitted(model, train, members=config.n_members, seed=seed)
    elif config.method == "evidential":
        found = Evidential.fitted(model, train, seed=seed)
    elif config.method == "laplace":
        found = Laplace.fitted(model, train, seed=seed)
    else:
        found = Distance.fitted(model, train)
    found.calibrations = calibrate(found.posterior(held), held)
    return found
