"""`sapis train`: a potential from labelled files, tested and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from sapis.api import Model, load
from sapis.core.config import Config
from sapis.core.errors import ConfigError, DataError
from sapis.core.files import hash_file
from sapis.core.memory import keep_freed_memory
from sapis.core.version import __version__
from sapis.data.conditions import Conditions
from sapis.data.formats import LabelKeys, read_systems
from sapis.data.lint import lint, lint_splits, raise_on_errors
from sapis.data.lint.sample import sample_of
from sapis.data.reference import ReferenceEnergies, isolated_by_level
from sapis.data.splits import group_split, random_split
from sapis.data.store import Selection, Store, is_store
from sapis.data.system import System, chemical_symbols, hash_systems
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.pipeline import steps
from sapis.pipeline.checks import checks, smallest
from sapis.pipeline.workspace import Workspace
from sapis.training.config import TrainingConfig
from sapis.training.fit import at_new_level, known_potential, new_potential
from sapis.uncertainty.assess import require_enough
from sapis.uncertainty.config import UncertaintyConfig


class TrainRequest(Config):
    """Settings of a training from files."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    uncertainty: UncertaintyConfig = UncertaintyConfig()
    level_of_theory: str = Field("not given", description="of the labels, where the frames do not name it; for the model's card")


@dataclass(frozen=True)
class TrainOutcome:
    """Where a training left what it made, and what was measured."""

    model: Path
    model_hash: str
    errors: dict[str, dict[str, Any]]
    all_passed: bool
    training: dict[str, Any]
    cost: dict[str, float]
    data: dict[str, Any]


def train_files(
    data: Path, output: Path, request: TrainRequest, *, validation: Path | None = None, n_validation: int = 50,
    group_by: str = "", tests: Sequence[Path] = (), isolated: Path | None = None, start: Path | None = None, to_level: str = "",
    keys: LabelKeys | None = None, waived: Sequence[str] = (),
) -> TrainOutcome:
    """Train on the frames of ``data``, evaluate on ``tests``, check the physics; everything lands in ``output``.

    Args:
        validation: frames to validate on; without it ``n_validation`` random frames of ``data`` (by the seed).
        group_by: a tag; then random groups of frames that share its value, of so many frames or a few more.
        isolated: file of one-atom frames for the reference energies, of several levels of theory frames of each; without it
            least squares.
        start: a model to go on from: its weights, sizes and reference energies.
        to_level: with ``start``: the level of theory of ``data``, which is another than the model's; reference energies are
            estimated anew.
        waived: names of lint rules whose errors are accepted.

    Raises:
        SapisError: bad input.
    """
    keep_freed_memory()
    torch.set_num_threads(request.training.threads)
    previous = _previous(start, request, isolated, to_level) if start else None
    if to_level and previous is None:
        raise ConfigError(expected="--start MODEL with --to-level", received="no model", where=f"--to-level {to_level}",
                          todo="name the model to go on from; a new one takes its level of theory from the settings")
    if previous is not None and request.uncertainty.method == "ensemble":
        raise ConfigError(expected="another uncertainty than ensemble with a model to go on from: all members would be alike",
                          received="ensemble", where=f"--start {start}", todo="take distance, laplace, shallow or evidential")
    settings = request.uncertainty.trained_with(request.training)
    needed = [name for name, weight in (("energy", settings.energy_weight), ("forces", settings.force_weight)) if weight]
    train: Sequence[System] = Store(data) if is_store(data) else read_systems(data, keys=keys, require=needed)
    if validation is not None:
        held: Sequence[System] = read_systems(validation, keys=keys, require=needed)
    else:
        if n_validation >= len(train):
            raise DataError(expected=f"more than {n_validation} frames, of which {n_validation} validate",
                            received=str(len(train)), where=str(data), todo="give more frames, or a smaller --n-validation")
        if group_by:
            split = group_split(train, group_by, n_validation, 0, request.training.seed)
        else:
            split = random_split(train, len(train) - n_validation, n_validation, request.training.seed)
        train, held = split.train, split.validation
    if request.uncertainty.method != "none":
        require_enough(held)
    test_sets = {name: read_systems(path, keys=keys) for name, path in _names(tests).items()}
    everything = [system for systems in test_sets.values() for system in systems]
    _require_comparable(train, {"validation": held, **test_sets}, None if previous else Conditions.of(train))
    energy_key = LabelKeys(energy=keys.energy if keys else None)
    atoms = isolated_by_level(read_systems(isolated, keys=energy_key)) if isolated else {}
    if not atoms and isinstance(train, Store | Selection):
        atoms = _known_isolated(train)
    findings = lint(sample_of(train), needs=needed, isolated=next(iter(atoms.values())) if len(atoms) == 1 else None)
    findings += lint_splits(train, held, everything)
    raise_on_errors(findings, waived=waived)
    begun = _begun(previous, train, to_level, settings.precision) if previous else None

    isolated_record = {level: {str(z): energy for z, energy in found.items()} for level, found in atoms.items()}
    work = Workspace(output, ["training", "model.sapis"])
    parts = {"train": train, "validation": held}
    hashes = {name: hash_systems(part) for name, part in (parts | test_sets).items()}
    origin: dict[str, Any] = {}
    if start and previous:
        origin["started_from"] = {"file_hash": hash_file(start), "card": previous.card}
    if to_level:
        origin["to_level"] = to_level
    named = ", ".join(begun[0].conditions.levels if begun else Conditions.of(train).levels)
    level = named or (previous.card.get("level_of_theory", "not given") if previous else request.level_of_theory)

    def begin(seed: int) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
        if previous:
            return _begun(previous, train, to_level, settings.precision)
        return new_potential(train, atoms, request.model, precision=settings.precision, seed=seed)

    def run_training() -> dict[str, Any]:
        new = begun or begin(settings.seed)
        return steps.train(parts, new, settings, work.path("training"), work.path("training/model.sapis"),
                           {"level_of_theory": level} | origin)

    asked = request.model_copy(update={"training": settings}).model_dump(exclude={"uncertainty"})
    with work.locked():
        trained = work.step(
            "train", {"version": __version__, "request": asked, "isolated": isolated_record,
                      "train": hashes["train"], "validation": hashes["validation"]} | origin, ["training/model.sapis"],
            run_training)
        model, uses_model = work.path("training/model.sapis"), {"version": __version__} | trained.result["files"]
        if request.uncertainty.method != "none":
            source, model = model, work.path("training/uncertain.sapis")
            known = work.step(
                "uncertainty", uses_model | {"uncertainty": request.uncertainty.model_dump()}, ["training/uncertain.sapis"],
                lambda: steps.uncertainty(source, model, parts, request.uncertainty, settings, work.path("training"),
                                          lambda seed: begin(seed)[0], flops=trained.cost["flops"]))
            uses_model = {"version": __version__} | known.result["files"]
        test = work.step("test", uses_model | hashes, [], lambda: {"sets": steps.errors(
            model, {"validation": held} | test_sets, home="validation")})
        checked = work.step("checks", uses_model, [], lambda: checks(model, smallest(train)))
        card = {"test": {name: {key: value for key, value in found.items() if key != "parity"}
                         for name, found in test.result["sets"].items()}, "checks": checked.result["checks"],
                "findings": [asdict(finding) for finding in findings]}
        final = work.step("bundle", uses_model | card, ["model.sapis"],
                          lambda: steps.bundle(model, work.path("model.sapis"), card))
    used = {name: {"n": len(part), "hash": hashes[name]} for name, part in (parts | test_sets).items()}
    return TrainOutcome(work.path("model.sapis"), final.result["model_hash"], card["test"], checked.result["all_passed"],
                        trained.result, trained.cost, used)


def _begun(previous: Model, train: Sequence[System], to_level: str, precision: str) -> tuple[Any, Any]:
    """What training begins from, and its reference energies, where there is a model to go on from."""
    potential = at_new_level(previous.single, train, to_level) if to_level else previous.single
    return known_potential(potential, train, precision=precision)


def _previous(start: Path, request: TrainRequest, isolated: Path | None, to_level: str) -> Model:
    """The model to go on from, which settles what else could be asked for."""
    for name, is_given in (("model settings", "model" in request.model_fields_set), ("--isolated", isolated is not None)):
        if is_given:
            raise ConfigError(expected=f"no {name} with --start: they are those of the model it names", received=name,
                              where=f"--start {start}", todo="leave one of the two out; `sapis grow` makes a model larger")
    model = load(start)
    level = to_level or model.card.get("level_of_theory")
    if request.level_of_theory not in ("not given", level):
        raise ConfigError(expected=f"the level of theory of the model: {level}", received=request.level_of_theory,
                          where=f"--start {start}", todo="say --to-level NAME to go on at another one: its energies differ by "
                          "reference energies, which are estimated then")
    return model


def _require_comparable(train: Sequence[System], parts: Mapping[str, Sequence[System]], conditions: Conditions | None) -> None:
    """What cannot be evaluated is an error now, and not when the training is done; ``conditions`` are those of a new model."""
    known = {int(number) for system in train for number in system.numbers}
    for name, part in parts.items():
        if not any(label is not None for system in part for label in (system.energy, system.forces, system.stress)):
            raise DataError(expected="frames with energies, forces or stresses", received=f"{len(part)} frames without a label",
                            where=f"{name} frames", todo="label them, or name the keys under which the file holds its labels")
        for system in part:
            if unknown := {int(number) for number in system.numbers} - known:
                raise system.error(
                    expected="elements that the training frames hold", todo="train on data with them too, or remove such frames",
                    received=", ".join(chemical_symbols[number] for number in sorted(unknown)),
                )
            if conditions is not None:
                conditions.indices(system)


def _names(tests: Sequence[Path]) -> dict[str, Path]:
    """Test files by the name that their errors will carry, which must tell them apart."""
    named: dict[str, Path] = {}
    for path in tests:
        name = path.name.split(".")[0]
        if name in (*named, "train", "validation"):
            raise ConfigError(expected="test files with names of their own, neither train nor validation", received=repr(name),
                              where=f"--test {path}", todo="rename or link this file")
        named[name] = path
    return named


def _known_isolated(train: Store | Selection) -> dict[str, dict[int, float]]:
    """Energies of isolated atoms that the store has for levels of its frames."""
    store = train if isinstance(train, Store) else train.store
    return {level: energies for level, energies in store.isolated.items() if energies}
