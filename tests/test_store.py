"""The store: what is appended is there, bit for bit, and whatever kills a writer leaves whole frames only."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest

from sapis.core.errors import DataError, FileError
from sapis.data.packing import content, pack, unpack
from sapis.data.store import Selection, Store
from sapis.data.system import System

RANDOM = np.random.default_rng(0)


def frame(atoms: int = 5, *, seed: int = 0, **fields: object) -> System:
    random = np.random.default_rng(seed)
    values: dict[str, object] = {
        "numbers": random.integers(1, 118, atoms), "positions": random.normal(size=(atoms, 3)), "energy": random.normal(),
        "forces": random.normal(size=(atoms, 3)), "tags": {"file": "a.xyz", "frame": seed, "é": True, "x": 0.1},
    }
    return System(**(values | fields))  # type: ignore[arg-type]


KINDS = {
    "labelled": frame(),
    "bare": frame(energy=None, forces=None, tags={}),
    "energy only": frame(forces=None),
    "crystal": frame(cell=np.diag([3.0, 4.0, 5.0]), pbc=True, stress=np.eye(3)),
    "slab": frame(cell=np.diag([3.0, 4.0, 0.0]), pbc=[True, True, False]),
    "cell without periodicity": frame(cell=np.eye(3)),
    "ion": frame(charge=-3, spin=4, level="wB97X-D3(BJ)/def2-TZVP"),
    "one atom": frame(1),
    "odd number of atoms": frame(7, stress=np.eye(3), cell=9 * np.eye(3), pbc=True),
}


def assert_equal(a: System, b: System) -> None:
    assert (a.energy, a.charge, a.spin, a.level, dict(a.tags)) == (b.energy, b.charge, b.spin, b.level, dict(b.tags))
    for name in ("numbers", "positions", "cell", "pbc", "forces", "stress"):
        mine, other = getattr(a, name), getattr(b, name)
        assert (mine is None) == (other is None), name
        assert mine is None or (mine.dtype == other.dtype and np.array_equal(mine, other)), name


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_exact(kind: str) -> None:
    system = KINDS[kind]
    again = unpack(pack(system))
    assert_equal(again, system)
    assert again.structure_hash() == system.structure_hash()
    assert_equal(pickle.loads(pickle.dumps(again)), system)
    assert_equal(replace(again, charge=0), replace(system, charge=0))  # passes the checks of the constructor


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_rounds_positions_and_forces_only(kind: str) -> None:
    system = KINDS[kind]
    again = unpack(pack(system, is_single=True))
    assert again.positions.dtype == np.float64
    assert np.array_equal(again.positions, system.positions.astype(np.float32))
    assert again.energy == system.energy
    assert system.stress is None or np.array_equal(again.stress, system.stress)  # type: ignore[arg-type]


def test_content_leaves_out_the_tags_and_nothing_else() -> None:
    system = KINDS["crystal"]
    same = content(pack(system))
    assert content(pack(system.with_tags(more="text"))) == same
    changes = {"energy": 0.0, "charge": 1, "spin": 3, "level": "PBE", "forces": None, "positions": system.positions + 1e-15,
               "stress": 2 * np.eye(3), "pbc": [True, True, False], "numbers": system.numbers % 117 + 1}
    for name, value in changes.items():
        assert content(pack(replace(system, **{name: value}))) != same, name


def test_every_cut_or_foreign_frame_is_refused() -> None:
    data = pack(KINDS["crystal"])
    for length in range(len(data)):
        with pytest.raises(DataError):
            unpack(data[:length])
    with pytest.raises(DataError, match="layout 9"):
        unpack(b"\x09" + data[1:])
    with pytest.raises(DataError, match="charge"):
        pack(frame(charge=10**10))
    with pytest.raises(DataError, match="tags"):
        pack(frame(tags={"path": Path("x")}))


def test_append_and_read(tmp_path: Path) -> None:
    systems = [*KINDS.values(), *(frame(3 + seed % 9, seed=seed) for seed in range(1, 200))]
    with Store.create(tmp_path / "s", level="PBE", frames_per_shard=64) as store:
        assert store.append(systems[:100]).tolist() == list(range(100))
        assert store.append(systems[100:]).tolist() == list(range(100, len(systems)))
        assert len(list((tmp_path / "s").glob("shard-*.mdb"))) == 4
    with Store(tmp_path / "s") as store:
        assert len(store) == len(systems)
        assert store.n_atoms.tolist() == [len(system) for system in systems]
        for i in RANDOM.permutation(len(systems)).tolist():
            assert_equal(store[i], replace(systems[i], level=systems[i].level or "PBE"))
        assert store[-1].tags["frame"] == 199
        assert list(store.verify()) == []
        with pytest.raises(IndexError):
            store[len(systems)]


def test_duplicates_are_kept_once(tmp_path: Path) -> None:
    a, b = frame(seed=1), frame(seed=2)
    with Store.create(tmp_path / "s") as store:
        assert store.append([a, b, a.with_tags(again=1)]).tolist() == [0, 1, 0]
        assert store.append([b, replace(a, energy=0.5)]).tolist() == [1, 2]  # another label is another frame
        assert len(store) == 3


def test_the_hash_is_that_of_content_and_order(tmp_path: Path) -> None:
    frames = [frame(seed=seed) for seed in range(6)]
    hashes = []
    for name, chunks in {"a": [frames], "b": [frames[:1], frames[1:]], "c": [frames[::-1]]}.items():
        with Store.create(tmp_path / name) as store:
            for chunk in chunks:
                store.append(chunk)
            hashes.append(store.content_hash)
    assert hashes[0] != hashes[2]
    selections = [Selection(Store(tmp_path / "a"), np.array(order)) for order in ([0, 1], [1, 0], [0, 1])]
    assert selections[0].content_hash == selections[2].content_hash != selections[1].content_hash


def test_selections(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        store.append([frame(2 + seed, seed=seed) for seed in range(10)])
        part = store[2:9:3]
        assert [system.tags["frame"] for system in part] == [2, 5, 8]
        assert part.n_atoms.tolist() == [4, 7, 10]
        assert [system.tags["frame"] for system in part[1:]] == [5, 8]


def test_one_writer_and_many_readers(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as writer, Store(tmp_path / "s") as reader:
        writer.append([frame(seed=1)])
        with pytest.raises(FileError, match="another process"):
            Store(tmp_path / "s").append([frame(seed=2)])
        assert len(reader) == 0
        reader.refresh()
        assert len(reader) == 1
        assert_equal(reader[0], frame(seed=1))
        writer.append([frame(seed=2)])
        assert_equal(writer[1], frame(seed=2))
    with Store(tmp_path / "s") as other:
        assert other.append([frame(seed=3)]).tolist() == [2]


def _read_all(store: Sequence[System], results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    results.put([system.energy for system in store])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_crosses_to_other_processes(tmp_path: Path, method: str) -> None:
    with Store.create(tmp_path / "s") as store:
        store.append([frame(seed=seed) for seed in range(20)])
        expected = [system.energy for system in store]
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=_read_all, args=(store, results))
        process.start()
        assert results.get(timeout=60) == expected
        process.join()
        assert [system.energy for system in store] == expected


def test_sources_and_isolated_atoms_are_kept(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", isolated={"PBE": {1: -13.6, 8: -2000.0}}) as store:
        store.add_source({"name": "x.xyz", "licence": "CC0"})
    with Store(tmp_path / "s") as store:
        assert store.isolated == {"PBE": {1: -13.6, 8: -2000.0}}
        assert [source["name"] for source in store.manifest["sources"]] == ["x.xyz"]


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a store"):
        Store(tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileError, match="already"):
        Store.create(tmp_path / "full")
    Store.create(tmp_path / "newer").close()
    manifest = json.loads((tmp_path / "newer" / "store.json").read_text())
    (tmp_path / "newer" / "store.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(FileError, match="version"):
        Store(tmp_path / "newer")


def test_damage_is_seen(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        store.append([frame(40, seed=seed) for seed in range(50)])
    data = bytearray((tmp_path / "s" / "shard-00000.mdb").read_bytes())
    energy = np.float64(frame(40, seed=7).energy).tobytes()
    at = bytes(data).index(energy)
    data[at] ^= 1
    (tmp_path / "s" / "shard-00000.mdb").write_bytes(data)
    assert list(Store(tmp_path / "s").verify()) == [7]
    (tmp_path / "s" / "shard-00000.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(FileError, match="LMDB"):
        Store(tmp_path / "s")


def test_frames_that_a_killed_writer_did_not_index_are_indexed(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        store.append([frame(seed=seed) for seed in range(5)])
    (tmp_path / "s" / "index.mdb").unlink()
    with Store(tmp_path / "s") as store:
        assert store.append([frame(seed=3), frame(seed=9)]).tolist() == [3, 5]
        assert list(store.verify()) == []


WRITER = """
import sys
from pathlib import Path
from sapis.data.store import Store
sys.path.insert(0, sys.argv[2])
from test_store import frame
with Store(sys.argv[1]) as store:
    first = int(sys.argv[3])
    for start in range(first, first + 100000, 7):
        numbers = store.append([frame(3 + seed % 20, seed=seed) for seed in range(start, start + 7)])
        print(int(numbers[-1]) + 1, flush=True)
"""


def kill_a_writer(path: Path, first: int, delay_s: float) -> int:
    """Start a writer, kill it ``delay_s`` after its first batch; how many frames it said were there."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent), str(first)],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    acknowledged = int(process.stdout.readline())
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    return acknowledged


def after_kills(path: Path, n_kills: int) -> dict[str, int]:
    """Kill a writer so often, each time at a random moment; how many frames were acknowledged and are there."""
    n_acknowledged = 0
    Store.create(path, frames_per_shard=500).close()
    random = np.random.default_rng(1)
    for _ in range(n_kills):
        before = len(Store(path))
        acknowledged = kill_a_writer(path, before, float(random.uniform(0, 0.05)))
        with Store(path) as store:
            assert len(store) >= acknowledged
            n_acknowledged = acknowledged
            for number in range(before, len(store)):
                assert_equal(store[number], frame(3 + number % 20, seed=number))
    with Store(path) as store:
        store.append([frame(seed=10**6)])  # indexes what is not
        assert list(store.verify()) == []
        return {"n_acknowledged": n_acknowledged, "n_frames": len(store) - 1, "n_lost": 0, "n_damaged": 0}


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    after_kills(tmp_path / "s", 5)


def test_a_damaged_lmdb_file_raises_our_error_when_read(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        store.append([frame()])
    with lmdb.open(str(tmp_path / "s" / "shard-00000.mdb"), subdir=False, max_dbs=2) as environment:
        database = environment.open_db(b"frames")
        with environment.begin(write=True) as transaction:
            transaction.delete((0).to_bytes(8, "big"), db=database)
    with pytest.raises(FileError, match="frame 0"):
        Store(tmp_path / "s")[0]
