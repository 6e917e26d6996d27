"""`sapis scale compare`: studies of several models on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.errors import ConfigError, DataError, FileError
from sapis.core.files import write_json
from sapis.pipeline.floor import known_floor
from sapis.pipeline.scale import finished, points_of, read_study
from sapis.report.comparison import write_comparison
from sapis.scaling.compare import Comparison, compare
from sapis.scaling.fit import INTERVAL
from sapis.scaling.forms import Points
from sapis.scaling.laws import Laws, fit_laws

SAME = ("n_validation", "n_test", "group_by", "seed")  # settings by which the test frames are chosen
N_CURVE = 60  # budgets at which a law is drawn


def compare_studies(folders: Sequence[Path], output: Path) -> list[tuple[str, Comparison]]:
    """How much more compute each of the other studies needs for the errors of the first; written as ``output`` with the endings
    ``.json`` and ``.html``.

    Returns:
        The name of each other study (that of its folder) and its comparison.

    Raises:
        FileError: no study, or studies of different frames.
        ConfigError: fewer than two studies, or two of one name.
        DataError: too few finished trainings.
    """
    names = [folder.name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise ConfigError(expected="two studies or more, in folders of different names", received=", ".join(names) or "none",
                          where="sapis scale compare", todo="name the folders, the one to compare with first")
    studies = [read_study(folder) for folder in folders]
    for folder, study in zip(folders[1:], studies[1:], strict=True):
        known = [study.data_hash == studies[0].data_hash,
                 *(getattr(study.config, key) == getattr(studies[0].config, key) for key in SAME)]
        if not all(known):
            raise FileError(expected=f"a study of the same test frames as {folders[0]}: the same data, {', '.join(SAME)}",
                            received="one of others", where=str(folder), todo="plan it with the same")
    laws: list[Laws] = []
    for folder, study in zip(folders, studies, strict=True):
        points, levels = points_of(study, finished(folder, study))
        laws.append(fit_laws(points, levels, study.sizes, floor=known_floor(folder), n_available=study.n_available))
        if not laws[-1].compute:
            raise DataError(expected="a law of compute", received=f"trainings at {len(set(levels))} levels of compute, too few",
                            where=str(folder), todo="let more of the study finish, or plan one with more levels or seeds")
    found = [(name, compare(laws[0].compute[0], law.compute[0])) for name, law in zip(names[1:], laws[1:], strict=True)]
    record = {"studies": {name: _to_json(law) for name, law in zip(names, laws, strict=True)},
              "comparisons": {name: {key: getattr(each, key).tolist() for key in ("losses", "flops", "ratio", "is_measured")}
                              for name, each in found}, "data_hash": studies[0].data_hash}
    write_json(output.with_suffix(".json"), record)
    write_comparison(output.with_suffix(".html"), f"Scaling on {studies[0].data.name}", record)
    return found


def _to_json(laws: Laws) -> dict[str, Any]:
    law, flops = laws.compute[0], np.geomspace(laws.points.flops.min(), laws.points.flops.max(), N_CURVE)
    value, *samples = law.curves(Points(flops, *np.ones((4, N_CURVE))))
    low, high = np.quantile(samples, INTERVAL, axis=0)
    return {"law": law.to_record(), "trainings": {"flops": laws.points.flops.tolist(), "loss": laws.points.loss.tolist()},
            "curve": {"flops": flops.tolist(), "loss": value.tolist(), "low": low.tolist(), "high": high.tolist()}}
