"""Tasks as jobs of a cluster, through Parsl (Babuji et al., HPDC 2019, doi:10.1145/3307681.3325400).

A job is a few tasks, which a `Pool` of one process does on the node: limits, deaths and retries of a task are the same there as
here. What Parsl adds are nodes: it asks a scheduler for blocks of them, and does the jobs of a lost node again.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sapis.core.config import Config
from sapis.core.errors import MissingDependencyError, SapisError
from sapis.executors.executor import Prepare
from sapis.executors.outcome import Failure, Limits
from sapis.executors.pool import Pool

JOBS_AHEAD = 2  # for each process of the cluster: one that runs and one that waits


class ClusterConfig(Config):
    """Where Parsl takes nodes from, and how many.

    Attributes:
        provider: ``slurm``, or ``local`` for this machine.
        workers_per_node: processes of one thread on each node.
        nodes_per_block: nodes of one job of the scheduler.
        max_blocks: such jobs at most.
        walltime: of such a job, ``hours:minutes:seconds``.
        partition, account: for the scheduler.
        scheduler_options: lines for the head of its script, such as ``#SBATCH --constraint=…``.
        worker_init: shell commands that make `sapis` importable on a node: modules, environments.
        tasks_per_job: tasks that travel together; some seconds of work.
        node_retries: how often the job of a lost node is done again.
        folder: of Parsl's logs; default: one of the system's, which is left there.
    """

    provider: Literal["local", "slurm"] = "local"
    workers_per_node: int = Field(2, ge=1)
    nodes_per_block: int = Field(1, ge=1)
    max_blocks: int = Field(1, ge=1)
    walltime: str = Field("01:00:00", pattern=r"^\d+:[0-5]\d:[0-5]\d$")
    partition: str | None = None
    account: str | None = None
    scheduler_options: str = ""
    worker_init: str = ""
    tasks_per_job: int = Field(20, ge=1)
    node_retries: int = Field(2, ge=0)
    folder: Path | None = None


class ClusterExecutor:
    """Jobs through Parsl; see `sapis.executors.executor.Executor`.

    Args:
        config: of the cluster.

    Raises:
        MissingDependencyError: Parsl is not installed.
    """

    def __init__(self, config: ClusterConfig) -> None:
        try:
            import parsl  # noqa: F401 - says now that it is missing
        except ImportError:
            raise MissingDependencyError.of("parsl", extra="cluster", purpose="jobs on a cluster") from None
        self.config = config

    def outcomes(self, prepare: Prepare, tasks: Iterable[Any], *, limits: Limits) -> Iterator[tuple[int, Any]]:
        """See `sapis.executors.executor.Executor`."""
        from parsl import python_app
        from parsl.dataflow.dflow import DataFlowKernel

        config = self.config
        # Parsl starts programs by name that are beside the interpreter.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        kernel = DataFlowKernel(_parsl_config(config))
        try:
            submit = python_app(run_job, data_flow_kernel=kernel)
            n_ahead = JOBS_AHEAD * config.workers_per_node * config.nodes_per_block * config.max_blocks
            numbered, open_jobs = enumerate(tasks), dict[Future[Any], list[tuple[int, Any]]]()

            def send(job: list[tuple[int, Any]]) -> None:
                open_jobs[submit(prepare, job, limits.model_dump(), [str(path) for path in sys.path])] = job

            while True:
                while len(open_jobs) < n_ahead and (job := list(islice(numbered, config.tasks_per_job))):
                    send(job)
                if not open_jobs:
                    return
                for future in wait(open_jobs, return_when=FIRST_COMPLETED).done:
                    job = open_jobs.pop(future)
                    error = future.exception()
                    if error is None:
                        yield from future.result()
                    elif isinstance(error, SapisError):
                        raise error
                    elif len(job) > 1:  # one of them takes its nodes with it: which one?
                        for task in job:
                            send([task])
                    else:
                        reason = " ".join(f"lost with its node: {type(error).__name__}: {error}".split())
                        yield job[0][0], Failure("crashed", reason[:500], 0.0)
        finally:
            kernel.cleanup()


def _parsl_config(config: ClusterConfig) -> Any:
    from parsl.config import Config as ParslConfig
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SingleNodeLauncher, SrunLauncher
    from parsl.providers import LocalProvider, SlurmProvider

    blocks: dict[str, Any] = {"nodes_per_block": config.nodes_per_block, "init_blocks": 1, "min_blocks": 0,
                              "max_blocks": config.max_blocks, "worker_init": config.worker_init}
    provider: Any
    if config.provider == "slurm":
        provider = SlurmProvider(partition=config.partition, account=config.account, walltime=config.walltime,
                                 scheduler_options=config.scheduler_options, exclusive=False,
                                 cores_per_node=config.workers_per_node,
                                 launcher=SrunLauncher() if config.nodes_per_block > 1 else SingleNodeLauncher(), **blocks)
    else:
        provider = LocalProvider(**blocks)
    address: dict[str, Any] = {"address": "127.0.0.1", "loopback_address": "127.0.0.1"} if config.provider == "local" else {}
    # The nodes of a cluster see the working directory, and each has a /tmp of its own.
    folder = str(config.folder or tempfile.mkdtemp(prefix="sapis-parsl-", dir="." if config.provider == "slurm" else None))
    nodes = HighThroughputExecutor(label="sapis", max_workers_per_node=config.workers_per_node, provider=provider, **address)
    return ParslConfig(executors=[nodes], retries=config.node_retries, run_dir=folder, initialize_logging=False)


_pools: dict[tuple[Any, ...], Pool] = {}


def run_job(prepare: Prepare, job: Sequence[tuple[int, Any]], limits: dict[str, Any], path: list[str]) -> list[tuple[int, Any]]:
    """On a node: the outcomes of some numbered tasks, by a pool of one process that is kept for the next job."""
    sys.path += [folder for folder in path if folder not in sys.path]
    key = (pickle.dumps(prepare), *limits.items())
    if key not in _pools:
        for pool in _pools.values():
            pool.close()
        _pools.clear()
        _pools[key] = Pool(prepare, n_workers=1, limits=Limits(**limits))
    try:
        found = dict(_pools[key].outcomes([task for _, task in job]))
    except BaseException:
        _pools.clear()
        raise
    return [(job[place][0], outcome) for place, outcome in found.items()]
