"""What of a data set is looked at: all of it, or of a large store a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sapis.data.formats import LabelKeys, read_systems
from sapis.data.store import Store, is_store
from sapis.data.system import System

SAMPLE, RUN = 20_000, 50  # frames of a store that are linted, and of these how many in a row


def sampled(path: Path, keys: LabelKeys | None = None) -> tuple[Sequence[System], int]:
    """The frames of a file, or a sample of those of a store; and how many there are.

    Raises:
        SapisError: bad input.
    """
    systems: Sequence[System] = Store(path) if is_store(path) else read_systems(path, keys=keys)
    return sample_of(systems), len(systems)


def sample_of(systems: Sequence[System], *, n_most: int = SAMPLE) -> Sequence[System]:
    """All of a list; of a store as many as memory and patience are good for: runs of frames that follow each other, spread over
    all of it.
    """
    if isinstance(systems, list):
        return systems
    if len(systems) <= n_most:
        return list(systems)
    starts = np.linspace(0, len(systems) - RUN, n_most // RUN).astype(int)
    return [systems[int(number)] for start in starts for number in range(start, start + RUN)]
