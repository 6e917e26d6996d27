"""Small structures, small models and real frames that several test files share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums of several threads differ in the last bit from call to call

import numpy as np
import pytest

from sapis.core.seeds import generator
from sapis.data.system import System
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential

SHARED = Path(os.environ.get("SAPIS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
ELEMENTS = (1, 6, 8)


def apart(rng: np.random.Generator, n_atoms: int, box: np.ndarray, closest: float, pbc: bool = False) -> np.ndarray:
    """Random positions in ``box`` (rows), no two (images included, if periodic) closer than ``closest`` Å."""
    chosen: list[np.ndarray] = []
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3) @ box if pbc else np.zeros((1, 3))
    while len(chosen) < n_atoms:
        trial = rng.uniform(size=3) @ box
        if all(np.linalg.norm(trial + shifts - other, axis=1).min() > closest for other in chosen):
            chosen.append(trial)
    return np.array(chosen)


def cluster(n_atoms: int = 6, seed: int = 0) -> System:
    """A random molecule of H, C and O."""
    rng = generator(seed, "cluster", n_atoms)
    box = np.eye(3) * 1.4 * n_atoms ** (1 / 3)
    return System(numbers=rng.choice(ELEMENTS, n_atoms), positions=apart(rng, n_atoms, box, 0.9))


def crystal(n_atoms: int = 4, seed: int = 0) -> System:
    """Random atoms in a skewed cell that is shorter than the cutoff of `small_config`: atoms see their own images."""
    rng = generator(seed, "crystal", n_atoms)
    cell = 3.0 * np.eye(3) + rng.normal(0, 0.3, (3, 3))
    return System(numbers=rng.choice(ELEMENTS, n_atoms), positions=apart(rng, n_atoms, cell, 0.9, pbc=True),
                  cell=cell, pbc=np.ones(3, dtype=bool))


def small_config(**changes: Any) -> ModelConfig:
    settings = {"cutoff": 3.5, "l_max": 2, "l_max_carried": 1, "n_channels": 16, "n_channels_carried": 16, "n_heads": 2}
    return ModelConfig(**{**settings, "n_radial": 4, "n_hidden_readout": 8, **changes})


def small_potential(precision: str = "float64", seed: int = 0, **changes: Any) -> TransformerPotential:
    return TransformerPotential(
        small_config(**changes), elements=ELEMENTS, reference_energies=[-13.5, -1030.0, -2040.0], scale=1.3,
        average_neighbors=8.0, precision=precision, seed=seed,
    )


def read_acac(count: int, file: str = "train_300K") -> list[System]:
    """The first frames of acetylacetone, evenly spread, or a skip where the data are absent."""
    from sapis.data.formats import read_systems

    path = SHARED / "acac" / f"{file}.extxyz.gz"
    if not path.exists():
        pytest.skip(f"no shared data at {path}")
    return read_systems(path, index=f"::{500 // count}")[:count]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real reference data, or a skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def acac() -> list[System]:
    """Fifty labelled frames at 300 K."""
    return read_acac(50)


def labelled_frames(count: int) -> list[System]:
    """Labelled frames of one molecule: acetylacetone from the shared data, or where that is absent ethanol by GFN2-xTB."""
    if (SHARED / "acac").exists():
        return read_acac(count)
    pytest.importorskip("tblite", reason=f"neither shared data at {SHARED} nor tblite")
    from ase.build import molecule

    from sapis.labelers.build import build_labeler
    from sapis.labelers.labeler import Label, LabelerConfig
    from sapis.simulate.sampling import rattled_candidates

    systems = rattled_candidates([System.from_atoms(molecule("CH3CH2OH"))], count, (0.02, 0.12), 0)
    labeler = build_labeler(LabelerConfig())
    outcomes = [labeler.label(system) for system in systems]
    return [outcome.applied_to(system) for system, outcome in zip(systems, outcomes, strict=True) if isinstance(outcome, Label)]


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sapis train` leaves of a tiny model: ``out`` beside ``data.extxyz`` (60 frames) and ``settings.yaml``."""
    import yaml

    from command import TINY_MODEL, sapis
    from sapis.data.formats import write_systems

    folder = tmp_path_factory.mktemp("trained")
    write_systems(folder / "data.extxyz", labelled_frames(60))
    training = {"epochs": 6, "warmup_steps": 10, "validations": 3}
    settings = {"model": TINY_MODEL, "training": training, "level_of_theory": "of the tests"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    ending = sapis("train", folder / "data.extxyz", "--output", folder / "out", "--config", folder / "settings.yaml",
                   "--n-validation", "10")
    assert ending.code == 0, ending.text
    return folder
