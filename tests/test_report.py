"""The report: self-contained, escaped, honest about what is absent, and right in what it shows."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from sapis.data.system import System
from sapis.report import Report, write_report
from sapis.report.figures import parity_points
from sapis.report.markup import ABSENT, Html, asset, chosen, duration, label, markup, number, tag
from sapis.report.page import SECTIONS, render
from sapis.report.story import curve

HOSTILE = '</script></style><img src=x onerror="alert(1)"><script>alert(2)</script>&$\\frac$'


def scores(n_points: int = 30, force_rmse: float = 21.4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    forces, energies = rng.normal(0, 1.4, n_points), rng.normal(0, 25, 12)
    return {
        "n": 40, "energy_mae_meV_atom": 0.718, "energy_rmse_meV_atom": 0.92, "force_mae_meV_A": 15.2,
        "force_rmse_meV_A": force_rmse,
        "by_element": {"C": {"n": 80, "mae": 18.0, "rmse": 25.7}, "H": {"n": 240, "mae": 12.0, "rmse": 17.1}},
        "by_temperature": {"300": {"n": 20, "force_rmse_meV_A": 18.8, "energy_rmse_meV_atom": 0.8},
                           "600": {"n": 20, "force_rmse_meV_A": 26.1, "energy_rmse_meV_atom": 1.1}},
        "parity": {"force": [(1000 * forces).tolist(), (1000 * forces + 20).tolist()],
                   "energy": [energies.tolist(), (energies + 1.0).tolist()]},
    }


def results(n_points: int = 30) -> dict[str, Any]:
    steps = list(range(100, 1100, 100))
    times = np.linspace(0, 10, 50).tolist()
    return {
        "candidates": {"n": 420, "by_source": {"md": 360, "rattle": 60}, "temperatures_K": [300, 600, 1200]},
        "labels": {"n_requested": 420, "n_labelled": 418, "method": {"name": "GFN2-xTB", "accuracy": 0.01},
                   "failures": [{"index": 17, "kind": "not_converged",
                                 "reason": "no convergence in 250 cycles"},
                                {"index": 88, "kind": "too_close",
                                 "reason": "atoms 3 and 7 are 0.31 Å apart"}]},
        "data": {"n_train": 300, "n_validation": 38, "n_test": 40, "n_ood": 40, "ood_temperature_K": 1200,
                 "findings": [{"rule": "duplicate", "severity": "warning", "where": "train 4",
                               "message": "twin"}],
                 "reference_energies": {"H": -10.707211, "C": -48.847445},
                 "reference_source": "isolated atoms"},
        "train": {"n_parameters": 148352, "n_steps": 1000, "n_epochs": 20, "flops": 4.21e13,
                  "config": {"learning_rate": 0.002}, "model_hash": "9f8e7d6c" * 8,
                  "history": [{"step": step, "epoch": step // 50, "cpu_seconds": 0.3 * step,
                               "learning_rate": 1e-3, "train_loss": 10 / step,
                               "validation_force_rmse_meV_A": 20 + 4000 / step,
                               "validation_energy_rmse_meV_atom": 1 + 90 / step} for step in steps]},
        "test": {"sets": {"test": scores(n_points), "ood": scores(n_points, force_rmse=42.8)}},
        "md": {"nve": {"temperature_K": 300, "timestep_fs": 0.5, "time_ps": 10.0, "n_atoms": 9,
                       "precision": "float64", "drift_meV_atom_ps": -3.2e-4, "drift_standard_error": 2.1e-4,
                       "fluctuation_meV_atom": 0.061,
                       "trace": {"time_ps": times, "energy_meV_atom": np.sin(times).tolist()}},
               "order": {"timesteps_fs": [0.25, 0.5, 1.0], "fluctuations_meV_atom": [0.015, 0.06, 0.24],
                         "slope": 2.0},
               "nvt": {"target_K": 300, "mean_K": 303.7, "time_ps": 10.0, "is_stable": True,
                       "max_bond_change_A": 0.19,
                       "trace": {"time_ps": times, "temperature_K": (300 + 50 * np.sin(times)).tolist()}}},
        "checks": {"all_passed": True, "checks": [
            {"name": "rotation", "value": 3.1e-14, "limit": 1e-10, "unit": "eV/Å", "passed": True,
             "what": "forces turn with the structure"},
            {"name": "gradient", "value": 4.4e-8, "limit": 1e-6, "unit": "relative", "passed": True,
             "what": "forces are minus the gradient of the energy"}]},
    }


def story(found: dict[str, Any] | None = None, **changes: Any) -> Report:
    provenance = {"sapis": "0.1.0", "commit": "3f2a9bd0c1e77888+", "python": "3.11.13",
                  "packages": {"numpy": "2.4.6"}, "machine": {"cores": 2}}
    records = {step: {"result": result, "cost": {"cpu_seconds": 100.0, "wall_seconds": 60.0},
                      "provenance": provenance, "input_hash": "ab12" * 16}
               for step, result in (results() if found is None else found).items()}
    structures = [System.from_atoms(molecule("CH3CH2OH"), tags={"caption": "ethanol"}),
                  System.from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True))]
    return Report(**{"title": "Ethanol", "recipe": {"smiles": "CCO", "seed": 0}, "records": records,
                     "structures": structures, **changes})


class Page(HTMLParser):
    """What a browser would make of the page: elements with attributes, and the text inside them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.content.append((self._open[-1] if self._open else "", data))

    def inside(self, tag: str) -> list[str]:
        return [text for name, text in self.content if name == tag]

    @property
    def visible(self) -> str:
        return " ".join(text for name, text in self.content if name not in ("script", "style"))


def network_loads(page: Page) -> list[str]:
    """Everything in a page that would make a browser fetch something."""
    carriers = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
    loads = [f"{name} {key}={value}" for name, attributes in page.elements
             for key, value in attributes.items()
             if key in carriers and not (value or "").startswith(("#", "data:"))]
    loads += [name for name, _ in page.elements if name in ("link", "iframe", "object", "embed", "base")]
    inline = [attributes.get("style") or "" for _, attributes in page.elements]
    styles = " ".join([*page.inside("style"), *inline])
    return loads + re.findall(r"@import|url\((?!['\"]?(?:#|data:))[^)]*\)", styles)


@pytest.fixture(scope="module")
def text() -> str:
    return str(render(story()))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_no_network(page: Page) -> None:
    assert network_loads(page) == []


@pytest.mark.parametrize("planted", [
    '<script src="https://a.b/3Dmol.js"></script>', '<img src="http://a.b/c.png">', '<link rel="icon">',
    '<style>@import "x.css"</style>', '<p style="background: url(https://a.b/c.png)">',
    '<image xlink:href="//a.b">',
])
def test_network_check_sees_planted_loads(planted: str) -> None:
    assert network_loads(Page(planted))


def test_policy_forbids_loads_and_foreign_scripts(page: Page) -> None:
    policy = next(attributes["content"] for name, attributes in page.elements
                  if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*)", policy)
    running = [code for code in page.inside("script") if not code.startswith("[")]
    digests = [hashlib.sha256(code.encode()).digest() for code in running]
    hashes = {f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests}
    assert len(running) == 2
    assert allowed and set(allowed[1].split()) == hashes


def test_shipped_scripts_can_stand_inline() -> None:
    for name in ("3Dmol-min.js", "viewer.js"):
        code = asset(name).lower()
        assert "</script" not in code and "<!--" not in code and "\r" not in code
    assert "Redistribution" in asset("3Dmol-LICENSE")


def test_ids_are_unique_and_references_resolve(text: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {value for _, attributes in page.elements for key, value in attributes.items()
                  if key in ("href", "xlink:href") and value and value.startswith("#")}
    drawn = text[text.index("<body>"):text.rindex("</main>")]
    references |= set(re.findall(r"url\((#[^)]*)\)", drawn))
    assert len(references) > len(SECTIONS)
    assert {reference[1:] for reference in references} <= set(ids)


def test_same_story_same_bytes(tmp_path: Path) -> None:
    small = story({"md": {"order": results()["md"]["order"]}})
    write_report(tmp_path / "a.html", small)
    write_report(tmp_path / "b.html", small)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def replaced(value: Any, new: Any, *, is_wanted: type) -> Any:
    """``value`` with each leaf of a type replaced."""
    if isinstance(value, dict):
        return {key: replaced(item, new, is_wanted=is_wanted) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, new, is_wanted=is_wanted) for item in value]
    return new if isinstance(value, is_wanted) else value


def test_hostile_text_stays_text() -> None:
    told = story()
    records = replaced(told.records, HOSTILE, is_wanted=str)
    records["test"]["result"]["sets"] = {HOSTILE: scores()}
    records["data"]["result"]["reference_energies"] = {HOSTILE: -1.0}
    records["candidates"]["result"]["by_source"] = {HOSTILE: 3}
    records["train"]["result"]["config"] = {HOSTILE: HOSTILE}
    structures = [System(numbers=[1], positions=np.zeros((1, 3)), tags={"caption": HOSTILE})]
    found = Page(str(render(Report(HOSTILE, {HOSTILE: HOSTILE}, records, structures, HOSTILE, HOSTILE))))
    names = [name for name, _ in found.elements]
    assert names.count("img") == 0
    assert names.count("script") == 3  # the data, 3Dmol.js and our own
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    assert found.visible.count("alert(1)") > 20


def test_escaping_survives_joining_strings() -> None:
    assert markup(tag("b", "x") + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"
    assert markup(Html("<i>")) == "<i>"
    assert tag("p", "a<b", title='"') == '<p title="&quot;">a&lt;b</p>'


def test_nothing_at_all(tmp_path: Path) -> None:
    write_report(tmp_path / "empty.html", Report("Nothing yet"))
    found = Page((tmp_path / "empty.html").read_text())
    assert "Not checked" in found.visible
    for words in ("No record of a test", "No record of training", "No record of molecular dynamics",
                  "No record of physics checks", "No record of labelling", "No structures"):
        assert words in found.visible
    assert [name for name, _ in found.elements].count("script") == 0


@pytest.mark.parametrize("step", list(results()))
def test_one_record_absent(step: str) -> None:
    found = {name: result for name, result in results().items() if name != step}
    for heavy in {"test", "train", "md"} & set(found):
        found[heavy] = {}
    assert "<footer>" in render(story(found))


@pytest.mark.parametrize("junk", [None, "text", -1.0, True, [], {}, [None, "x"], float("nan")], ids=repr)
def test_leaves_of_any_kind(junk: Any) -> None:
    found = copy.deepcopy(results())
    for kind in (int, float, str):
        for step in found:
            found[step] = replaced(found[step], junk, is_wanted=kind)
    assert "<footer>" in render(story(found))


@pytest.mark.parametrize("junk", [None, "text", 3, [1, 2]], ids=repr)
def test_branches_of_any_kind(junk: Any) -> None:
    for depth in (0, 1, 2):
        found = copy.deepcopy(results())
        for step in found:
            found[step] = cut(found[step], depth, junk)
        assert "<footer>" in render(story(found))


def cut(value: Any, depth: int, junk: Any) -> Any:
    """``value`` with everything ``depth`` levels down replaced."""
    if depth == 0 or not isinstance(value, dict | list):
        return junk
    if isinstance(value, list):
        return [cut(item, depth - 1, junk) for item in value]
    return {key: cut(item, depth - 1, junk) for key, item in value.items()}


def headline(found: dict[str, Any]) -> str:
    return Page(str(render(story({"checks": found})))).visible


def test_verdict() -> None:
    found = results()["checks"]
    assert "All 2 physics checks passed" in headline(found)
    failed = copy.deepcopy(found)
    failed["checks"][1]["passed"] = False  # all_passed still claims the opposite
    assert "1 of 2 physics checks failed" in headline(failed)
    assert "✗ fail" in headline(failed)
    unknown = copy.deepcopy(found)
    unknown["checks"][0]["passed"] = None
    assert "1 of 2 physics checks failed" in headline(unknown)
    assert "checks passed" not in headline({**found, "all_passed": False})
    assert "Not checked" in headline({"all_passed": True, "checks": []})


def test_figures_of_the_records_are_on_the_page(page: Page) -> None:
    words = re.sub(r"\s+", " ", page.visible)
    for shown in ("21.4", "0.920", "148 352", "of 420 requested", "no convergence in 250 cycles", "train 4",
                  "−10.70721", "GFN2-xTB", "11.7 min", "2.0 times that of the test set", "smiles: CCO",
                  "9f8e7d6c" * 8, "3f2a9bd0c1e7+", "Max bond change (Å)", "forces turn with the structure",
                  "2 structures could not be labelled", "Data lint: 1 warning."):
        assert shown in words, shown


def test_flops_are_counted_once() -> None:
    told = story({"train": {"flops": 2e12}, "md": {}})
    told.records["train"]["cost"]["flops"] = 2e12
    told.records["md"]["cost"]["flops"] = 1e12
    assert "<b>3.00\u2009×\u200910<sup>12</sup></b>" in render(told)


def test_large_clouds_become_pictures_and_the_page_stays_small() -> None:
    def drawn(n_points: int) -> Html:
        return render(story({"test": {"sets": {"test": {"parity": scores(n_points)["parity"]}}}}))

    assert "<image" not in drawn(300)
    large = drawn(30_000)
    assert "<image" in large
    assert len(large.encode()) < 2.5e6


def test_structures_reach_the_viewer() -> None:
    told = story({})
    scripts = Page(str(render(told))).inside("script")
    frames = json.loads(next(code for code in scripts if code.startswith("[")))
    assert len(frames) == len(told.structures)
    for frame, system in zip(frames, told.structures, strict=True):
        lines = frame["xyz"].splitlines()
        assert int(lines[0]) == len(system) == len(lines) - 2
        positions = np.array([line.split()[1:] for line in lines[2:]], dtype=float)
        np.testing.assert_allclose(positions, system.positions, atol=1e-4)
    assert frames[0]["cell"] is None
    np.testing.assert_allclose(frames[1]["cell"], told.structures[1].cell, atol=1e-4)


def test_structures_left_out_are_counted() -> None:
    many = [System(numbers=[1], positions=np.zeros((1, 3)))] * 70
    assert "10 more structures are left out" in render(story({}, structures=many))
    huge = [System(numbers=[1] * 15_000, positions=np.zeros((15_000, 3)))] * 3
    assert "2 more structures are left out" in render(story({}, structures=huge))


def test_an_interrupted_write_keeps_the_old_page(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("interrupted")

    path = tmp_path / "report.html"
    write_report(path, Report("First"))
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_report(path, Report(Broken()))  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("value", "shown"), [
    (None, ABSENT), (float("nan"), ABSENT), ("7", ABSENT), (True, ABSENT), (0, "0"), (0.0, "0"),
    (3000, "3000"), (148352, "148\u202f352"), (21.44, "21.4"), (-0.92, "−0.920"), (99.96, "100"),
    (1855.0, "1855"), (4.21e13, "4.21\u2009×\u200910<sup>13</sup>"),
    (-3.2e-4, "−3.20\u2009×\u200910<sup>−4</sup>"),
])
def test_numbers(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_chosen_numbers_durations_and_labels() -> None:
    assert (chosen(0.01), chosen(1e-10), chosen(300, unit="K")) == ("0.01", "1\u2009×\u200910<sup>−10</sup>",
                                                                    "300\u202fK")
    assert chosen(100.0) == "100"
    assert (duration(90.0), duration(125), duration(7200), duration(None)) == (
        "90.0\u202fs", "2.08\u202fmin", "2.00\u202fh", ABSENT)
    assert (label("max_bond_change_A"), label("n_atoms")) == ("Max bond change (Å)", "N atoms")


def test_curves_keep_pairs_together() -> None:
    x, y = curve([0, 1, None, 3, 4], [5.0, float("nan"), 6.0, 7.0])
    assert x.tolist() == [0, 3] and y.tolist() == [5, 7]


@pytest.mark.slow
def test_a_browser_draws_the_structures(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    write_report(tmp_path / "report.html", story({}))
    options = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
               "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-component-update",
               "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
               "--virtual-time-budget=4000", "--dump-dom"]
    done = subprocess.run([browser, *options, (tmp_path / "report.html").as_uri()], capture_output=True,
                          text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr  # neither errors nor breaches of the policy
    assert "<canvas" in done.stdout and "3-D view needs" not in done.stdout


def test_parity_axes_are_in_their_units() -> None:
    """Records hold meV/Å; the axes are in eV/Å and the differences in meV/Å."""
    x, y, difference = parity_points([[2000.0], [2030.0]], 1000.0)
    assert (x[0], y[0], difference[0]) == (2.0, 2.03, 30.0)


def test_uncertainty_has_a_section_where_there_is_one(text: str) -> None:
    assert 'id="uncertainty"' not in text
    found = results()
    for name, scores_of in found["test"]["sets"].items():
        scores_of["uncertainty"] = {"forces": {"rmse": 21.4, "std": 20.0, "coverage_50": 0.51, "coverage_90": 0.893,
                                               "coverage_95": 0.94, "spearman": 0.4567, "spearman_ceiling": 0.52,
                                               "auroc_worst_decile": 0.77}}
        scores_of["parity"]["doubt"] = {"std": [10.0, 20.0, 40.0], "rmse": [12.0, 19.0, 70.0 if name == "ood" else 41.0]}
    page = Page(str(render(story({**found, "uncertainty": {"method": "distance"}}))))
    assert ("section", {"id": "uncertainty"}) in page.elements
    assert "0.457" in page.visible and "distance" in page.visible and "0.893" in page.visible
    labels = [attributes.get("aria-label") for name, attributes in page.elements if name == "svg"]
    assert "Errors against stated deviations" in labels
