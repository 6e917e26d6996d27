"""Public data sets: what is said of them, and their download from a real server on this machine that misbehaves to order."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from sapis.core.errors import ConfigError, FileError, MissingDependencyError
from sapis.data.sets import cache_folder, find, get, listing
from sapis.data.sets.archive import unpack
from sapis.data.sets.catalogue import ENTRIES, PublicSet, read_entries
from sapis.data.sets.fetch import digest

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "public-data.md"
CONTENT = bytes(hashlib.shake_256(b"data").digest(400_000))
# Of which the client gets every byte: it reads pieces of this half, and what is left of a piece when a connection breaks is lost.
HALF = 2 * 65_536
WAIT_S = 600.0  # on a busy machine a process may take minutes to start
REST = len(CONTENT) - HALF


# --- a server ---------------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """One file and how it is served.

    Attributes:
        codes: HTTP errors of the first answers.
        cuts: bytes after which the connection of each of the first answers breaks.
        holds_after: bytes after which the answer waits for ``released``.
    """

    content: bytes = CONTENT
    has_ranges: bool = True
    etag: str = '"1"'
    codes: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    holds_after: int | None = None
    released: threading.Event = field(default_factory=threading.Event)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` and notes for each request the range asked for, the code answered and the bytes sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.log: list[tuple[str | None, int, int]] = []

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        served, asked = self.server.files.get(self.path.removeprefix("/")), self.headers.get("Range")
        if served is None or served.codes:
            code = served.codes.pop(0) if served else 404
            self.server.log.append((asked, code, 0))
            self.send_error(code)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and served.has_ranges else 0  # type: ignore[index]
        if self.headers.get("If-Range", served.etag) != served.etag:
            start = 0
        if start >= len(served.content):
            self.server.log.append((asked, 416, 0))
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        self.send_header("Content-Length", str(len(served.content) - start))
        if served.etag:
            self.send_header("ETag", served.etag)
        self.end_headers()
        self._send(served, served.content[start:], asked, 206 if start else 200)

    def _send(self, served: Served, body: bytes, asked: str | None, code: int) -> None:
        body = body[:served.cuts.pop(0)] if served.cuts else body
        number = len(self.server.log)
        self.server.log.append((asked, code, 0))
        for part in (body[:served.holds_after], body[served.holds_after:] if served.holds_after else b""):
            self.wfile.write(part)
            self.server.log[number] = (asked, code, self.server.log[number][2] + len(part))
            if served.holds_after and not served.released.wait(WAIT_S):
                return

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("pooch")
    monkeypatch.setattr("sapis.data.sets.download.PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def entry(folder: Path, *urls: str, name: str = "data.bin", content: bytes | None = CONTENT, algorithm: str = "sha256",
          members: tuple[str, ...] = (), size: bool = True, **changes: object) -> PublicSet:
    """A set of one file, written as YAML and read like those that are shipped; without ``content`` of unknown checksum."""
    checksum: dict[str, object] = {"is_verified": False}
    if content is not None:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        value = blob if algorithm == "git" else hashlib.new(algorithm, content).hexdigest()
        checksum = {"is_verified": True, "algorithm": algorithm, "value": value, "source": "this test"}
    file = {"name": name, "addresses": [{"url": url, "is_verified": True, "source": "this test"} for url in urls],
            "size_bytes": len(content) if content and size else None, "checksum": checksum}
    family = {
        "family": "made", "title": "of these tests", "level_of_theory": "none", "licence": "none", "citation": "none",
        "units": {"length": "Å", "energy": "eV"}, "format": "none", "splits": "none", "files": [file],
        "sets": {"made/one": {"files": [name], "members": list(members)}}, **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.yaml").write_text(yaml.safe_dump(family, allow_unicode=True), encoding="utf-8")
    (found,) = read_entries(folder)
    return found


def visible(folder: Path) -> set[str]:
    """Names in the cache of the family, but for locks."""
    return {path.name for path in (folder / "made").iterdir() if not path.name.endswith(".lock")}


# --- download ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "git"])
def test_a_whole_download(server: Server, tmp_path: Path, algorithm: str) -> None:
    server.files["data.bin"] = Served()
    one = entry(tmp_path / "entries", server.url("data.bin"), algorithm=algorithm)
    (path,) = get(one, tmp_path)
    assert path == tmp_path / "made" / "data.bin" and path.read_bytes() == CONTENT
    assert visible(tmp_path) == {"data.bin"}
    assert get(one, tmp_path) == [path] and len(server.log) == 1


def test_an_interrupted_transfer_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(cuts=[HALF])
    (path,) = get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.log == [(None, 200, HALF), (f"bytes={HALF}-", 206, REST)]


def test_a_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(cuts=[HALF, 0, 0, 0, 0])
    one = entry(tmp_path / "entries", server.url("data.bin"), content=None)
    with pytest.raises(FileError, match=f"{HALF:,} of 400,000 bytes"):
        get(one, tmp_path)
    assert visible(tmp_path) == {"data.bin.download"}
    (path,) = get(one, tmp_path)
    assert path.read_bytes() == CONTENT and server.log[-1] == (f"bytes={HALF}-", 206, REST)


def test_halves_of_two_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    newer = CONTENT[::-1]
    one = entry(tmp_path / "entries", server.url("data.bin"), content=None)
    server.files["data.bin"] = Served(cuts=[HALF, 0, 0, 0, 0])
    with pytest.raises(FileError):
        get(one, tmp_path)
    server.files["data.bin"] = Served(content=newer, etag='"2"')
    assert get(one, tmp_path)[0].read_bytes() == newer
    assert server.log[-1] == (f"bytes={HALF}-", 200, 400_000)


def test_without_a_validator_and_a_checksum_nothing_is_joined(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(cuts=[HALF], etag="")
    assert get(entry(tmp_path / "entries", server.url("data.bin"), content=None), tmp_path)[0].read_bytes() == CONTENT
    assert server.log == [(None, 200, HALF), (None, 200, 400_000)]


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(has_ranges=False, cuts=[HALF])
    (path,) = get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.log == [(None, 200, HALF), (f"bytes={HALF}-", 200, 400_000)]


def test_a_transfer_that_always_ends_early(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(has_ranges=False, cuts=[HALF] * 99)
    one = entry(tmp_path / "entries", server.url("data.bin"))
    with pytest.raises(FileError, match=rf"{HALF:,} of 400,000 bytes \(4 tries\)"):
        get(one, tmp_path)
    assert len(server.log) == 5 and visible(tmp_path) == {"data.bin.download"}


def test_all_was_there_already(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served()
    waiting = tmp_path / "made" / "data.bin.download"
    waiting.mkdir(parents=True)
    (waiting / "data.bin.part").write_bytes(CONTENT)
    (path,) = get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)
    assert path.read_bytes() == CONTENT and server.log == [("bytes=400000-", 416, 0)]


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served()
    waiting = tmp_path / "made" / "data.bin.download"
    waiting.mkdir(parents=True)
    (waiting / "data.bin.part").write_bytes(CONTENT + b"more")
    assert get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)[0].read_bytes() == CONTENT
    assert server.log[-1] == (None, 200, 400_000)


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "git"])
def test_a_wrong_checksum(server: Server, tmp_path: Path, algorithm: str) -> None:
    server.files["data.bin"] = Served(content=CONTENT[:-1] + b"?")
    one = entry(tmp_path / "entries", server.url("data.bin"), algorithm=algorithm)
    with pytest.raises(FileError) as caught:
        get(one, tmp_path)
    assert one.files[0].checksum.value in str(caught.value)
    assert digest_of(server.files["data.bin"].content, algorithm) in caught.value.received
    assert visible(tmp_path) == set()


def digest_of(content: bytes, algorithm: str) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() if algorithm == "git" else \
        hashlib.new(algorithm, content).hexdigest()


def test_a_wrong_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(content=CONTENT + b"?")
    with pytest.raises(FileError, match="400,001 bytes where 400,000 were published"):
        get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)


def test_an_address_that_is_gone(server: Server, tmp_path: Path) -> None:
    one = entry(tmp_path / "entries", server.url("gone.bin"))
    with pytest.raises(FileError, match="HTTP 404") as caught:
        get(one, tmp_path)
    assert server.url("gone.bin") in caught.value.expected and len(server.log) == 1


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served()
    one = entry(tmp_path / "entries", server.url("gone.bin"), server.url("data.bin"))
    assert get(one, tmp_path)[0].read_bytes() == CONTENT
    assert [code for _, code, _ in server.log] == [404, 200]


def test_a_server_that_fails_once_and_one_that_always_fails(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(codes=[500, 503])
    assert get(entry(tmp_path / "entries", server.url("data.bin")), tmp_path)[0].read_bytes() == CONTENT
    server.log.clear()
    server.files["never.bin"] = Served(codes=[500] * 99)
    with pytest.raises(FileError, match=r"HTTP 500 .*\(4 tries\)"):
        get(entry(tmp_path / "entries", server.url("never.bin")), tmp_path / "other")
    assert len(server.log) == 4


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url("data.bin")
    with pytest.raises(FileError, match="connection refused") as caught:
        get(entry(tmp_path / "entries", url), tmp_path)
    error = caught.value
    assert url in error.expected and url in error.received
    assert str(tmp_path / "made" / "data.bin") in error.where and str(tmp_path / "made" / "data.bin") in error.todo


def test_a_file_put_there_by_hand(tmp_path: Path) -> None:
    one = entry(tmp_path / "entries", "http://127.0.0.1:9/data.bin")
    path = tmp_path / "made" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert get(one, tmp_path) == [path]
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(FileError, match="as published"):
        get(one, tmp_path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(FileError, match="399,999 bytes"):
        get(one, tmp_path)
    assert path.exists(), "what the user put there is not ours to delete"


def test_a_checksum_that_is_not_published_is_recorded_and_compared(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served()
    one = entry(tmp_path / "entries", server.url("data.bin"), content=None)
    (path,) = get(one, tmp_path)
    record = json.loads((tmp_path / "made" / "data.bin.json").read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest() and record["is_verified"] is False
    assert get(one, tmp_path) == [path]
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(FileError, match="recorded when it was first here"):
        get(one, tmp_path)
    path.unlink()
    server.files["data.bin"] = Served(content=CONTENT[::-1], etag='"2"')
    with pytest.raises(FileError, match=record["sha256"]):
        get(one, tmp_path)
    assert not path.exists()


def test_a_killed_process_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = served = Served(holds_after=HALF + 1)
    one = entry(tmp_path / "entries", server.url("data.bin"), algorithm="md5")
    code = "import sys; from pathlib import Path; from sapis.data.sets import get; from sapis.data.sets.catalogue import " \
           "read_entries; get(read_entries(Path(sys.argv[1]))[0], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "entries", tmp_path], stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "made" / "data.bin.download" / "data.bin.part", time.monotonic() + WAIT_S
    while not part.exists() or part.stat().st_size < HALF:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    served.released.set()
    assert part.stat().st_size == HALF and visible(tmp_path) == {"data.bin.download"}
    (path,) = get(one, tmp_path)
    assert path.read_bytes() == CONTENT and visible(tmp_path) == {"data.bin"}
    assert server.log[-1] == (f"bytes={HALF}-", 206, REST)


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = Served(holds_after=HALF)
    threading.Timer(0.2, server.files["data.bin"].released.set).start()
    one = entry(tmp_path / "entries", server.url("data.bin"))
    found: list[list[Path]] = []
    threads = [threading.Thread(target=lambda: found.append(get(one, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[tmp_path / "made" / "data.bin"]] * 3 and len(server.log) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="can be written"):
        get(entry(tmp_path / "entries", "http://127.0.0.1:9/data.bin"), tmp_path)


def test_without_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDependencyError, match=r"sapis-md\[sets\]"):
        get(entry(tmp_path / "entries", "http://127.0.0.1:9/data.bin"), tmp_path)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SAPIS_DATA_DIR", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "sapis"
    monkeypatch.setenv("SAPIS_DATA_DIR", str(tmp_path / "mine"))
    server.files["data.bin"] = Served()
    assert get(entry(tmp_path / "entries", server.url("data.bin"))) == [tmp_path / "mine" / "made" / "data.bin"]


# --- archives ---------------------------------------------------------------------------------------------------------------


def tar(kind: str, **files: bytes) -> bytes:
    """An archive with ``files`` below a folder."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as bundle:
            for name, content in files.items():
                bundle.writestr(f"folder/{name}", content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind.removeprefix('tar').removeprefix('.')}") as archive:
        for name, content in files.items():
            add(archive, f"folder/{name}", content)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_members_of_an_archive(server: Server, tmp_path: Path, kind: str) -> None:
    content = tar(kind, a=b"A", b=b"B", c=b"C")
    server.files["all"] = Served(content=content)
    one = entry(tmp_path / "entries", server.url("all"), name=f"all.{kind}", content=content,
                members=("folder/c", "folder/[ab]"))
    paths = get(one, tmp_path)
    assert [path.relative_to(tmp_path / "made" / "all" / "folder").name for path in paths] == ["c", "a", "b"]
    assert [path.read_bytes() for path in paths] == [b"C", b"A", b"B"]
    (tmp_path / "made" / f"all.{kind}").unlink()
    assert get(one, tmp_path) == paths and len(server.log) == 1, "an unpacked archive may be deleted"


def test_a_set_that_is_a_whole_archive(server: Server, tmp_path: Path) -> None:
    server.files["all"] = Served(content=tar("tar.gz", a=b"A"))
    one = entry(tmp_path / "entries", server.url("all"), name="all.tar.gz", content=server.files["all"].content)
    assert get(one, tmp_path) == [tmp_path / "made" / "all"]


def test_a_member_that_is_not_there(server: Server, tmp_path: Path) -> None:
    server.files["all"] = Served(content=tar("tar.gz", a=b"A"))
    one = entry(tmp_path / "entries", server.url("all"), name="all.tar.gz", content=None, members=("folder/z",))
    with pytest.raises(FileError, match="folder/z in the unpacked archive"):
        get(one, tmp_path)


@pytest.mark.parametrize("name", ["../out", "folder/../../out", "/"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_outside_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "inner" / f"evil.{kind}"
    path.parent.mkdir()
    name = str(tmp_path / "sapis-out") if name == "/" else name
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as bundle:
            bundle.writestr("good", "good")
            bundle.writestr(name, "evil")
    else:
        with tarfile.open(path, "w") as archive:
            add(archive, "good", b"good")
            add(archive, name, b"evil")
    if (kind, name[0]) == ("tar", "/"):  # the filter makes an absolute name one inside the folder
        assert {each.name for each in unpack(path).rglob("*") if each.is_file()} == {"good", "sapis-out"}
    else:
        with pytest.raises(FileError, match="stay in its folder"):
            unpack(path)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not (tmp_path / "out").exists() and not (tmp_path / "sapis-out").exists()


def link_out(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)


def device(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("null")
        member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(member)


@pytest.mark.parametrize("make", [link_out, device])
def test_links_out_and_devices_are_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "evil.tar")
    with pytest.raises(FileError, match="stay in its folder"):
        unpack(tmp_path / "evil.tar")
    assert [each.name for each in tmp_path.iterdir()] == ["evil.tar"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_truncated_archive_leaves_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"all.{kind}"
    whole = tar(kind, a=CONTENT, b=CONTENT)
    path.write_bytes(whole[:len(whole) * 2 // 3])
    (tmp_path / ".all.part").mkdir()  # as a killed process leaves it
    with pytest.raises(FileError, match="a whole archive"):
        unpack(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


# --- what is shipped --------------------------------------------------------------------------------------------------------


def test_every_entry_is_valid_and_every_name_unique() -> None:
    names = [each.name for each in listing()]
    assert len(names) == len(set(names)) >= 40
    families = {path.stem for path in ENTRIES.glob("*.yaml")}
    assert families == {"rmd17", "md17", "md22", "qm9", "oc20", "spice", "ani1x", "3bpa", "acac"}
    assert {each.family.family for each in listing()} == families
    for each in listing():
        assert each.files and all(file.addresses for file in each.files), each.name


def test_sizes_of_families() -> None:
    counts = {name: sum(each.family.family == name for each in listing()) for name in ("rmd17", "md17", "md22", "oc20")}
    assert counts == {"rmd17": 10, "md17": 10, "md22": 7, "oc20": 4}


@pytest.mark.parametrize(("place", "value", "match"), [
    (("colour",), "red", "unknown key 'colour'"),
    (("files", 0, "checksum"), {"is_verified": False, "algorithm": "md5", "value": "0" * 32}, "is_verified is false"),
    (("files", 0, "checksum"), {"is_verified": True, "algorithm": "md5", "value": "0" * 32}, "a source"),
    (("files", 0, "checksum", "value"), "abc", "hexadecimal digits"),
    (("files", 0, "addresses", 0, "url"), "ftp://example.org/x", "pattern"),
    (("files", 0, "addresses", 0, "source"), "", "a source"),
    (("files", 0, "addresses"), [], "an address of each file"),
    (("files", 0, "name"), "../x", "pattern"),
    (("files", 0, "size_bytes"), -1, "greater than 0"),
    (("sets",), {"other/one": {"files": ["data.bin"]}}, "names that are made"),
    (("sets",), {"made/one": {"files": ["else.bin"]}}, "each file in a set"),
    (("sets", "made/one", "members"), ["../../etc/passwd"], "inside the archive"),
])
def test_a_wrong_entry_is_refused(tmp_path: Path, place: tuple[str | int, ...], value: object, match: str) -> None:
    entry(tmp_path, "http://127.0.0.1:9/data.bin")
    path = tmp_path / "made.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=match):
        read_entries(tmp_path)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    entry(tmp_path, "http://127.0.0.1:9/data.bin")
    path = tmp_path / "made.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("  made/one:\n", "  made/one: {files: [data.bin]}\n  made/one:\n"), encoding="utf-8")
    with pytest.raises(ConfigError, match="given twice"):
        read_entries(tmp_path)


def test_a_file_is_called_after_its_family(tmp_path: Path) -> None:
    entry(tmp_path, "http://127.0.0.1:9/data.bin")
    (tmp_path / "made.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="as the file is called"):
        read_entries(tmp_path)


@pytest.mark.parametrize(("name", "near"), [("rmd17/etanol", "rmd17/ethanol"), ("md22", "md22/stachyose"),
                                            ("oc20/s2ef-2m", "oc20/s2ef-2M"), ("rmd71", "rmd17/aspirin")])
def test_an_unknown_name_has_near_ones(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(near)):
        get(name)


def test_git_names_a_blob_so(tmp_path: Path) -> None:
    if subprocess.run(["git", "--version"], capture_output=True).returncode:
        pytest.skip("no git")
    path = tmp_path / "data.bin"
    path.write_bytes(CONTENT)
    told = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert digest(path, "git") == told


# --- command and page -------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> tuple[int, str]:
    import typer
    from typer.testing import CliRunner

    from sapis.cli import data_get

    app = typer.Typer()
    app.command()(data_get.get)
    ending = CliRunner().invoke(app, [str(each) for each in arguments])
    return ending.exit_code, ending.output


def test_the_command_lists_and_gets(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["--list"]):
        code, text = command(*arguments)
        assert code == 0 and all(each.name in text for each in listing())
    code, text = command("rmd17", "--list")
    assert code == 0 and "rmd17/uracil" in text and "qm9" not in text
    server.files["data.bin"] = Served()
    one = entry(tmp_path / "entries", server.url("data.bin"), content=None)
    monkeypatch.setattr("sapis.data.sets.find", lambda name: one)
    code, text = command("made/one", "--to", tmp_path)
    assert code == 0 and text.splitlines()[-3].endswith("data.bin") and "no checksum is published" in text
    assert "none; length Å, energy eV; licence: none; cite: none" in text


def row(each: PublicSet) -> str:
    """A line of the table on the page."""
    frames = f"{each.part.n_frames:,}" if each.part.n_frames else ""
    return f"| `{each.name}` | {frames} | {each.family.level_of_theory} | {each.family.licence} | {each.size} | " \
           f"{'yes' if each.is_verified else 'no'} |"


def test_the_page_has_every_set() -> None:
    told = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert told == [row(each) for each in listing()]


def test_names_on_the_page_exist() -> None:
    named = re.findall(r"sapis data get (\w+(?:/[\w.-]+)?)|get\(\"([^\"]+)\"", PAGE.read_text(encoding="utf-8"))
    assert named and all(find(first or second) for first, second in named)
