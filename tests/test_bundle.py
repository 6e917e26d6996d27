"""Bundles come back to the bit, and nothing but a whole bundle is taken for one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import cluster, crystal, small_potential
from sapis.api import load, save
from sapis.core.errors import FileError, ModelError
from sapis.core.files import hash_file
from sapis.model.potential import TransformerPotential
from sapis.potential import bundle
from sapis.potential.bundle import Bundle, hash_tensors, read_bundle, read_tensors, write_bundle, write_tensors

CARD = {"level_of_theory": "GFN2-xTB", "test": {"force_rmse_meV_A": 12.5}, "elements": ["H", "C"], "note": "Å ≠ A"}


@pytest.fixture(scope="module")
def potential() -> TransformerPotential:
    return small_potential("float32", l_max=1, order=2)


@pytest.fixture
def path(tmp_path: Path, potential: TransformerPotential) -> Path:
    save(tmp_path / "model.sapis", potential, CARD)
    return tmp_path / "model.sapis"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_bundle_comes_back_to_the_bit(tmp_path: Path, precision: str) -> None:
    before = small_potential(precision, l_max=1, order=2)
    written_hash = save(tmp_path / "model.sapis", before, CARD)
    model = load(tmp_path / "model.sapis")
    assert written_hash == hash_file(tmp_path / "model.sapis")
    assert model.card == CARD
    assert model.potential.settings() == before.settings() and not model.potential.training
    assert hash_tensors(model.potential.state_dict()) == hash_tensors(before.state_dict())
    systems = [cluster(5), crystal(3)]
    for one, other in zip(before.predict(systems), model.predict(systems), strict=True):
        assert one.energy == other.energy
        assert (one.forces == other.forces).all()


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, potential: TransformerPotential) -> None:
    contents = set()
    for k in range(8):
        card = dict(reversed(CARD.items())) if k % 2 else CARD
        save(tmp_path / f"{k}.sapis", potential, card)
        contents.add((tmp_path / f"{k}.sapis").read_bytes())
    assert len(contents) == 1
    save(tmp_path / "other.sapis", potential, {**CARD, "note": "another"})
    assert (tmp_path / "other.sapis").read_bytes() not in contents


def test_loading_and_saving_again_gives_the_same_bytes(path: Path) -> None:
    model, content = load(path), path.read_bytes()
    save(path, model.potential, model.card)
    assert path.read_bytes() == content


def test_the_header_names_units_and_version(path: Path) -> None:
    header = read_tensors(path)[1]
    assert header["format_version"] == bundle.FORMAT_VERSION and header["architecture"] == "transformer"
    assert header["units"]["energy"] == "eV" and "tension positive" in header["units"]["stress"]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["sapis"])["settings"]["elements"] == [1, 6, 8], "readable without sapis"


@pytest.mark.parametrize("asked", ["float32", "float64"])
def test_a_bundle_loads_in_either_precision(path: Path, potential: TransformerPotential, asked: str) -> None:
    model = load(path, precision=asked)
    assert model.potential.precision == asked and model.calculator().potential.precision == asked
    expected = potential.with_precision(asked).predict([cluster(5)])[0]
    assert model.predict([cluster(5)])[0].energy == expected.energy
    with pytest.raises(ModelError, match="float16"):
        load(path, precision="float16")
    with pytest.raises(ModelError, match="half"):
        model.calculator("half")


def test_unusual_tensors_survive(tmp_path: Path) -> None:
    tensors = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5, dtype=torch.float64),
               "turned": torch.arange(6.0).view(2, 3).T, "whole": torch.tensor([1, -2]),
               "odd": torch.tensor([float("nan"), float("inf"), -0.0])}
    write_tensors(tmp_path / "file", tensors, {"a": [1, None, "ü"]})
    back, header = read_tensors(tmp_path / "file")
    assert hash_tensors(back) == hash_tensors(tensors)
    assert header == {"a": [1, None, "ü"]}


def test_hashes_see_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3, dtype=torch.int32)},
              {"a": torch.zeros(2, 3).index_fill(0, torch.tensor(1), 1e-30)}, {"a": -torch.zeros(2, 3)}, {}]
    hashes = {hash_tensors(base), hash_tensors(base, "text"), *(hash_tensors(other) for other in others)}
    assert len(hashes) == 2 + len(others)
    two = {"x": torch.ones(1), "y": torch.zeros(1)}
    assert hash_tensors(two) == hash_tensors(dict(reversed(two.items())))


# What is not a whole bundle


@pytest.mark.parametrize("fraction", [0.0, 1e-4, 0.01, 0.3, 0.7, 0.999, 1.0])
def test_a_truncated_file_is_refused(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * (len(content) - 1))])
    with pytest.raises(FileError, match=r"model\.sapis"):
        load(path)


def test_appended_bytes_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileError):
        load(path)


def test_one_flipped_bit_anywhere_is_refused(path: Path) -> None:
    """Sampled over the length field, the JSON header and the weights."""
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header_end, 60), *rng.integers(header_end, len(content), 20), len(content) - 1]
    for place in places:
        altered = bytearray(content)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(altered))
        try:
            found = read_bundle(path)
        except FileError:
            continue
        # Padding after the header's JSON carries nothing; anything else must not pass.
        path.write_bytes(content)
        whole = read_bundle(path)
        assert found.settings == whole.settings and found.card == whole.card, f"byte {place}"
        assert hash_tensors(found.weights) == hash_tensors(whole.weights), f"byte {place}"
        assert place < header_end and content[place : place + 1] == b" ", f"byte {place} was altered unnoticed"


def test_an_exchanged_card_is_refused(path: Path) -> None:
    """A header that is whole JSON but not the one that was written."""
    content = path.read_bytes()
    assert content.count(b"GFN2-xTB") == 1
    path.write_bytes(content.replace(b"GFN2-xTB", b"CCSD(T)!"))
    with pytest.raises(FileError, match="altered"):
        load(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "absent.sapis", tmp_path):
        with pytest.raises(FileError, match=place.name):
            load(place)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"sapis": "no JSON"}, {"sapis": "[]"}, {"sapis": "{}"}],
                         ids=str)
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata=metadata)
    with pytest.raises(FileError, match=r"foreign\.safetensors"):
        load(tmp_path / "foreign.safetensors")


class Burglar:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_without_being_opened(tmp_path: Path, kind: str) -> None:
    trace, file = tmp_path / "trace", tmp_path / "model.sapis"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Burglar(trace)))
    else:
        torch.save({"state": Burglar(trace)}, file)
    with pytest.raises(FileError, match=r"model\.sapis"):
        load(file)
    assert not trace.exists()
    if kind == "pickle":
        pickle.loads(file.read_bytes())
        assert trace.exists(), "the trap works"


def test_a_newer_format_is_refused(path: Path, potential: TransformerPotential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FORMAT_VERSION", bundle.FORMAT_VERSION + 1)
    save(path, potential, CARD)
    monkeypatch.undo()
    with pytest.raises(FileError, match="update"):
        load(path)


def test_an_unknown_architecture_is_refused(path: Path, potential: TransformerPotential) -> None:
    write_bundle(path, Bundle("mixture of oracles", potential.settings(), dict(potential.state_dict())))
    with pytest.raises(FileError, match="mixture of oracles"):
        load(path)


def test_weights_that_do_not_fit_their_settings_are_refused(path: Path, potential: TransformerPotential) -> None:
    weights = dict(potential.state_dict())
    weights.popitem()
    write_bundle(path, Bundle("transformer", potential.settings(), weights))
    with pytest.raises(FileError):
        load(path)
    write_bundle(path, Bundle("transformer", {"config": {}}, dict(potential.state_dict())))
    with pytest.raises(FileError):
        load(path)


def test_a_checkpoint_is_not_taken_for_a_model(path: Path) -> None:
    write_tensors(path, {"weights.a": torch.zeros(1)}, {"step": 3, "identity": "…"})
    with pytest.raises(FileError, match="checkpoint"):
        load(path)


def test_a_failed_write_leaves_the_old_file(path: Path, potential: TransformerPotential) -> None:
    content = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, potential, {"not JSON": object()})
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no part is left behind"
