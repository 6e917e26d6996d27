"""How many labels a way of choosing them needs for an error."""

from __future__ import annotations

import numpy as np


def labels_needed(n_labels: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Labels at which ``errors`` ``(rounds,)``, those of ``n_labels`` ``(rounds,)``, reach ``target``: between rounds by a power
    law, infinite if they do not.
    """
    lowest = np.minimum.accumulate(errors)
    below = np.flatnonzero(lowest <= target)
    if len(below) == 0:
        return float("inf")
    k = int(below[0])
    if k == 0:
        return float(n_labels[0])
    share = np.log(lowest[k - 1] / target) / np.log(lowest[k - 1] / lowest[k])
    return float(n_labels[k - 1] * (n_labels[k] / n_labels[k - 1]) ** share)
