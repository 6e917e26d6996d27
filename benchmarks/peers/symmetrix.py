"""MACE on Symmetrix-XL's native CPU backend (package `symmetrix-xl`): inference only, no training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mace  # noqa: F401  before e3nn, as there
import numpy as np
import torch
from ase import Atoms
from symmetrix.calculator import Symmetrix
from symmetrix.extract_mace_data import _extract_single_head_data

from benchmarks.peers.mace import Driver as Mace
from benchmarks.peers.protocol import Frame, Peer, Problem


class Driver(Peer):
    """The network of `mace` with random weights, converted."""

    package = "symmetrix-xl"

    def __init__(self, problem: Problem, **options: Any) -> None:
        self.module = Mace(problem, **options).module
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.json"
            # The public function wants a pickled model.
            path.write_text(json.dumps(_extract_single_head_data(self.module)), encoding="utf-8")
            self.calculator = Symmetrix(str(path), dtype="float32")

    def prepare(self, frame: Frame) -> Atoms:
        # Its list of neighbours wants a cell without periods, too.
        cell = frame.cell if frame.pbc.any() else np.diag(np.ptp(frame.positions, axis=0) + 1.0)
        return Atoms(frame.numbers, frame.positions, cell=cell, pbc=frame.pbc)

    def collate(self, items: Sequence[Atoms]) -> Atoms:
        (atoms,) = items
        return atoms

    def predict(self, batch: Atoms, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if create_graph:
            raise NotImplementedError("Symmetrix does not train")
        self.calculator.calculate(batch, ["energy", "forces"], ["positions", "numbers", "cell", "pbc"])
        results = self.calculator.results
        return torch.tensor([results["energy"]]), torch.from_numpy(results["forces"])
