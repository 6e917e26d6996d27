"""The members of an ensemble, trained side by side in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sapis.core.errors import TrainingError
from sapis.core.memory import keep_freed_memory
from sapis.core.progress import progress_bar
from sapis.core.seeds import derive_seed
from sapis.data.system import System
from sapis.executors.executor import LocalExecutor
from sapis.executors.outcome import Failure, Limits
from sapis.model.potential import TransformerPotential
from sapis.training.config import TrainingConfig
from sapis.training.loop import Training

Task = tuple[TransformerPotential, TrainingConfig, Path]


def trained_members(
    n_members: int, begin: Callable[[int, int], TransformerPotential], train: Sequence[System], held: Sequence[System],
    settings: TrainingConfig, folder: Path, *, flops: float, workers: int | None = None,
) -> tuple[list[TransformerPotential], dict[str, float]]:
    """All members but the first, which is trained already, each with a seed of its own, and what they cost.

    Killed anywhere, the same call goes on from the checkpoint of each.

    Args:
        n_members: with the first.
        begin: an untrained potential from its seed and its number.
        settings: of each training. In place of CPU seconds, of which processes that share a core make less, the budget is
            ``flops``.
        folder: of their checkpoints.
        flops: what the training of the first took.
        workers: processes; default one per core.

    Raises:
        TrainingError: one whose process ended early.
    """
    if settings.cpu_seconds is not None:
        settings = settings.model_copy(update={"cpu_seconds": None, "flops": flops})
    tasks: list[Task] = []
    for number in range(1, n_members):
        seed = derive_seed(settings.seed, "member", number)
        tasks.append((begin(seed, number), settings.model_copy(update={"seed": seed}), folder / f"member-{number}"))
    with progress_bar() as bar:
        shown = bar.add_task("members", total=len(tasks), note="")
        for number, outcome in LocalExecutor(workers).outcomes(partial(_trainer, train, held), tasks, limits=Limits()):
            if isinstance(outcome, Failure):
                raise TrainingError(expected="a training to its end", received=f"{outcome.kind}: {outcome.reason}",
                                    where=str(tasks[number][2]), todo="run the same command again: it goes on from checkpoints")
            bar.update(shown, advance=1, note=f"validation loss {outcome:.3g}")
    trainings = [Training(potential, train, held, own, place) for potential, own, place in tasks]
    spent = [training.run(is_quiet=True) for training in trainings]  # finished: this reads the weights
    return [training.potential for training in trainings], {
        "cpu_seconds": sum(each.cpu_seconds for each in spent), "flops": sum(each.flops for each in spent)}


def _trainer(train: Sequence[System], held: Sequence[System]) -> Callable[[Task], float]:
    """What each worker runs."""
    keep_freed_memory()
    return partial(_train, train, held)


def _train(train: Sequence[System], held: Sequence[System], task: Task) -> float:
    return Training(task[0], train, held, task[1], task[2]).run(is_quiet=True).best_score
