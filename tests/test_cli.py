"""The verbs of the command line on a tiny trained model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from command import PROGRAM, sapis
from sapis.api import load
from sapis.core.files import short_path
from sapis.data.formats import LabelKeys, read_systems
from sapis.pipeline.recipe import Recipe, example_recipe, read_recipe

VERBS = ("run", "init", "label", "train", "grow", "evaluate", "md", "check-model", "info", "report", "settings", "doctor")
MAX_HELP_CPU_SECONDS = 1.0


@pytest.fixture
def folder(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in that holds ``model.sapis`` and ``data.extxyz``."""
    for source in (trained_folder / "out" / "model.sapis", trained_folder / "data.extxyz"):
        shutil.copy(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Help


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = ("import resource, sys\n"
              "sys.argv = ['sapis', '--help']\n"
              "from sapis.cli import main\n"
              "try:\n    main()\n"
              "except SystemExit as stop:\n    assert not stop.code\n"
              "used = resource.getrusage(resource.RUSAGE_SELF)\n"
              "heavy = {'torch', 'ase', 'rdkit', 'tblite', 'scipy', 'matplotlib'} & set(sys.modules)\n"
              "print('\\nHEAVY', sorted(heavy), 'CPU', used.ru_utime + used.ru_stime)")
    texts = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert all(verb in texts[0] for verb in VERBS)
    assert all("HEAVY []" in text for text in texts)
    # The better of two: the first may read the disk.
    assert min(float(text.split("CPU")[-1]) for text in texts) < MAX_HELP_CPU_SECONDS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    ending = sapis(verb, "--help")
    assert ending.code == 0 and f"sapis {verb}" in ending.text and "--help" in ending.text


def test_what_a_model_costs(folder: Path) -> None:
    parts = json.loads(sapis("info", "model.sapis", "--cost", "--atoms", "10", "--neighbors", "5", "--json").text)
    total = parts["total"]
    assert parts["n_atoms"] == 10 and sum(part["n_parameters"] for part in parts["parts"]) == total["n_parameters"]
    assert total["training"]["products"] > total["forces"]["products"] > total["forward"]["products"] > 0
    table = sapis("info", "nano", "--cost")
    assert table.code == 0 and "layer 2 mixing" in table.text and "11,976" in table.text
    presets = sapis("info", "--cost")
    assert presets.code == 0 and all(name in presets.text for name in ("nano", "tiny", "small", "base", "large", "xl"))
    for wrong in (("info",), ("info", "--cost", "huge")):
        ending = sapis(*wrong)
        assert ending.code == 2 and "what to do" in ending.text


def test_version() -> None:
    from sapis import __version__

    assert sapis("--version").text.strip() == __version__


# Recipes


def test_init_writes_a_recipe_that_can_be_read(folder: Path) -> None:
    assert sapis("init", "ethanol.yaml").code == 0
    recipe = read_recipe(folder / "ethanol.yaml")
    assert (recipe.system.smiles, recipe.output) == ("CCO", folder / "runs" / "ethanol")


@pytest.mark.parametrize(("name", "smiles"), [
    ("my molecule #2.yaml", "C#N"), ('a"b: c.yaml', "[O-]C(=O)c1ccc2[nH]c3c(c2c1)C[C@@H]([NH3+])C3"), ("{x}.yaml", "é🧪: {} 'C'"),
])
def test_init_quotes_whatever_it_is_given(folder: Path, name: str, smiles: str) -> None:
    assert sapis("init", name, "--smiles", smiles).code == 0
    recipe = read_recipe(folder / name)
    assert (recipe.system.smiles, recipe.title, recipe.output.name) == (smiles, smiles, Path(name).stem)


def test_the_example_states_the_defaults(tmp_path: Path) -> None:
    """Also its comments: each line that is commented out holds settings, and their values are the defaults."""
    own = ("title", "smiles", "charge", "spin", "output", "name", "calculator", "arguments")
    lines = [line.replace("# ", "", 1) if line.startswith("# ") and ": {" in line else line
             for line in example_recipe(tmp_path / "recipe.yaml", "CCO").splitlines()]
    assert sum(": {" in line and not line.lstrip().startswith("#") for line in lines) == 4
    stated = _leaves(yaml.safe_load("\n".join(lines)))
    defaults = _leaves(Recipe(system={"smiles": "CCO"}, output="runs/recipe").model_dump(mode="json"))
    named = {key: value for key, value in stated.items() if key.split(".")[-1] not in own}
    assert len(named) >= 15
    assert named == {key: defaults[key] for key in named}


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {path: leaf for key, item in value.items() for path, leaf in _leaves(item, f"{name}.{key}".strip(".")).items()}
    return {name: value}


# Models


def test_info(folder: Path) -> None:
    text = sapis("info", "model.sapis").text
    assert all(word in text for word in ("elements", "of the tests", "eV/Å", "force RMSE", "check            pass"))
    everything = json.loads(sapis("info", "model.sapis", "--json").text)
    assert everything["card"]["training"]["config"]["epochs"] == 6
    assert str(folder) not in json.dumps(everything), "a path of this machine is in the model"


def test_evaluate_writes_figures_and_predictions_beside_the_reference(folder: Path) -> None:
    ending = sapis("evaluate", "model.sapis", "data.extxyz", "--precision", "float64", "--output", "errors.json",
                   "--predictions", "predicted.xyz")
    assert ending.code == 0 and "force_rmse_meV_A" in ending.text
    figures = json.loads((folder / "errors.json").read_text())
    reference = read_systems(folder / "predicted.xyz")
    predicted = read_systems(folder / "predicted.xyz", keys=LabelKeys(energy="sapis_energy", forces="sapis_forces"))
    kept = read_systems(folder / "data.extxyz")
    assert all(a.energy == b.energy and np.allclose(a.forces, b.forces, atol=1e-7) for a, b in zip(reference, kept, strict=True))
    errors = np.concatenate([a.forces - b.forces for a, b in zip(predicted, kept, strict=True)])
    assert figures["force_rmse_meV_A"] == pytest.approx(1000 * np.sqrt(np.mean(errors**2)), rel=1e-5)


def test_check_model_judges_every_law(folder: Path) -> None:
    """A model trained for seconds obeys the laws of symmetry, but may well fall apart in dynamics: code 1 then."""
    ending = sapis("check-model", "model.sapis", "data.extxyz", "--n-structures", "1")
    verdicts = [line.split()[:2] for line in ending.text.splitlines() if line.strip()]
    laws = {name: verdict for verdict, name in verdicts}
    assert all(laws.pop(name) == "pass" for name in ("translation", "rotation", "inversion", "permutation", "forces", "batching"))
    assert "nve" in laws and ending.code == int("FAIL" in laws.values())


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_md(folder: Path, ensemble: str) -> None:
    ending = sapis("md", "model.sapis", "data.extxyz", "--ensemble", ensemble, "--time-ps", "0.02", "--output", "md.json")
    record = json.loads((folder / "md.json").read_text())
    # A model trained for seconds may fall apart; then the record says why.
    assert record["time_ps"] == pytest.approx(0.02) if record["is_stable"] else record["reason"]
    assert ending.code == 0 and all(f"{name}: {record[name]}" in ending.text for name in ("time_ps", "is_stable", "reason"))


def test_training_again_recomputes_nothing(trained_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained_folder / "out").rglob("*") if path.is_file()}
    ending = sapis("train", trained_folder / "data.extxyz", "--output", trained_folder / "out",
                   "--config", trained_folder / "settings.yaml", "--n-validation", "10")
    assert ending.code == 0 and ending.text.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_training_goes_on_from_a_model(folder: Path) -> None:
    start = load(folder / "model.sapis")
    ending = sapis("train", folder / "data.extxyz", "--output", folder / "on", "--n-validation", "10", "--epochs", "2", "--start",
                   folder / "model.sapis")
    assert ending.code == 0, ending.text
    model = load(folder / "on" / "model.sapis")
    assert model.potential.settings() == start.potential.settings()
    assert model.card["started_from"]["card"] == start.card
    assert model.card["level_of_theory"] == start.card["level_of_theory"] == "of the tests"
    first, last = (card["training"]["best_validation_loss"] for card in (start.card, model.card))
    assert last < first, "it did not begin anew"
    grown = sapis("grow", folder / "model.sapis", folder / "large.sapis", "--n-radial", "6")
    assert grown.code == 0, grown.text
    again = sapis("train", folder / "data.extxyz", "--output", folder / "more", "--n-validation", "10", "--epochs", "2",
                  "--start", folder / "large.sapis")
    assert again.code == 0, again.text
    assert load(folder / "more" / "model.sapis").card["training"]["best_validation_loss"] < first


def test_same_training_same_model(trained_folder: Path, tmp_path: Path) -> None:
    ending = sapis("train", trained_folder / "data.extxyz", "--output", tmp_path / "elsewhere", "--n-validation", "10",
                   "--config", trained_folder / "settings.yaml")
    assert ending.code == 0
    assert (tmp_path / "elsewhere" / "model.sapis").read_bytes() == (trained_folder / "out" / "model.sapis").read_bytes()
    other = sapis("train", trained_folder / "data.extxyz", "--output", tmp_path / "other", "--n-validation", "10", "--seed", "1",
                  "--config", trained_folder / "settings.yaml")
    assert other.text.splitlines()[-1].startswith("hash:") and other.text.splitlines()[-1] != ending.text.splitlines()[-1]


def test_check(folder: Path) -> None:
    ending = sapis("data", "lint", "data.extxyz")
    assert ending.code == 0 and "60 frames" in ending.text


def test_report_is_written_from_records_that_may_be_few(folder: Path) -> None:
    recipe = Recipe(system={"smiles": "CCO"}, output="run")
    (folder / "run").mkdir()
    (folder / "run" / "recipe.json").write_text(recipe.model_dump_json())
    ending = sapis("report", "run")
    assert ending.code == 0 and "</html>" in (folder / "run" / "report.html").read_text()


def test_paths_are_told_without_detours(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.yaml").write_text(example_recipe(Path("recipes/mine.yaml"), "CCO").replace("runs/", "../runs/"))
    recipe = read_recipe(Path("recipes/mine.yaml"))
    assert str(recipe.output) == "recipes/../runs/mine" and str(short_path(recipe.output)) == "runs/mine"
    assert short_path(Path("..")) == folder.resolve().parent


def test_settings_of_one_group() -> None:
    ending = sapis("settings", "stop rules")
    assert ending.code == 0 and "| `min_gain` |" in ending.text and "learning_rate" not in ending.text
    ending = sapis("settings", "trainings")
    assert ending.code == 2 and "training" in ending.text and "'trainings'" in ending.text


def test_doctor() -> None:
    ending = sapis("doctor")
    assert ending.code == 0 and "under rotation" in ending.text and "BROKEN" not in ending.text


def test_a_fault_of_ours_is_owned_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("sapis.potential.bundle.read_bundle", broken)
    ending = sapis("info", "model.sapis")
    assert ending.code == 1 and "fault of sapis" in ending.text and "Traceback" not in ending.text
    assert "planted" in (folder / "sapis-crash.log").read_text()


def test_the_installed_program_is_this_one() -> None:
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sapis("--version").text.strip()
