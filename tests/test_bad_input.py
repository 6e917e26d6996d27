"""Bad input ends with code 2 and a message of four parts, no traceback, and not one file changed or lost."""

from __future__ import annotations

import fcntl
import gzip
import json
import pickle
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from safetensors.torch import save_file

from command import PARTS, PROGRAM, Ending, contents, sapis, sapis_process
from conftest import SHARED
from sapis.core.errors import FileError
from sapis.core.seeds import generator
from sapis.potential.bundle import read_bundle, read_tensors, write_tensors

RECIPE = {
    "system": {"file": "water.xyz"}, "output": "new", "temperatures_K": [300], "hot_temperature_K": 600,
    "budget": {"labels": 20, "cpu_seconds": 10}, "candidates": {"equilibration_fs": 1, "decorrelation_fs": 1, "n_replicas": 1},
    "workers": 1,
}
WATER = "3\nProperties=species:S:1:pos:R:3\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
TRAIN = "train bad.extxyz --output new --epochs 1 --n-validation 5"
EVALUATE = "evaluate model.sapis bad.extxyz"
MARKER = Path("code-was-run")  # in the working folder: appears if code from a file is run

Plant = Callable[[], None]


# What is planted


def frames(change: Callable[[list[Atoms]], None]) -> Plant:
    """The good data with ``change`` made to its frames, as bad.extxyz."""
    def plant() -> None:
        found = ase.io.read("data.extxyz", ":")
        change(found)
        ase.io.write("bad.extxyz", found)

    return plant


def in_frame(number: int, change: Callable[[Atoms], Any]) -> Plant:
    return frames(lambda found: change(found[number]))


def renamed(old: str, new: str) -> Plant:
    """The good data with a column or key under another name."""
    return lambda: text("bad.extxyz", Path("data.extxyz").read_text().replace(old, new))()


def poked(key: str, value: float, row: int = 2) -> Plant:
    """The good data with one wrong number in frame 3; as text, since no `System` can hold NaN."""
    def change(atoms: Atoms) -> None:
        column = atoms.positions if key == "positions" else atoms.arrays[key]
        column[row, 1] = value

    return in_frame(3, change)


def text(name: str, content: str | bytes) -> Plant:
    def plant() -> None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return plant


def recipe(**changes: Any) -> Plant:
    """recipe.yaml with top-level keys changed, or removed where ``...``."""
    def plant() -> None:
        values = {key: value for key, value in {**RECIPE, **changes}.items() if value is not ...}
        Path("recipe.yaml").write_text(yaml.safe_dump(values))

    return plant


def cut(name: str, n_bytes: int = 200, by: str = "") -> Plant:
    """A file without its last bytes; if ``by`` is given, also without the record that vouches for what came of it."""
    def plant() -> None:
        Path(name).write_bytes(Path(name).read_bytes()[:-n_bytes])
        if by:
            Path(by).unlink()

    return plant


def flipped() -> None:
    data = bytearray(Path("model.sapis").read_bytes())
    data[len(data) // 2] ^= 1
    Path("model.sapis").write_bytes(data)


def header(**changes: Any) -> Plant:
    """A bundle, whole by its hash, with entries of its header changed."""
    def plant() -> None:
        weights, found = read_tensors(Path("model.sapis"))
        write_tensors(Path("model.sapis"), weights, {**found, **changes})

    return plant


def without_a_weight() -> None:
    weights, found = read_tensors(Path("model.sapis"))
    write_tensors(Path("model.sapis"), dict(list(weights.items())[1:]), found)


class Hostile:
    """Unpickling this leaves a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (MARKER,)


def linked() -> None:
    Path("other").mkdir()
    shutil.copy("data.extxyz", "other/data.extxyz")


def half_settings(**training: Any) -> Plant:
    return text("settings.yaml", yaml.safe_dump({"model": {}, "training": training}))


def retrained() -> None:
    """The training of the folder ``out`` with its record gone and another seed to come."""
    Path("out/records/train.json").unlink()


# The size of GFN2-xTB's energies, which are of valence electrons, tells no unit; their differences do.
ENERGY_RULE = "energy-unit" if (SHARED / "acac").exists() else "force-gradient"
AGAIN = "train data.extxyz --output out --config settings.yaml --n-validation 10"
HARTREE = 27.211386

# name, what is planted, command, error, words that only its message has
CASES: list[tuple[str, Plant | None, str, str, str]] = [
    # Labels
    ("a key that is absent", None, "evaluate model.sapis data.extxyz --energy-key dft_energy", "DataError", "'dft_energy'"),
    ("labels under another name", renamed("REF_forces", "dft_forces"), TRAIN, "DataError", "forces in at least one frame"),
    ("no label at all", None, "evaluate model.sapis water.xyz", "DataError", "without a label"),
    ("positions that are NaN", poked("positions", np.nan), EVALUATE, "DataError", "bad.extxyz, frame 3, key 'positions'"),
    ("forces that are NaN", poked("REF_forces", np.nan), TRAIN, "DataError", "NaN or infinity in row 2"),
    ("an energy that is infinite", in_frame(3, lambda a: a.info.update(REF_energy=np.inf)), "data lint bad.extxyz", "DataError",
     "a finite energy"),
    ("an energy that is a word", renamed("REF_energy=-", "REF_energy=minus"), "data lint bad.extxyz", "DataError", "numbers"),
    ("a spin of zero", in_frame(0, lambda a: a.info.update(spin=0)), EVALUATE, "DataError", "multiplicity"),
    ("energies in hartree", frames(lambda found: [a.info.update(REF_energy=a.info["REF_energy"] / HARTREE) for a in found]),
     TRAIN, "DataError", ENERGY_RULE),
    ("forces in another unit", frames(lambda found: [a.set_array("REF_forces", a.arrays["REF_forces"] * 23.06) for a in found]),
     "data lint bad.extxyz", "DataError", "force-unit"),
    ("a rule that does not exist", None, "data lint data.extxyz --waive overlap", "ConfigError", "overlapping-atoms"),
    ("more validation than data", None, "train data.extxyz --output new --epochs 1 --n-validation 60", "DataError",
     "--n-validation"),
    ("isolated atoms that are none", None, "train data.extxyz --output new --epochs 1 --isolated data.extxyz", "DataError",
     "one neutral atom"),
    ("a test without labels", None, f"{TRAIN.replace('bad', 'data')} --test water.xyz", "DataError", "water frames"),
    ("a test with an unknown element", in_frame(0, lambda a: a.symbols.__setitem__(0, "Fe")),
     "train data.extxyz --output new --epochs 1 --test bad.extxyz", "DataError", "Fe"),
    ("weights that are all zero", lambda: half_settings(energy_weight=0, force_weight=0, stress_weight=0, epochs=1)(),
     "train data.extxyz --output new --config settings.yaml", "ConfigError", "above 0"),
    ("a seed out of range", None, f"{TRAIN.replace('bad', 'data')} --seed 99999999999999999999", "ConfigError", "options: seed"),
    ("two tests of one name", linked, f"{AGAIN} --test data.extxyz --test other/data.extxyz", "ConfigError", "'data'"),
    # Structures
    ("overlapping atoms", in_frame(3, lambda a: a.positions.__setitem__(1, a.positions[0] + 0.1)), TRAIN, "DataError",
     "overlapping-atoms"),
    ("coinciding atoms", in_frame(3, lambda a: a.positions.__setitem__(1, a.positions[0])), EVALUATE, "DataError",
     "atoms apart from each other"),
    ("coinciding atoms in dynamics", in_frame(0, lambda a: a.positions.__setitem__(1, a.positions[0])),
     "md model.sapis bad.extxyz", "DataError", "atoms apart from each other"),
    ("periodic without a cell", in_frame(0, lambda a: a.set_pbc(True)), "md model.sapis bad.extxyz", "DataError", "key 'cell'"),
    ("an atom beyond the moon", poked("positions", 1e300), "data lint bad.extxyz", "DataError", "positions within"),
    ("a cell without width", in_frame(3, lambda a: (a.set_cell([9, 9, 1e-3]), a.set_pbc(True))), EVALUATE, "DataError",
     "key 'cell'"),
    ("an unknown element", in_frame(3, lambda a: a.symbols.__setitem__(0, "Fe")), EVALUATE, "ModelError", "Fe"),
    ("an unknown element in dynamics", in_frame(0, lambda a: a.symbols.__setitem__(0, "Fe")), "md model.sapis bad.extxyz",
     "ModelError", "Fe"),
    ("an unknown element in checks", in_frame(0, lambda a: a.symbols.__setitem__(0, "Fe")), "check-model model.sapis bad.extxyz",
     "ModelError", "Fe"),
    ("an element that does not exist", renamed("\nC ", "\nXq "), EVALUATE, "FileError", "frame 0"),
    # Data files
    ("no such file", None, EVALUATE, "FileError", "no such file"),
    ("an empty file", text("bad.extxyz", ""), EVALUATE, "FileError", "an empty file"),
    ("a folder for a file", lambda: Path("bad.extxyz").mkdir(), EVALUATE, "FileError", "a folder"),
    ("a truncated file", cut("data.extxyz", 900), "evaluate model.sapis data.extxyz", "FileError", "end of the file"),
    ("a truncated gzip file", lambda: text("bad.xyz.gz", gzip.compress(Path("data.extxyz").read_bytes())[:-99])(),
     "data lint bad.xyz.gz", "FileError", "gzip"),
    ("data that are a pickle", text("bad.traj", pickle.dumps(Hostile())), "evaluate model.sapis bad.traj", "FileError", "format"),
    # Models
    ("no such model", None, "info absent.sapis", "FileError", "no such file"),
    ("an empty model", text("model.sapis", ""), "info model.sapis", "FileError", "an empty file"),
    ("a folder for a model", None, "info out", "FileError", "a folder"),
    ("a truncated model", cut("model.sapis"), "evaluate model.sapis data.extxyz", "FileError", "not a whole safetensors file"),
    ("an altered model", flipped, "evaluate model.sapis data.extxyz", "FileError", "does not match its hash"),
    ("a model that is a pickle", text("model.pkl", pickle.dumps(Hostile())), "evaluate model.pkl data.extxyz", "FileError",
     "safetensors"),
    ("a model saved by torch", lambda: torch.save(Hostile(), "model.pt"), "md model.pt data.extxyz", "FileError", "safetensors"),
    ("a safetensors file of others", lambda: save_file({"a": torch.zeros(3)}, "other.safetensors"), "info other.safetensors",
     "FileError", "did not write"),
    ("a checkpoint for a model", None, "info out/training/last.safetensors", "FileError", "a checkpoint?"),
    ("a model of a newer format", header(format_version=99), "info model.sapis", "FileError", "format_version"),
    ("a model of an unknown kind", header(architecture="graphormer"), "evaluate model.sapis data.extxyz", "FileError",
     "graphormer"),
    ("a model with other settings", header(settings={"cutoff": 5}), "evaluate model.sapis data.extxyz", "FileError",
     "version of sapis-md that trained it"),
    ("a model that lacks a weight", without_a_weight, "evaluate model.sapis data.extxyz", "FileError", "Missing key"),
    # Recipes
    ("no such recipe", None, "run absent.yaml", "FileError", "no such file"),
    ("an empty recipe", text("recipe.yaml", ""), "run recipe.yaml", "FileError", "an empty file"),
    ("a recipe of comments", text("recipe.yaml", "# to do\n"), "run recipe.yaml", "ConfigError", "a mapping of settings"),
    ("a folder for a recipe", None, "run out", "FileError", "a folder"),
    ("a recipe that is not text", text("recipe.yaml", b"\xff\xfe\x00"), "run recipe.yaml", "FileError", "not text"),
    ("a recipe that is not YAML", text("recipe.yaml", "system: [water\noutput: new\n"), "run recipe.yaml", "ConfigError",
     "a YAML file"),
    ("a recipe with code", text("recipe.yaml", f"output: !!python/object/apply:pathlib.Path.touch ['{MARKER}']\n"),
     "run recipe.yaml", "ConfigError", "python/object"),
    ("an unknown key", recipe(labler={"name": "gfn2"}), "run recipe.yaml", "ConfigError", "did you mean 'labeler'?"),
    ("an unknown key further in", recipe(training={"lerning_rate": 0.1}), "run recipe.yaml", "ConfigError",
     "did you mean 'learning_rate'?"),
    ("a key given twice", text("recipe.yaml", yaml.safe_dump(RECIPE) + "output: elsewhere\n"), "run recipe.yaml", "ConfigError",
     "'output' is given twice"),
    ("a key that is missing", recipe(output=...), "run recipe.yaml", "ConfigError", "the key 'output'"),
    ("a word for a number", recipe(budget={"labels": "many"}), "run recipe.yaml", "ConfigError", "budget.labels"),
    ("a number for a mapping", recipe(budget=500), "run recipe.yaml", "ConfigError", "500"),
    ("a negative budget", recipe(budget={"cpu_seconds": -1}), "run recipe.yaml", "ConfigError", "budget.cpu_seconds"),
    ("a budget that is not a number", recipe(budget={"cpu_seconds": float("nan")}), "run recipe.yaml", "ConfigError", "finite"),
    ("a budget without an end", recipe(budget={"cpu_seconds": float("inf")}), "run recipe.yaml", "ConfigError", "finite"),
    ("too few labels asked for", recipe(budget={"labels": 3}), "run recipe.yaml", "ConfigError", "budget.labels"),
    ("a hot temperature below the others", recipe(hot_temperature_K=200), "run recipe.yaml", "ConfigError", "extrapolation"),
    ("a temperature below zero", recipe(temperatures_K=[-300]), "run recipe.yaml", "ConfigError", "temperatures_K.0"),
    ("two places for one setting", recipe(training={"cpu_seconds": 5}), "run recipe.yaml", "ConfigError", "budget.cpu_seconds"),
    ("a SMILES and a file", recipe(system={"smiles": "O", "file": "water.xyz"}), "run recipe.yaml", "ConfigError",
     "exactly one of smiles and file"),
    ("a SMILES that is none", recipe(system={"smiles": "C1CC("}), "run recipe.yaml", "ConfigError", "SMILES"),
    ("a structure that is missing", recipe(system={"file": "absent.xyz"}), "run recipe.yaml", "FileError", "absent.xyz"),
    ("an impossible multiplicity", recipe(system={"file": "water.xyz", "spin": 2}), "run recipe.yaml", "ConfigError",
     "multiplicity"),
    ("an impossible charge", recipe(system={"file": "water.xyz", "charge": 11}), "run recipe.yaml", "ConfigError", "charge"),
    ("an unknown labeler", recipe(labeler={"name": "gfn3"}), "run recipe.yaml", "ConfigError", "did you mean 'gfn2'?"),
    ("a labeler's unknown argument", recipe(labeler={"name": "gfn2", "arguments": {"acuracy": 1}}), "run recipe.yaml",
     "ConfigError", "did you mean 'accuracy'?"),
    ("a calculator that does not exist", recipe(labeler={"name": "ase", "calculator": "no.such.Calculator"}), "run recipe.yaml",
     "LabelerError", "no.such"),
    ("a calculator that is none", recipe(labeler={"name": "ase", "calculator": "collections.OrderedDict"}), "run recipe.yaml",
     "LabelerError", "an ASE calculator"),
    ("an SCF that never converges", recipe(labeler={"name": "gfn2", "arguments": {"max_iterations": 1}}), "run recipe.yaml",
     "DataError", "at least 10 labelled structures"),
    # Settings and options
    ("an unknown setting", half_settings(epoch=3), "train data.extxyz --output new --config settings.yaml", "ConfigError",
     "did you mean 'epochs'?"),
    ("a training without end", None, "train data.extxyz --output new", "TrainingError", "epochs, cpu_seconds or flops"),
    ("heads that do not divide", text("settings.yaml", "model: {n_channels: 10, n_heads: 3}"),
     "train data.extxyz --output new --epochs 1 --config settings.yaml", "ConfigError", "multiples of n_heads"),
    ("a model to start from, and other sizes", half_settings(),
     "train data.extxyz --output new --epochs 1 --start model.sapis --config settings.yaml", "ConfigError", "no model settings"),
    ("a model to start from, and isolated atoms", None,
     "train data.extxyz --output new --epochs 1 --start model.sapis --isolated data.extxyz", "ConfigError", "no --isolated"),
    ("a model to start from, of another level of theory", text("settings.yaml", "level_of_theory: another"),
     "train data.extxyz --output new --epochs 1 --start model.sapis --config settings.yaml", "ConfigError",
     "the level of theory of the model: of the tests"),
    ("a model to start from that lacks an element", frames(lambda frames: [atoms.numbers.__setitem__(8, 17) for atoms in frames]),
     "train bad.extxyz --output new --epochs 1 --start model.sapis", "TrainingError", "Cl"),
    ("an unknown ensemble", None, "md model.sapis data.extxyz --ensemble npt", "ConfigError", "nve or nvt"),
    ("an unknown precision", None, "evaluate model.sapis data.extxyz --precision float16", "ModelError", "float32 or float64"),
    # Files and folders that stay as they are
    ("init onto a file", recipe(), "init recipe.yaml", "FileError", "no file or folder"),
    ("predictions over the data", None, "evaluate model.sapis data.extxyz --predictions ./data.extxyz", "ConfigError",
     "--predictions"),
    ("a record over the model", None, "md model.sapis data.extxyz --output model.sapis", "ConfigError", "--output"),
    ("a folder for an output", None, "evaluate model.sapis data.extxyz --output out", "FileError", "Is a directory"),
    ("a file for a folder", None, "train data.extxyz --output water.xyz --epochs 1", "FileError", "water.xyz"),
    ("a file on the way to a folder", None, "evaluate model.sapis data.extxyz --output water.xyz/errors.json", "FileError",
     "can be written"),
    ("an output folder of somebody else", lambda: linked() or shutil.copy("data.extxyz", "other/model.sapis"),
     "train data.extxyz --output other --epochs 1", "FileError", "no run wrote: model.sapis"),
    ("a truncated checkpoint", cut("out/training/last.safetensors", by="out/records/train.json"), AGAIN, "FileError",
     "delete last.safetensors"),
    ("truncated best weights", cut("out/training/best.safetensors", by="out/records/train.json"), AGAIN, "FileError",
     "best.safetensors"),
    ("a checkpoint of another training", retrained, f"{AGAIN} --seed 5", "TrainingError", "another training"),
    ("a folder without a run", None, "report out/training", "FileError", "recipe.json"),
    ("a recipe.json of others", text("out/recipe.json", '{"name": "left-pad"}'), "report out", "ConfigError", "'system'"),
    ("a record that was edited", lambda: (text("out/recipe.json", json.dumps(RECIPE))(),
                                          text("out/records/test.json", '{"result": {}}')()), "report out", "FileError",
     "altered or foreign"),
]

USAGE = [
    ("sapis --bogus", "No such option: --bogus"),
    ("sapis trian data.extxyz", "Did you mean 'train'?"),
    ("sapis evaluate model.sapis", "Missing argument"),
    ("sapis md model.sapis data.extxyz --temperature hot", "No such option"),
    ("sapis md model.sapis data.extxyz --temperature-K hot", "valid number"),
    ("sapis md model.sapis data.extxyz --time-ps -1", "--time-ps"),
    ("sapis train data.extxyz --output new --epochs 0", "--epochs"),
    ("sapis train data.extxyz --epochs 1", "--output"),
    ("sapis", "Usage"),
]


@pytest.fixture
def desk(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: model.sapis, data.extxyz, water.xyz, settings.yaml, and the training ``out`` that made the model."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "out" / "model.sapis", tmp_path)
    (tmp_path / "water.xyz").write_text(WATER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_explained(ending: Ending, error: str, words: str) -> None:
    assert ending.code == 2, ending.text
    assert "Traceback" not in ending.text
    said = ending.text[ending.text.index(f"error: {error}"):]
    parts = [re.search(rf"^{part}(.*)", said, re.MULTILINE) for part in PARTS]
    assert all(part and part[1].strip() for part in parts), said
    assert words in said, said


def assert_untouched(before: dict[str, str], desk: Path) -> None:
    """Every file is as it was, and new ones are only in the output folder that the command named."""
    after = contents(desk)
    assert {name: after.get(name) for name in before} == before
    assert all(name.startswith("new/") for name in after.keys() - before.keys()), after.keys() - before.keys()


@pytest.mark.parametrize(("plant", "command", "error", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input(desk: Path, plant: Plant | None, command: str, error: str, words: str) -> None:
    if plant is not None:
        plant()
    before = contents(desk)
    assert_explained(sapis(*command.split()), error, words)
    assert_untouched(before, desk)


@pytest.mark.parametrize(("command", "words"), USAGE)
def test_bad_usage(desk: Path, command: str, words: str) -> None:
    before = contents(desk)
    ending = sapis(*command.split()[1:])
    assert ending.code == 2 and "Usage" in ending.text and "Traceback" not in ending.text
    assert words in re.sub(r"\s*│?\n│?\s*", " ", ending.text), ending.text
    assert_untouched(before, desk)


@pytest.mark.parametrize("option", ["train data.extxyz --output new --cpu-seconds", "md model.sapis data.extxyz --temperature-K",
                                    "md model.sapis data.extxyz --time-ps"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_options_that_are_not_finite(desk: Path, option: str, value: str) -> None:
    """Whether the parser of options sees it or the code behind it depends on the parser's version."""
    before = contents(desk)
    ending = sapis(*option.split(), value)
    assert ending.code == 2 and "Traceback" not in ending.text
    assert_untouched(before, desk)


def test_the_fine_input_of_these_cases_is_fine(desk: Path) -> None:
    """Else every case above could fail for another reason than its own."""
    frames(lambda found: None)()
    assert sapis(*EVALUATE.split()).code == 0
    assert sapis(*TRAIN.split()).code == 0
    assert sapis(*AGAIN.split()).code == 0


def test_odd_tags_do_no_harm(desk: Path) -> None:
    frames(lambda found: [atoms.info.update(temperature_K=word) for atoms, word in zip(found, ["hot", "T"] * 30, strict=True)])()
    assert sapis(*EVALUATE.split()).code == 0


def test_a_folder_that_another_run_uses(desk: Path) -> None:
    before = contents(desk)
    with (desk / "out" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_explained(sapis(*AGAIN.split()), "FileError", "another run holds it")
    assert_untouched(before, desk)
    assert sapis(*AGAIN.split()).code == 0


@pytest.mark.parametrize("command", [
    "evaluate model.sapis data.extxyz --energy-key dft_energy", "info out/training/last.safetensors", "run absent.yaml",
])
def test_in_a_process_of_its_own(desk: Path, command: str) -> None:
    before = contents(desk)
    ending = sapis_process(*command.split())
    assert ending.code == 2 and "error: " in ending.text and "Traceback" not in ending.text
    assert all(part in ending.text for part in PARTS)
    assert_untouched(before, desk)


@pytest.mark.parametrize("limit", [2_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_a_disk_that_is_full(desk: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk: the log, or only the checkpoint, cannot be written."""
    half_settings(epochs=1)()
    before = contents(desk)
    command = [*PROGRAM, "train", "data.extxyz", "--output", "new", "--config", "settings.yaml", "--n-validation", "10"]
    done = subprocess.run(command, capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert_explained(Ending(done.returncode, done.stderr), "FileError", "a path that can be written")
    assert_untouched(before, desk)
    assert not list(desk.rglob("*.part"))


def test_no_code_in_a_foreign_file_is_run(desk: Path) -> None:
    """The mark that the cases above look for would appear if it were."""
    pickle.loads(pickle.dumps(Hostile()))
    assert MARKER.exists()
    MARKER.unlink()
    torch.save(Hostile(), "model.pt")
    for command in ("info", "evaluate", "md", "check-model"):
        assert sapis(command, "model.pt", *(["data.extxyz"] if command != "info" else [])).code == 2
    assert not MARKER.exists()


def test_any_altered_byte_is_noticed(desk: Path) -> None:
    """Anywhere in the file: a bundle with one byte changed is refused, or says exactly the same."""
    path = desk / "model.sapis"
    whole, kept = path.read_bytes(), read_bundle(path)
    rng = generator(0, "bytes")
    places = {*range(16), *rng.integers(0, len(whole), 150).tolist()}
    for place in places:
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            found = read_bundle(path)
        except FileError:
            continue
        assert (found.architecture, found.settings, found.card) == (kept.architecture, kept.settings, kept.card)
        assert all(torch.equal(found.weights[name], value) for name, value in kept.weights.items())


FLAKY = """
from ase.calculators.calculator import SCFError
from tblite.ase import TBLite

class Flaky(TBLite):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if int(1e6 * abs(atoms.positions.sum())) % 7 == 0:
            raise SCFError("planted: not converged")
        super().calculate(atoms, list(properties), system_changes)
"""


@pytest.mark.slow
def test_a_few_failed_labels_are_recorded_and_not_fatal(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tblite", reason="tblite is not installed")
    (desk / "flaky.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(desk)
    recipe(
        labeler={"name": "ase", "calculator": "flaky.Flaky", "arguments": {"method": "GFN2-xTB", "verbosity": 0}},
        hot_temperature_K=None, budget={"labels": 40, "cpu_seconds": 60}, candidates={"rattle_fraction": 1},
        training={"epochs": 1}, model={"n_channels": 8, "n_channels_carried": 8, "n_heads": 2, "n_layers": 1, "l_max": 1},
        dynamics={"nve_ps": 0.01, "order_ps": 0.01, "nvt_ps": 0.01},
    )()
    ending = sapis("run", "recipe.yaml")
    assert ending.code == 0, ending.text
    result = json.loads((desk / "new" / "records" / "labels.json").read_text())["result"]
    assert 0 < len(result["failures"]) < 15 and result["n_labelled"] + len(result["failures"]) == 40
    assert {failure["kind"] for failure in result["failures"]} == {"not_converged"}


def test_python_refuses_an_unknown_element_too(desk: Path) -> None:
    """The calculator raises the same errors as the command line."""
    from sapis import load
    from sapis.core.errors import DataError, ModelError

    atoms = ase.io.read("data.extxyz", 0)
    atoms.calc = load("model.sapis").calculator()
    assert np.isfinite(atoms.get_potential_energy())
    atoms.symbols[0] = "Fe"
    with pytest.raises(ModelError, match="Fe"):
        atoms.get_forces()
    atoms.symbols[0] = "C"
    atoms.positions[0] = np.nan
    with pytest.raises(DataError, match="finite positions"):
        atoms.get_forces()


