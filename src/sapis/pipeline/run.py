"""`sapis run`: the whole way from a recipe to a validated potential and its report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sapis.core.config import parse_config
from sapis.core.files import read_json, short_path, write_text
from sapis.core.memory import keep_freed_memory
from sapis.core.records import read_record
from sapis.core.seeds import derive_seed
from sapis.core.version import __version__
from sapis.data.formats import read_systems
from sapis.data.reference import ReferenceEnergies
from sapis.data.system import System
from sapis.labelers.build import build_labeler
from sapis.model.potential import TransformerPotential
from sapis.pipeline import steps
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.checks import checks, dynamics
from sapis.pipeline.recipe import AskingConfig, Recipe
from sapis.pipeline.workspace import Workspace
from sapis.report.page import write_report
from sapis.report.story import Report
from sapis.training.fit import new_potential
from sapis.uncertainty.assess import require_enough
from sapis.uncertainty.config import UncertaintyConfig

N_SHOWN_STRUCTURES = 12
N_CHECKED_STRUCTURES = 2
OUTPUTS = (
    "recipe.json", "candidates.extxyz", "trajectories", "labels.store", "labels.extxyz",
    *(f"{name}.extxyz" for name in steps.PARTS), "training", "active", "model.sapis", "report.html",
)

USAGE = """\
from sapis import load
from ase.io import read
atoms = read("{example}"); atoms.calc = load("{model}").calculator(); print(atoms.get_potential_energy())
"""


@dataclass(frozen=True)
class Outcome:
    """Where a run left what it made."""

    model: Path
    report: Path
    model_hash: str
    all_passed: bool
    usage: str


def run(recipe: Recipe) -> Outcome:
    """Do, or finish, everything that ``recipe`` asks for. Killed anywhere, the same call goes on.

    Raises:
        SapisError: bad input; everything finished so far is kept.
    """
    keep_freed_memory()
    # Here and not only in the training, which a resumed run may skip: another number of threads, other last digits.
    torch.set_num_threads(recipe.training.threads)
    work = Workspace(recipe.output, OUTPUTS)
    with work.locked():
        write_text(work.path("recipe.json"), json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n")
        return _run(recipe, work)


def _run(recipe: Recipe, work: Workspace) -> Outcome:
    method = build_labeler(recipe.labeler).method  # what is behind its settings may have changed

    def settings(*names: str) -> dict[str, Any]:
        values = recipe.model_dump(mode="json", exclude={"output", "title", "workers"})
        if recipe.system.file is not None:
            values["system"]["file"] = [system.structure_hash() for system in read_systems(recipe.system.file)]
        values["labeler"] = recipe.labeler.limits() | {"method": method}
        return {"version": __version__, **{name: values[name] for name in names}}

    found = work.step(
        "candidates", settings("system", "labeler", "temperatures_K", "hot_temperature_K", "candidates", "split", "seed")
        | {"n": recipe.budget.labels}, ["candidates.extxyz"],
        lambda: steps.candidates(recipe, work.path("trajectories"), work.path("candidates.extxyz")),
    )
    labelled = work.step(
        "labels", settings("labeler") | found.result["files"], ["labels.extxyz"],
        lambda: steps.labels(recipe, work.path("candidates.extxyz"), work.path("labels.store"), work.path("labels.extxyz")),
    )
    names = [f"{name}.extxyz" for name in steps.PARTS if name != "hot" or recipe.hot_temperature_K]
    split = work.step(
        "data", settings("split", "hot_temperature_K", "seed") | labelled.result["files"], names,
        lambda: steps.data(recipe, work.path("labels.extxyz"), work.folder),
    )
    parts = steps.read_parts(work.folder)
    if recipe.uncertainty.method != "none" or recipe.active is not None:
        require_enough(parts["validation"])
    changes: dict[str, Any] = {"cpu_seconds": None if recipe.auto else recipe.budget.cpu_seconds, "seed": recipe.seed}
    training = recipe.uncertainty.trained_with(recipe.training.model_copy(update=changes))
    isolated = {int(z): value for z, value in labelled.result["isolated"].items()}

    def begin(seed: int) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
        return new_potential(parts["train"], isolated, recipe.model, precision=training.precision, seed=seed)

    def train() -> dict[str, Any]:
        folder, target = work.path("training"), work.path("training/model.sapis")
        card = {"level_of_theory": labelled.result["method"],
                "system": recipe.system.model_dump(mode="json", exclude={"file"})}
        if recipe.auto:
            return steps.grow(parts, isolated, recipe.auto, recipe.model, training, folder, target, card)
        return steps.train(parts, begin(training.seed), training, folder, target, card)

    trained = work.step("train", settings("model", "auto", "seed") | split.result["files"] | {"training": training.model_dump()},
                        ["training/model.sapis"], train)
    model, uses_model = work.path("training/model.sapis"), {"version": __version__} | trained.result["files"]
    if recipe.active is not None:
        asking = asking_recipe(recipe, recipe.active, model, work.path("active"))
        inputs = uses_model | settings("active", "uncertainty", "labeler", "temperatures_K", "candidates", "seed")
        asked = work.step("active", inputs, ["active/model.sapis"], lambda: steps.ask(asking, parts))
        model, uses_model = work.path("active/model.sapis"), {"version": __version__} | asked.result["files"]
    elif recipe.uncertainty.method != "none":
        source, model = model, work.path("training/uncertain.sapis")
        known = work.step("uncertainty", uses_model | settings("uncertainty", "seed"), ["training/uncertain.sapis"],
                          lambda: steps.uncertainty(source, model, parts, recipe.uncertainty, training, work.path("training"),
                                                    lambda seed: begin(seed)[0], flops=trained.cost["flops"],
                                                    workers=recipe.workers))
        uses_model = {"version": __version__} | known.result["files"]
    test = work.step("test", uses_model | split.result["files"], [], lambda: steps.test(model, parts))
    start = parts["train"][0].without_labels()
    md = work.step("md", uses_model | settings("dynamics", "seed"), [],
                   lambda: dynamics(model, start, recipe.dynamics, derive_seed(recipe.seed, "dynamics")))
    checked_systems = [system.without_labels() for system in parts["train"][:N_CHECKED_STRUCTURES]]
    checked = work.step("checks", uses_model | settings("dynamics", "seed"), [],
                        lambda: checks(model, checked_systems, md.result))
    errors = {name: {key: value for key, value in found.items() if key != "parity"}
              for name, found in test.result["sets"].items()}
    moved = {name: {key: value for key, value in found.items() if key != "trace"} for name, found in md.result.items()
             if name != "files"}
    card = {"test": errors, "dynamics": moved, "checks": checked.result["checks"]}
    final = work.step("bundle", uses_model | card, ["model.sapis"],
                      lambda: steps.bundle(model, work.path("model.sapis"), card))
    usage = USAGE.format(example=short_path(work.path("test.extxyz")), model=short_path(work.path("model.sapis")))
    work.step("report", {"title": recipe.title,
                         "records": [asdict(read_record(work.record_path(name))) for name in _done_by(recipe)]},
              ["report.html"], lambda: {"path": str(report(work.folder, usage))})
    return Outcome(work.path("model.sapis"), work.path("report.html"), final.result["model_hash"],
                   checked.result["all_passed"], usage)


STEPS = ("candidates", "labels", "data", "train", "active", "uncertainty", "test", "md", "checks", "bundle")


def _done_by(recipe: Recipe) -> list[str]:
    """The steps of a recipe."""
    left_out = {"active"} if recipe.active is None else {"uncertainty"}
    if recipe.uncertainty.method == "none":
        left_out.add("uncertainty")
    return [name for name in STEPS if name not in left_out]


def asking_recipe(recipe: Recipe, asking: AskingConfig, model: Path, folder: Path) -> ActiveRecipe:
    """Rounds that go on from ``model``, where ``recipe`` was trained."""
    doubt = recipe.uncertainty if recipe.uncertainty.method != "none" else UncertaintyConfig(method="distance")
    training = recipe.training.model_copy(update={"epochs": asking.epochs, "cpu_seconds": None, "flops": None})
    return ActiveRecipe(
        title=recipe.title, system=recipe.system, output=folder, labeler=recipe.labeler, start=model, uncertainty=doubt,
        temperatures_K=recipe.temperatures_K, candidates=recipe.candidates.model_copy(update={"rattle_fraction": 0.0}),
        training=training, workers=recipe.workers, seed=recipe.seed, **asking.model_dump(exclude={"epochs"}))


def report(folder: Path, usage: str = "") -> Path:
    """Write ``folder/report.html`` from the records in ``folder``; returns its path.

    Raises:
        FileError: no ``recipe.json``, or a record that is damaged.
        ConfigError: ``recipe.json`` is not that of a run.
    """
    work = Workspace(folder)
    path = folder / "recipe.json"
    asked = parse_config(Recipe, read_json(path), where=str(path))
    recipe = asked.model_dump(mode="json")
    records = {name: asdict(read_record(work.record_path(name))) for name in _done_by(asked) if work.record_path(name).exists()}
    if "train" in records and "data" in records:
        for key in ("reference_energies", "reference_source"):
            records["data"]["result"][key] = records["train"]["result"][key]
    shown: list[System] = []
    for name, part in steps.read_parts(folder).items():
        picked = part[:: max(1, len(part) // (N_SHOWN_STRUCTURES // 4))][: N_SHOWN_STRUCTURES // 4]
        shown += [system.with_tags(caption=_caption(name, system)) for system in picked]
    title = recipe.get("title") or recipe["system"].get("smiles") or str(recipe["system"].get("file"))
    usage = usage or USAGE.format(example=short_path(folder / "test.extxyz"), model=short_path(folder / "model.sapis"))
    write_report(folder / "report.html", Report(title=title, recipe=recipe, records=records, structures=shown, usage=usage))
    return folder / "report.html"


def _caption(part: str, system: System) -> str:
    temperature = system.tags.get("temperature_K")
    origin = f"{temperature:g} K" if isinstance(temperature, int | float) else str(system.tags.get("source", ""))
    return f"{system.formula}, {'hot test' if part == 'hot' else part} set, {origin}"
