"""Labels: what they are, that they do not depend on history, and that no crash or interruption loses any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, SCFError

from command import hear_interrupts
from sapis.core.config import parse_config
from sapis.core.errors import ConfigError, DataError, LabelerError
from sapis.data.store import Store
from sapis.data.system import System
from sapis.executors.executor import LocalExecutor
from sapis.executors.outcome import Failure, Limits
from sapis.executors.pool import run_tasks
from sapis.executors.worker import report_progress
from sapis.labelers.build import build_labeler
from sapis.labelers.labeler import Label, LabelerConfig, Outcome
from sapis.labelers.labelling import isolated_atom_energies, label_into, labels_in

pytest.importorskip("tblite", reason="tblite is not installed")

ONCE = Limits(retries=0)
STEP_A = 1e-3  # of finite differences: SCF noise of 1e-7 eV gives 1e-4 eV/Å


class Faulty(Calculator):
    """Harmonic wells, and on demand (the charge says which) a fault. Leaves a file per call."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, marks: str = "", delay_s: float = 0.0) -> None:
        super().__init__()
        self.marks, self.delay_s, self.n_calls = marks, delay_s, 0

    def calculate(self, atoms=None, properties=(), system_changes=()):  # type: ignore[no-untyped-def]
        super().calculate(atoms, properties, system_changes)
        if self.marks:
            (Path(self.marks) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.delay_s)
        FAULTS.get(atoms.info.get("charge", 0), lambda: None)()
        self.n_calls += 1
        offset = np.nan if atoms.info.get("charge", 0) == 6 else 1e-9 * self.n_calls
        self.results = {"energy": float((atoms.positions**2).sum()) + offset, "forces": -2 * atoms.positions}


def _sleep_with_child() -> None:
    subprocess.run(["sleep", "60"], check=True)


def _not_converged() -> None:
    raise SCFError("no convergence")


FAULTS = {
    1: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    2: lambda: os._exit(3),
    3: _sleep_with_child,
    4: lambda: 1 / 0,
    5: _not_converged,
    7: lambda: sys.exit("a library that leaves"),
}


def faulty(**arguments: object) -> LabelerConfig:
    return LabelerConfig(name="ase", calculator="test_labelers.Faulty", arguments=arguments, timeout_s=1.5)


def water(seed: int = 0) -> System:
    positions = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    return System([8, 1, 1], positions + np.random.default_rng(seed).normal(scale=0.05, size=(3, 3)))


def is_same(first: Outcome, second: Outcome) -> bool:
    assert isinstance(first, Label) and isinstance(second, Label)
    return first.energy == second.energy and first.forces.tobytes() == second.forces.tobytes()


def carries(system: System | Failure, label: Outcome) -> bool:
    assert isinstance(system, System) and isinstance(label, Label)
    return system.energy == label.energy and system.forces.tobytes() == label.forces.tobytes()


def label_of(outcome: Outcome) -> Label:
    assert isinstance(outcome, Label), outcome
    return outcome


def test_forces_are_the_gradient_and_the_stress_the_strain_derivative() -> None:
    labeler = build_labeler(LabelerConfig(name="gfn1"))
    rng = np.random.default_rng(1)
    cell = np.array([[4.2, 0, 0], [0.3, 4.0, 0], [0, 0.2, 4.4]])
    positions = np.array([[0, 0, 0], [2.0, 0.1, 0.2]]) + rng.normal(scale=0.1, size=(2, 3))
    system = System([3, 1], positions, cell, [True, True, True])
    label = label_of(labeler.label(system))

    def energy(moved: System) -> float:
        return label_of(labeler.label(moved)).energy

    shift = np.zeros((2, 3))
    shift[1, 0] = STEP_A
    ahead, behind = (replace(system, positions=system.positions + sign * shift) for sign in (1, -1))
    assert label.forces[1, 0] == pytest.approx(-(energy(ahead) - energy(behind)) / (2 * STEP_A), abs=2e-4)

    for i, j in ((0, 0), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * STEP_A
        strain[j, i] += 0.5 * STEP_A
        energies = [
            energy(replace(system, positions=system.positions @ map_, cell=system.cell @ map_))
            for map_ in (np.eye(3) + strain, np.eye(3) - strain)
        ]
        slope = (energies[0] - energies[1]) / (2 * STEP_A) / system.volume
        assert label.stress is not None and label.stress[i, j] == pytest.approx(slope, abs=1e-5)
    assert label_of(labeler.label(water())).stress is None


def test_a_label_does_not_depend_on_what_was_labelled_before() -> None:
    labeler = build_labeler(LabelerConfig())
    ordered = [labeler.label(water(seed)) for seed in range(4)]
    again = [labeler.label(water(seed)) for seed in (3, 1, 2, 0)]
    assert all(is_same(ordered[seed], again[place]) for place, seed in enumerate((3, 1, 2, 0)))

    for is_stateless in (False, True):  # `Faulty` has a history, so that keeping one of it must show
        labeler = build_labeler(faulty().model_copy(update={"is_stateless": is_stateless}))
        first, _, third = (labeler.label(water(seed)) for seed in (0, 1, 0))
        assert is_same(first, third) is not is_stateless


def test_charge_and_spin_reach_the_method() -> None:
    labeler = build_labeler(LabelerConfig())
    neutral = System([8, 1], [[0, 0, 0], [0, 0, 0.97]], spin=2)
    anion = replace(neutral, charge=-1, spin=1)
    assert label_of(labeler.label(anion)).energy < label_of(labeler.label(neutral)).energy - 1
    oxygen = System([8, 8], [[0, 0, 0], [0, 0, 1.21]])
    assert label_of(labeler.label(replace(oxygen, spin=3))).energy != label_of(labeler.label(oxygen)).energy
    impossible = labeler.label(replace(neutral, spin=3))
    assert isinstance(impossible, Failure) and "unpaired" in impossible.reason


def test_what_cannot_be_labelled_is_a_failure_with_a_reason() -> None:
    stuck = build_labeler(LabelerConfig(arguments={"max_iterations": 2})).label(water())
    assert isinstance(stuck, Failure) and stuck.kind == "not_converged"
    slab = replace(water(), cell=9 * np.eye(3), pbc=np.array([True, True, False]))
    refused = build_labeler(LabelerConfig()).label(slab)
    assert isinstance(refused, Failure) and refused.kind == "unsupported" and "pbc" in refused.reason
    emt = build_labeler(LabelerConfig(name="ase", calculator="ase.calculators.emt.EMT"))
    iron = emt.label(System([26], [[0, 0, 0]]))
    assert isinstance(iron, Failure) and iron.kind == "unsupported" and "Fe" in iron.reason
    nan = build_labeler(faulty()).label(replace(water(), charge=6))
    assert isinstance(nan, Failure) and nan.kind == "not_finite"


@pytest.mark.parametrize(
    ("settings", "kind", "hint"),
    [
        ({"name": "gfn3"}, ConfigError, "gfn2"),
        ({"name": "ase"}, ConfigError, "ase.calculators.emt.EMT"),
        ({"name": "gfn2", "calculator": "a.B"}, ConfigError, "none with any other name"),
        ({"name": "gfn2", "arguments": {"acuracy": 1.0}}, ConfigError, "'accuracy'"),
        ({"name": "gfn2", "arguments": {"charge": 1}}, ConfigError, "belong to the structure"),
        ({"name": "ase", "calculator": "nowhere.at_all.Calc"}, LabelerError, "nowhere"),
        ({"name": "ase", "calculator": "ase.calculators.emt.EMTT"}, LabelerError, "ase.calculators.emt.EMT?"),
        ({"name": "ase", "calculator": "EMT"}, ConfigError, "package.module.Class"),
        ({"name": "ase", "calculator": "pathlib.Path"}, LabelerError, "ASE calculator"),
        (
            {"name": "ase", "calculator": "test_labelers.Faulty", "arguments": {"a": 1}},
            LabelerError, "`arguments`",
        ),
    ],
)
def test_a_wrong_labeler_is_explained(settings: dict, kind: type[Exception], hint: str) -> None:
    with pytest.raises(kind) as caught:
        build_labeler(parse_config(LabelerConfig, settings, where="recipe"))
    assert hint in str(caught.value)


def test_isolated_atoms() -> None:
    energies = isolated_atom_energies(LabelerConfig(), [8, 1, 6, 7, 1, 103], LocalExecutor(1))
    assert list(energies) == [1, 6, 7, 8]
    molecule = label_of(build_labeler(LabelerConfig()).label(water())).energy
    assert -25 < molecule - energies[8] - 2 * energies[1] < -8


def test_faults_cost_one_label_each_and_known_ones_nothing(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    config = faulty(marks=str(marks))
    charges = [0, 1, 0, 2, 3, 4, 5, 6, 7, 0]
    systems = [replace(water(place), charge=charge) for place, charge in enumerate(charges)]
    systems.append(systems[0].with_tags(copy=True))
    with Store.create(tmp_path / "store") as store:
        label_into(store, systems, config, LocalExecutor(2), limits=ONCE)
        outcomes = labels_in(store, systems, config)

        kinds = [outcome.kind if isinstance(outcome, Failure) else "" for outcome in outcomes]
        assert kinds == [
            "", "crashed", "", "crashed", "timeout", "error", "not_converged", "not_finite", "error", "", ""
        ]
        failures = {place: each for place, each in enumerate(outcomes) if isinstance(each, Failure)}
        assert "Segmentation" in failures[1].reason and "exit code 3" in failures[3].reason
        assert "ZeroDivisionError" in failures[5].reason and all(failure.cpu_seconds > 0 for failure in failures.values())
        local = build_labeler(faulty())
        for place in (0, 2, 9, 10):
            assert carries(outcomes[place], local.label(systems[place])) and outcomes[place].tags == systems[place].tags
        assert len(list(marks.iterdir())) == 10, "a structure that comes twice is computed once"

        label_into(store, systems, config, LocalExecutor(2), limits=ONCE)
        again = labels_in(store, systems, config)
        assert len(list(marks.iterdir())) == 10 and again[1] == outcomes[1] and carries(again[0], local.label(systems[0]))
        label_into(store, systems[:2], config, LocalExecutor(1), limits=ONCE, retry_failures=True)
        assert len(list(marks.iterdir())) == 11
        with pytest.raises(DataError, match="a new one"):
            labels_in(store, [water(99)], config)


def test_parallel_labels_are_those_of_one_process(tmp_path: Path) -> None:
    systems = [water(seed) for seed in range(12)]
    labeler = build_labeler(LabelerConfig())
    with Store.create(tmp_path / "store") as store:
        label_into(store, systems, LabelerConfig(), LocalExecutor(2))
        assert all(map(carries, labels_in(store, systems, LabelerConfig()), map(labeler.label, systems)))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for processes")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_labelling_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path, blow: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_labelers import *\n"
        "from sapis.labelers import labelling\n"
        f"labelling.WRITE_S = {0.0 if blow == signal.SIGKILL else 60.0}  # Ctrl-C loses nothing of what waits\n"
        f"config = faulty(marks={str(marks)!r})\n"
        "systems = [*map(water, range(4)), *(replace(water(seed), charge=3) for seed in (8, 9))]\n"
        f"with Store.create({str(tmp_path / 'store')!r}) as store:\n"
        "    label_into(store, systems, config, LocalExecutor(2))\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=hear_interrupts)
    wait_until(lambda: len(list(marks.iterdir())) == 6)
    os.killpg(parent.pid, blow)
    assert parent.wait(timeout=10) != 0
    workers = {int(mark.name.split("-")[0]) for mark in marks.iterdir()}
    wait_until(lambda: not any(is_running(worker) for worker in workers))

    with Store(tmp_path / "store") as store:
        assert len(store) == 4


def wait_until(is_so, limit_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(group: int) -> bool:
    """Whether any process of the worker's group (itself, or what it started) is alive and not a zombie."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process may end between the listing and the reading
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def test_a_task_that_reports_progress_is_not_overdue() -> None:
    heard: list[int] = []
    outcomes = run_tasks(_prepare_slow, [6, 0], n_workers=2, timeout_s=1.0, on_progress=heard.append)
    assert outcomes[0] == 6 and sum(heard) == 6
    assert isinstance(outcomes[1], Failure) and outcomes[1].kind == "timeout"


def _prepare_slow():  # type: ignore[no-untyped-def]
    def slow(n_reports: int) -> int:
        for _ in range(n_reports):
            time.sleep(0.3)
            report_progress(1)
        if n_reports == 0:
            time.sleep(60)
        return n_reports

    return slow


def test_workers_that_cannot_start_are_an_error_and_not_failures() -> None:
    for prepare in (_prepare_raises, _prepare_dies):
        with pytest.raises(LabelerError):
            run_tasks(prepare, [1, 2], n_workers=2)


def _prepare_raises() -> None:
    raise ImportError("libthing.so.1: cannot open shared object file")


def _prepare_dies() -> None:
    os._exit(1)
