"""Open Catalyst 2020: S2EF as extended XYZ with text files beside, S2EF and IS2RE as LMDB (Chanussot et al., ACS Catal. 11, 6059,
2021).

The published LMDB files hold pickled objects of PyTorch Geometric. A pickle can run code, so it is not loaded as one: the
stream is read by an unpickler that knows tensors, containers and an empty class in place of everything of PyTorch Geometric,
and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapis.core.errors import DataError
from sapis.data.formats.files import lmdb_transaction, missing, text_lines, unreadable
from sapis.data.formats.labels import LabelKeys
from sapis.data.formats.xyz import frames_of_text
from sapis.data.system import System

LEVEL = "RPBE (VASP, OC20)"
ADSORPTION_LEVEL = f"{LEVEL}, adsorption energy"
_TEXT_SUFFIXES = (".extxyz", ".extxyz.xz")


def is_oc20(path: Path) -> bool:
    """An LMDB file (``.lmdb``), or a folder of them or of pairs of ``.extxyz`` and ``.txt`` (also with ``.xz``)."""
    if path.suffix == ".lmdb":
        return True
    return path.is_dir() and (any(path.glob("*.lmdb")) or bool(_pairs(path)))


def iterate(path: Path, keys: LabelKeys, require: Sequence[str]) -> Iterator[System]:
    """The systems of S2EF or IS2RE.

    The energy is the adsorption energy of the published task (total less that of the clean slab and the gas molecule); from the
    text form ``LabelKeys(energy="energy")`` gives the total. Forces are those of all atoms; how many are free is not told by
    zeros, so the tag ``n_fixed`` counts the fixed ones. A frame of IS2RE gives two systems, tagged ``stage``: the initial and,
    where it is there, the relaxed structure.

    Raises:
        FileError: a file that is not of these layouts, or whose pickle names anything else than data.
    """
    files = sorted(path.glob("*.lmdb")) if path.is_dir() else [path]
    if files:
        for file in files:
            yield from _lmdb(file)
    else:
        for text, table in _pairs(path):
            yield from _text(text, table, is_total=keys.energy == "energy")


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Files of structures with the table beside each."""
    pairs = []
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_TEXT_SUFFIXES):
            stem = path.name.split(".extxyz")[0]
            tables = [table for suffix in (".txt", ".txt.xz") if (table := folder / f"{stem}{suffix}").is_file()]
            pairs += [(path, tables[0])] if tables else []
    return pairs


# Text


def _text(path: Path, table: Path, *, is_total: bool) -> Iterator[System]:
    rows = [line.strip().split(",") for line in text_lines(table) if line.strip()]
    n_frames = 0
    for frame in frames_of_text(text_lines(path), path):
        if n_frames >= len(rows) or len(rows[n_frames]) != 3:
            raise missing("a line 'system,frame,reference energy' for each structure", table, f"{len(rows)} lines")
        name, number, reference = rows[n_frames]
        values = frame.values
        energy, forces = values.get("energy"), values.get("forces")
        if energy is None or forces is None:
            raise missing("energy and forces", path, ", ".join(sorted(values)))
        # Where the file says which atoms may move, the others are fixed.
        n_fixed = int((~np.asarray(values["move_mask"], dtype=bool)).sum()) if "move_mask" in values else 0
        yield System(
            numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc, forces=forces,
            energy=float(energy) - (0.0 if is_total else float(reference)), level=LEVEL if is_total else ADSORPTION_LEVEL,
            tags={"file": path.name, "frame": n_frames, "trajectory": name, "step": int(number.removeprefix("frame")),
                  "reference_energy_eV": float(reference), "n_fixed": n_fixed},
        )
        n_frames += 1
    if n_frames != len(rows):
        raise missing(f"{len(rows)} structures, as many as {table.name} has lines", path, f"{n_frames}")


# LMDB


def _lmdb(path: Path) -> Iterator[System]:
    with lmdb_transaction(path, "OC20 LMDB") as transaction:
        frame = 0
        # The keys are decimal numbers, which LMDB would give in the order of text.
        while (data := transaction.get(str(frame).encode())) is not None:
            fields = read_inert(data, path, frame)
            tags = {"file": path.name, "frame": frame} | {
                name: int(fields[name]) for name in ("sid", "fid") if name in fields and np.size(fields[name]) == 1}
            try:
                yield from _systems(fields, tags)
            except KeyError as error:
                raise missing(f"a field {error} in each object", path, ", ".join(sorted(fields))) from None
            frame += 1
        if not frame:
            raise missing("frames under the keys 0, 1, …", path, "none")


def _systems(fields: dict[str, Any], tags: dict[str, Any]) -> Iterator[System]:
    fixed = fields.get("fixed")
    common: dict[str, Any] = {
        "numbers": np.asarray(fields["atomic_numbers"]).astype(int), "level": ADSORPTION_LEVEL,
        "cell": np.asarray(fields["cell"], dtype=float).reshape(3, 3), "pbc": True,
    }
    tags = tags | {"n_fixed": int(np.sum(fixed == 1)) if fixed is not None else 0}
    if "y_relaxed" in fields or "pos_relaxed" in fields or "y_init" in fields:
        for stage, positions, energy in (("initial", "pos", "y_init"), ("relaxed", "pos_relaxed", "y_relaxed")):
            if positions in fields:
                yield System(positions=np.asarray(fields[positions], dtype=float), energy=_scalar(fields.get(energy)),
                             tags=tags | {"stage": stage}, **common)
        return
    forces = fields.get("force", fields.get("forces"))
    yield System(positions=np.asarray(fields["pos"], dtype=float), energy=_scalar(fields.get("y", fields.get("energy"))),
                 forces=None if forces is None else np.asarray(forces, dtype=float), tags=tags, **common)


def _scalar(value: Any) -> float | None:
    return None if value is None else float(np.asarray(value).reshape(-1)[0])


class _Inert:
    """Stands for a class that is not loaded: it keeps its state and can do nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name in the stream stands for.

        Raises:
            pickle.UnpicklingError: it is neither a tensor, a container nor PyTorch Geometric's.
        """
        if module.split(".")[0] == "torch_geometric":
            return _Inert
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise pickle.UnpicklingError(f"the name {module}.{name}, which is not data")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to something outside")


def _storage(data: bytes) -> Any:
    """A tensor's numbers, through PyTorch's own loader of weights, which runs no code."""
    return torch.load(io.BytesIO(data), weights_only=True)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
}


def read_inert(data: bytes, path: Path, frame: int) -> dict[str, Any]:
    """The fields of a pickled PyTorch Geometric object: tensors as arrays, numbers as they are.

    Raises:
        FileError: no such object, or a stream that names anything else than data.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged stream makes the unpickler raise almost anything
        raise unreadable(error, "OC20 LMDB", path, frame) from None
    fields = found.state if isinstance(found, _Inert) else found
    store = fields.get("_store") if isinstance(fields, dict) else None
    if isinstance(store, _Inert) and isinstance(store.state, dict):
        fields = store.state.get("_mapping", store.state)
    if not isinstance(fields, dict):
        raise DataError(expected="an object with fields", received=type(found).__name__, where=f"{path}, frame {frame}",
                        todo="check that this is an LMDB file of OC20")
    return {name: value.detach().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in fields.items() if value is not None and not isinstance(value, _Inert)}
