"""Cheap labels brought to the level of theory of the dear ones, by what the two differ by.

The difference between two methods is smaller and smoother than what either of them gives, so that few dear labels teach it
(Ramakrishnan and others, J. Chem. Theory Comput. 11, 2087, 2015). A model of it corrects the many cheap labels, which the
potential of each round learns beside the dear ones; the potential itself then needs no cheap method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapis.core.errors import DataError
from sapis.core.files import hash_file
from sapis.core.progress import console
from sapis.core.seeds import derive_seed
from sapis.data.formats import read_systems, write_systems
from sapis.data.system import System
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import Executor
from sapis.executors.outcome import Failure
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import label_at, require_not_killed
from sapis.pipeline.choice import ASKED, RANDOM
from sapis.pipeline.past import Past
from sapis.potential.prediction import Prediction
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

CORRECTED = "corrected.extxyz"
STORE = "cheap.store"  # cheap labels of what has dear ones


@dataclass(frozen=True)
class CheapLabels:
    """What is to be corrected, and how.

    Attributes:
        frames: file of structures with cheap labels.
        labeler: their method.
        training: of the model of the difference.
    """

    frames: Path
    labeler: LabelerConfig
    training: TrainingConfig


def correct(past: Past, number: int, cheap: CheapLabels, level: str, executor: Executor) -> None:
    """Bring the frames of ``cheap`` to ``level``, by all dear labels up to round ``number``. A step of that round, which leaves
    them in `CORRECTED`.

    Raises:
        DataError: no structure has labels of both methods.
        LabelerError: a cheap label whose process was killed.
    """
    recipe, training = past.recipe, cheap.training.model_copy(update={"seed": derive_seed(past.recipe.seed, "delta", number)})
    inputs = past.settings("model") | {
        "labels": [record.result["files"] for record in past.labels], "frames": hash_file(cheap.frames), "level": level,
        "labeler": cheap.labeler.limits() | {"method": build_labeler(cheap.labeler).method},
        "training": training.model_dump(mode="json")}

    def run() -> dict[str, Any]:
        (train, lost, _), (held, lost_held, took) = (
            _differences(past.known(arm), cheap.labeler, past.work.path(STORE), executor) for arm in (ASKED, RANDOM))
        if not train:
            raise DataError(expected="cheap labels of the structures that have dear ones", received="none: all have failed",
                            where=f"labeler {cheap.labeler.name}", todo="look at the journal of the store, or leave out delta")
        begun, _ = new_potential(train, {}, recipe.model, precision=training.precision, seed=training.seed)
        fitting = Training(begun, train, held, training, past.path(number, "training") / "delta")
        spent = fitting.run()
        frames = read_systems(cheap.frames)
        found = fitting.potential.predict([replace(frame.without_labels(), level="") for frame in frames])
        write_systems(past.path(number, CORRECTED), [
            replace(_sum(frame, one, 1), level=level) for frame, one in zip(frames, found, strict=True)])
        errors = evaluate(fitting.potential, held)["force_rmse_meV_A"] if held else None
        took -= sum(steps["delta"].result["label_cpu_seconds"] for steps in past.rounds[:number])
        return {"n_train": len(train), "n_held": len(held), "n_corrected": len(frames), "force_rmse_meV_A": errors,
                "failures": lost + lost_held, "label_cpu_seconds": took,
                "cost": {"cpu_seconds": spent.cpu_seconds + took, "flops": spent.flops}}

    result = past.step(number, "delta", inputs, CORRECTED, run).result
    on_held = f", force RMSE {result['force_rmse_meV_A']:.1f} meV/Å on {result['n_held']} held out" if result["n_held"] else ""
    console.print(f"  difference of the methods from {result['n_train']} labels{on_held}; "
                  f"{result['n_corrected']} cheap labels corrected")


def _differences(systems: Sequence[System], labeler: LabelerConfig, store: Path, executor: Executor,
                 ) -> tuple[list[System], list[dict[str, str]], float]:
    """Labels of ``systems`` minus those by ``labeler``, where these do not fail; how the others failed; CPU seconds of all labels
    in ``store``.
    """
    done, cheap = label_at(store, [system.without_labels() for system in systems], labeler, executor, is_quiet=True)
    require_not_killed(cheap, f"labeler {labeler.name}")
    differences = [replace(_sum(system, other, -1), level="") for system, other in zip(systems, cheap, strict=True)
                   if isinstance(other, System)]
    failures = [{"kind": other.kind, "reason": other.reason} for other in cheap if isinstance(other, Failure)]
    return differences, failures, done.total_cpu_seconds


def _sum(system: System, other: System | Prediction, sign: int) -> System:
    """``system`` with the labels of both added, or subtracted; those that one of them lacks are left out."""
    labels: dict[str, Any] = {}
    for name in ("energy", "forces", "stress"):
        own, further = getattr(system, name), getattr(other, name)
        labels[name] = None if own is None or further is None else own + sign * further
    return replace(system, **labels)
