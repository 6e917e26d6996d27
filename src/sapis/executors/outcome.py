"""What becomes of a task that fails, and what it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sapis.core.config import Config

FailureKind = Literal["not_converged", "not_finite", "unsupported", "too_large", "timeout", "memory", "crashed", "killed",
                      "error"]
KILLED: FailureKind = "killed"


@dataclass(frozen=True)
class Failure:
    """A task without a result, as a value.

    Attributes:
        kind: ``not_converged``, ``not_finite``, ``unsupported`` (the method is not made for this structure), ``too_large``
            (forces beyond what is wanted), ``timeout``, ``memory`` (it took more than it may), ``crashed`` (its process died),
            ``killed`` (from outside) or ``error`` (any other exception).
        reason: one line for the user.
        cpu_seconds: what it cost, all attempts together.
    """

    kind: FailureKind
    reason: str
    cpu_seconds: float


class Limits(Config):
    """What a task may take.

    Attributes:
        timeout_s: longest silence of a task (see `sapis.executors.worker.report_progress`) before it is ended.
        memory_MB: most memory of its process and of what that started.
        retries: how often a task is tried again whose process died; after that it is a failure.
    """

    timeout_s: float | None = Field(None, gt=0)
    memory_MB: float | None = Field(None, gt=0)
    retries: int = Field(1, ge=0)
