"""What of a data set is looked at: all of it, or of a large store a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sapis.data.formats import LabelKeys, read_systems
from sapis.data.store import Store, is_store
from sapis.data.system import System

SAMPLE, RUN = 20_000, 50  # frames of a store that are linted, and of these how many in a row


def sampled(path: Path, keys: LabelKeys | None = None, *, n_most: int = SAMPLE) -> tuple[Sequence[System], int]:
    """The frames of a file, or of a large store as many as memory and patience are good for: runs of frames that follow each
    other, spread over all of it. And how many frames there are.

    Raises:
        SapisError: bad input.
    """
    if not is_store(path):
        systems = read_systems(path, keys=keys)
        return systems, len(systems)
    store = Store(path)
    if len(store) <= n_most:
        return list(store), len(store)
    starts = np.linspace(0, len(store) - RUN, n_most // RUN).astype(int)
    return [store[int(number)] for start in starts for number in range(start, start + RUN)], len(store)
