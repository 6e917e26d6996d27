"""`sapis label`: structures of any format, labelled into a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sapis.core.config import Config, load_yaml, parse_config
from sapis.core.files import hash_json, refuse_inputs, write_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data.formats import iterate_systems, select
from sapis.data.store import Store
from sapis.executors.cluster import ClusterConfig, ClusterExecutor
from sapis.executors.executor import Executor, LocalExecutor
from sapis.executors.outcome import Limits
from sapis.labelers.build import build_labeler
from sapis.labelers.journal import Journal
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import Labelling, isolated_atom_energies, label_into

FAILURES, RECORDS = "failures.json", "records"


class LabelRequest(Config):
    """Settings of a labelling.

    Attributes:
        labeler: the method.
        limits: of each label.
        cluster: where it is computed, if not on this machine.
        workers: processes on this machine; default one per core.
    """

    labeler: LabelerConfig = LabelerConfig()
    limits: Limits = Limits()
    cluster: ClusterConfig | None = None
    workers: int | None = None


def read_request(path: Path) -> LabelRequest:
    """Settings from YAML.

    Raises:
        ConfigError: not YAML, an unknown key, a wrong value.
        FileError: missing or empty file.
    """
    return parse_config(LabelRequest, load_yaml(path), where=str(path))


def executor_of(cluster: ClusterConfig | None, workers: int | None) -> Executor:
    """Jobs of ``cluster``, or without one so many processes here."""
    return ClusterExecutor(cluster) if cluster else LocalExecutor(workers)


def label_files(inputs: Sequence[Path], output: Path, request: LabelRequest, *, index: slice | None = None,
                retry_failures: bool = False) -> Labelling:
    """Label the structures of ``inputs`` and append them to the store ``output``, which is made if it is not there.

    A new store gets the energies of isolated atoms by the same method, as far as it has them. Failures are in ``failures.json``
    of the store, what was done in ``records``.

    Raises:
        SapisError: bad input.
    """
    refuse_inputs({"output": output}, inputs)
    labeler = build_labeler(request.labeler)
    executor = executor_of(request.cluster, request.workers)
    watch = Stopwatch()
    with Store.at(output, level=labeler.level) as store:
        first = len(store)
        systems = (system for path in inputs for system in select(iterate_systems(path), index or slice(None)))
        found = label_into(store, systems, request.labeler, executor, limits=request.limits, retry_failures=retry_failures)
        known = store.isolated.get(labeler.level, {})
        if missing := found.elements - set(known):  # also those that a stopped call has left
            store.set_isolated(labeler.level, known | isolated_atom_energies(request.labeler, missing, executor))
        if found.n_labelled:
            store.add_source({"name": ", ".join(path.name for path in inputs), "method": labeler.method, "level": labeler.level,
                              "n_read": found.n_read, "first": first, "n_new": len(store) - first})
        with Journal(store, labeler.method, labeler.level) as journal:
            write_json(output / FAILURES, list(journal.failures()))
        result = {"level": found.level, "method": found.method, "n_read": found.n_read, "n_known": found.n_known,
                  "n_labelled": found.n_labelled, "failures": dict(found.failures), "label_cpu_seconds": found.cpu_seconds,
                  "n_frames": len(store), "content_hash": store.content_hash}
        name = f"label-{len(list((output / RECORDS).glob('label-*.json'))):04d}"
        write_record(output / RECORDS / f"{name}.json",
                     Record(name, hash_json(request.model_dump(mode="json")), result, watch.cost(), provenance()))
    return found
