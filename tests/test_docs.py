"""The documentation tells the truth: its examples run, its links and the tests and names it cites exist, its facts hold."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sapis.cli.settings import settings_page
from sapis.data.neighbors import edge_list, neighbors
from sapis.data.system import System
from sapis.testing.analytic import LennardJones

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"
CONVENTIONS = ROOT / "docs" / "conventions.md"
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(?P<language>\w+)(?: (?P<mark>run|file=\S+))?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST = "molecule-from-smiles.md"  # trains the model that other pages take up
SECONDS_PER_BLOCK = 240

in_one_process = pytest.mark.xdist_group("docs")  # pages that share one trained model


# --- settings ---------------------------------------------------------------------------------------------------------------


def test_the_page_of_settings_is_that_of_the_classes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == f"{settings_page()}\n", "write it again: sapis settings > docs/settings.md"


def test_every_setting_is_explained() -> None:
    """Other groups of settings explain themselves."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \| (.*?) \|$", settings_page(), re.MULTILINE)
    assert len(rows) > 150
    assert [key for key, value, meaning in rows if not meaning and not value.startswith("[")] == []


# --- examples ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A piece of code on a page."""

    language: str
    mark: str
    body: str


def blocks(text: str) -> list[Block]:
    return [Block(found["language"], found["mark"] or "", found["body"]) for found in FENCE.finditer(text)]


def run_page(text: str, folder: Path) -> None:
    """Execute the marked blocks of a page in ``folder``, in order; shell in bash, Python here (imports take seconds)."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for block in blocks(text):
        if block.mark.startswith("file="):
            (folder / block.mark.removeprefix("file=")).write_text(block.body, encoding="utf-8")
        elif block.mark == "run" and block.language == "python":
            with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(folder)
                exec(compile(block.body, "example", "exec"), {"__name__": "example"})
        elif block.mark == "run":
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.body], cwd=folder, env=environment,
                                  capture_output=True, text=True, timeout=SECONDS_PER_BLOCK)
            assert done.returncode == 0, f"{block.body}\n--- exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first page was executed."""
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    folder = tmp_path_factory.mktemp("first")
    run_page((HOWTO / FIRST).read_text(encoding="utf-8"), folder)
    return folder


@pytest.mark.slow
@in_one_process
def test_the_first_page_leaves_what_it_says(first_run: Path) -> None:
    parts = [f"{part}.extxyz" for part in ("train", "validation", "test", "hot")]
    for name in ("model.sapis", "report.html", "records/train.json", *parts):
        assert (first_run / "runs/water" / name).stat().st_size > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("page", ["own-data.md", "own-calculator.md", "choose-a-size.md", "grow-a-model.md",
                                  "public-data.md", "convert-data.md", "label.md", "generate.md", "scaling.md", "uncertainty.md"])
def test_pages_that_stand_alone(page: str, tmp_path: Path) -> None:
    run_page((HOWTO / page).read_text(encoding="utf-8"), tmp_path)


@pytest.mark.slow
@in_one_process
@pytest.mark.parametrize("page", ["use-from-ase.md", "check-a-model.md"])
def test_pages_that_take_up_the_first(page: str, first_run: Path, tmp_path: Path) -> None:
    shutil.copytree(first_run / "runs", tmp_path / "runs")
    run_page((HOWTO / page).read_text(encoding="utf-8"), tmp_path)


def test_every_page_is_run_and_every_mark_understood() -> None:
    tested = {FIRST, "own-data.md", "own-calculator.md", "use-from-ase.md", "check-a-model.md", "choose-a-size.md",
              "grow-a-model.md", "public-data.md", "convert-data.md", "label.md", "generate.md", "scaling.md",
              "uncertainty.md"}
    assert {path.name for path in HOWTO.glob("*.md")} == tested | {"README.md"}
    for path in HOWTO.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^```\w", text, re.MULTILINE)) == len(blocks(text)), f"{path.name}: an unknown mark"
        assert path.name == "README.md" or any(block.mark == "run" for block in blocks(text)), path.name


@pytest.mark.parametrize("planted", ["sh run\nfalse", "sh run\nfalse | cat", "python run\nassert 1 == 2, '1 == 2'"])
def test_a_broken_example_is_seen(planted: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"exit 1|1 == 2"):
        run_page(f"```{planted}\n```\n", tmp_path)


def test_python_blocks_parse_and_import_what_exists() -> None:
    for path in PAGES:
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language == "python":
                for name in imported(block.body):
                    resolve(name)


def imported(code: str) -> Iterator[str]:
    """Names that ``code`` imports from this package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sapis":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def resolve(name: str) -> object:
    """The object with a dotted name."""
    import importlib

    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# --- links and references ---------------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    """Targets of relative links and pictures."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The anchors that headings make."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def faults(page: Path) -> list[str]:
    """Links, tests and source files that a page names and that do not exist."""
    text, found = page.read_text(encoding="utf-8"), []
    for target in links(text):
        name, _, anchor = target.partition("#")
        goal = page.parent / name if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal.read_text(encoding="utf-8"))):
            found.append(target)
    for file, name in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        code = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
        if not re.search(rf"^(?:def|class) {name}\b" if name else ".", code, re.MULTILINE):
            found.append(f"{file}::{name}")
    return found + [name for name in re.findall(r"`(sapis/[\w/]+\.py)`", text) if not (ROOT / "src" / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert faults(page) == []


def test_what_does_not_exist_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[x](gone.md) [y](#a-title) [z](#no-title) `tests/test_gone.py` `tests/test_docs.py::test_gone` "
                    "`tests/test_docs.py::test_what_does_not_exist_is_seen` `sapis/gone.py` [w](https://example.org/gone)\n")
    assert faults(page) == ["gone.md", "#no-title", "tests/test_gone.py::", "tests/test_docs.py::test_gone", "sapis/gone.py"]


def test_the_readme_leads_to_the_documentation() -> None:
    targets = set(links((ROOT / "README.md").read_text(encoding="utf-8")))
    assert targets >= {f"docs/{page}" for page in ("conventions.md", "howto/README.md", "lab/README.md")}
    assert targets >= {"CHANGELOG.md", "LICENSE", "CITATION.cff"}


def test_commands_in_the_readme_exist() -> None:
    from sapis.cli.app import app

    verbs = {entry.name for entry in (*app.registered_commands, *app.registered_groups)}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^(?:\.venv/bin/)?sapis ([a-z][a-z-]+)", text, re.MULTILINE))
    assert told and told <= verbs
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets


def test_versions_agree() -> None:
    from sapis.core.version import __version__

    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_is_pinned_satisfies_what_is_required() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("torch==")
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "all" for text in texts]
    for text in [*project["dependencies"], *extras]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text


# --- conventions that no other test holds -----------------------------------------------------------------------------------


def test_every_convention_names_what_holds_it() -> None:
    rows = [line for line in CONVENTIONS.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "|---" not in line]
    rules = [row for row in rows if not row.startswith(("| convention |", "| word |", "| quantity |"))]
    table = [row for row in rules if row.count("|") == 4 and "tests/" in row]
    assert len(table) >= 20
    for row in [row for row in rules if row.count("|") == 4]:
        assert re.search(r"`tests/\w+\.py::\w+`|ruff|import-linter", row), f"held by nothing: {row}"


def test_cell_vectors_are_rows_and_edges_point_to_the_sender() -> None:
    cell = np.array([[4.0, 0.0, 0.0], [1.5, 5.0, 0.0], [0.3, 0.7, 6.0]])
    system = System(numbers=[18, 18], positions=[[0.2, 0.1, 0.3], [3.8, 0.2, 0.1]], cell=cell, pbc=True)
    (receivers, senders, shifts), padded = edge_list(system, 1.5), neighbors(system, 1.5)
    assert len(receivers) == 2 and shifts.any()
    for receiver, sender, shift in zip(receivers, senders, shifts, strict=True):
        images = sum(n * vector for n, vector in zip(shift, cell, strict=True))
        expected = system.positions[sender] + images - system.positions[receiver]
        assert np.linalg.norm(expected) < 1.5
        np.testing.assert_allclose(padded.vectors[receiver, 0], expected, atol=1e-12)


def test_tension_is_positive_and_stress_follows_ase() -> None:
    from ase.build import bulk

    from sapis.potential.calculator import SapisCalculator

    def stress(a: float, shear: float = 0.0) -> np.ndarray:
        atoms = bulk("Ar", cubic=True, a=a)
        atoms.set_cell(atoms.cell.array @ [[1, 0, shear], [0, 1, 0], [0, 0, 1]], scale_atoms=True)
        atoms.calc = SapisCalculator(LennardJones())
        return atoms.get_stress()

    assert stress(5.8)[:3].sum() > 0 > stress(4.9)[:3].sum()
    sheared = np.abs(stress(5.2, shear=0.02))
    assert sheared[4] > 100 * sheared[[3, 5]].max()  # xx yy zz yz xz xy


def test_features_are_laid_out_lm_first() -> None:
    import torch

    from sapis.model.layers import DegreeLinear, Gate
    from sapis.so3.harmonics import degrees

    l_max, atoms, channels = 2, 5, 8
    features = torch.randn((l_max + 1) ** 2, atoms, channels, dtype=torch.float64)
    linear = DegreeLinear(l_max, channels, channels, torch.float64)
    gate = Gate(l_max=l_max, n_channels=channels, norm_epsilon=1.0, dtype=torch.float64)
    assert linear(features).shape == gate(features).shape == features.shape
    for lm, degree in enumerate(degrees(l_max)):
        torch.testing.assert_close(linear(features)[lm], features[lm] @ linear.weight[degree])


@cache
def definitions() -> list[tuple[Path, ast.ClassDef | ast.FunctionDef]]:
    """Public classes, functions and methods; private ones may have to fit a foreign interface."""
    found = []
    for path in sorted((ROOT / "src" / "sapis").rglob("*.py")):
        todo: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
        while todo:
            node = todo.pop()
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.append((path, node))
                todo += node.body if isinstance(node, ast.ClassDef) else []
    return found


def test_names_follow_the_house() -> None:
    for path, node in definitions():
        if isinstance(node, ast.ClassDef):
            assert not re.search(r"(Manager|Helper|Utils?)$|^Base|Base$", node.name), f"{path}: {node.name}"
    for package in (ROOT / "src" / "sapis").iterdir():
        assert not package.is_dir() or re.fullmatch(r"[a-z]+|so3|__pycache__", package.name), package


def test_flags_are_keyword_only() -> None:
    for path, node in definitions():
        if isinstance(node, ast.FunctionDef) and path.parent.name != "cli":
            for each in node.args.args:
                is_flag = isinstance(each.annotation, ast.Name) and each.annotation.id == "bool"
                assert not is_flag, f"{path}: {node.name}({each.arg}): a positional flag"


def test_public_definitions_have_docstrings() -> None:
    methods = {id(each) for _, node in definitions() if isinstance(node, ast.ClassDef) for each in node.body}
    for path, node in definitions():
        if id(node) not in methods and path.parent.name != "cli":
            assert ast.get_docstring(node), f"{path}: {node.name}"


def test_physical_quantities_carry_their_unit_at_borders() -> None:
    bare = re.compile(r"^(temperature|timestep|pressure|friction|time|drift)s?$")
    for path, node in definitions():
        if isinstance(node, ast.FunctionDef) and path.parent.name in ("simulate", "cli", "pipeline", "labelers"):
            arguments = [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]
                         if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "float"]
            assert not [name for name in arguments if bare.match(name)], f"{path}: {node.name}"


def test_every_error_has_four_parts() -> None:
    from sapis.core import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SapisError)]
    assert len(kinds) > 5
    for kind in kinds:
        text = str(kind(expected="one", received="two", where="there", todo="mend it"))
        assert [line.split(":")[0] for line in text.splitlines()] == ["expected", "received", "where", "what to do"]
