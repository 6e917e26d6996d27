"""A downloader for pooch that goes on after an interruption; pooch by itself starts again.

Imported only where something is to be downloaded: ``requests`` comes with ``pooch``, an optional package.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from rich.progress import Progress, TaskID

from sapis.core.files import read_json, write_json
from sapis.core.progress import progress_bar

MB = 1_000_000
CHUNK_BYTES = 1 << 16
TIMEOUTS_S = (20.0, 60.0)  # to connect, and between two pieces
TRIES = 4  # without a byte of progress
PAUSE_S = 0.5  # before the second try; doubled before each further one
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes worth another try


class TransferError(Exception):
    """A file that could not be had from one address."""


class _PassingError(Exception):
    """A failure that another try may mend."""


@dataclass
class Download:
    """Fetch one file into ``part``, from where an earlier run stopped, and hand it to pooch when it is whole.

    ``part`` grows with every piece that arrives, so a killed process loses nothing. An HTTP validator (RFC 9110, If-Range)
    kept beside it makes sure that both halves are of the same version of the file.

    Args:
        part: where the bytes are collected; survives failures.
        size_bytes: of the whole file, if known.
        is_verified: whether a published checksum will be compared in the end, so that halves without a validator may be
            joined.
    """

    part: Path
    size_bytes: int | None
    is_verified: bool
    _note: Path = field(init=False)

    def __post_init__(self) -> None:
        self._note = self.part.with_name(self.part.name + ".json")

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """pooch's interface: put the content of ``url`` into ``output_file``.

        Raises:
            TransferError: the server says no, or nothing new arrived in several tries.
        """
        failures, largest = 0, self._n_bytes()
        with progress_bar(is_transient=True) as bar:
            task = bar.add_task(self.part.stem, total=None, note="MB")
            while True:
                try:
                    self._transfer(url, bar, task)
                    break
                except _PassingError as error:
                    failures = 0 if self._n_bytes() > largest else failures + 1
                    largest = max(largest, self._n_bytes())
                    if failures >= TRIES:
                        raise TransferError(f"{error} ({TRIES} tries)") from None
                    time.sleep(PAUSE_S * 2 ** max(failures - 1, 0))
        self.part.replace(output_file)
        self._note.unlink(missing_ok=True)

    def _n_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, url: str, bar: Progress, task: TaskID) -> None:
        """One request for what is missing."""
        n_have, total = self._n_bytes(), None
        try:
            with requests.get(url, headers=self._headers(url), stream=True, timeout=TIMEOUTS_S) as answer:
                if answer.status_code == requests.codes.requested_range_not_satisfiable:
                    return self._no_more(answer, n_have)
                _refuse_errors(answer)
                start, total = self._extent(answer, n_have)
                if start == 0:
                    self.part.unlink(missing_ok=True)  # before the note, which must never speak of older bytes
                    self._remember(url, answer)
                self._collect(answer, start, total, bar, task)
        except requests.exceptions.RequestException as error:
            if "NameResolutionError" in str(error):  # offline: each further try may take half a minute
                raise TransferError("no connection: the name of the server cannot be looked up") from None
            raise _PassingError(_plain(error) if total is None else _ended(self._n_bytes(), total)) from None
        self._require_all(total)

    def _headers(self, url: str) -> dict[str, str]:
        """Ask for the rest, if what is there can be continued; compressed on the way, bytes could not be counted."""
        headers = {"Accept-Encoding": "identity"}
        note = read_json(self._note) if self._note.exists() else {}
        validator = note.get("validator", "") if note.get("url") == url else ""
        if (n_bytes := self._n_bytes()) and (validator or self.is_verified):
            headers["Range"] = f"bytes={n_bytes}-"
            if validator:
                headers["If-Range"] = validator
        return headers

    def _remember(self, url: str, answer: requests.Response) -> None:
        tag = answer.headers.get("ETag", "")
        strong = "" if tag.startswith("W/") else tag
        write_json(self._note, {"url": url, "validator": strong or answer.headers.get("Last-Modified", "")})

    def _extent(self, answer: requests.Response, n_have: int) -> tuple[int, int | None]:
        """First byte of this answer, and bytes of the whole file."""
        if answer.status_code == requests.codes.partial_content:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if not found or int(found[1]) != n_have:
                self.part.unlink(missing_ok=True)
                raise _PassingError(f"an answer to another range than was asked for: {answer.headers.get('Content-Range')}")
            return n_have, self.size_bytes if found[2] == "*" else int(found[2])
        length = answer.headers.get("Content-Length")
        if length is not None and self.size_bytes not in (None, int(length)):
            raise TransferError(f"a file of {int(length):,} bytes where {self.size_bytes:,} were published")
        return 0, int(length) if length is not None else self.size_bytes

    def _collect(self, answer: requests.Response, start: int, total: int | None, bar: Progress, task: TaskID) -> None:
        bar.update(task, total=total and total // MB)
        n_bytes, since = start, time.monotonic()
        with self.part.open("ab", buffering=0) as file:
            for piece in answer.iter_content(CHUNK_BYTES):
                file.write(piece)
                n_bytes += len(piece)
                speed = (n_bytes - start) / MB / max(time.monotonic() - since, 1e-3)
                bar.update(task, completed=n_bytes // MB, note=f"MB, {speed:.1f} MB/s")

    def _no_more(self, answer: requests.Response, n_have: int) -> None:
        """HTTP 416: all is here already, or what is here is not of this file."""
        if answer.headers.get("Content-Range") != f"bytes */{n_have}":
            self.part.unlink(missing_ok=True)
            raise _PassingError("the server has less than was fetched before")

    def _require_all(self, total: int | None) -> None:
        n_bytes = self._n_bytes()
        if total is not None and n_bytes != total:
            if n_bytes > total:
                self.part.unlink(missing_ok=True)
            raise _PassingError(_ended(n_bytes, total))


def _refuse_errors(answer: requests.Response) -> None:
    reason = f"HTTP {answer.status_code} {answer.reason}"
    if answer.status_code in PASSING:
        raise _PassingError(reason)
    if answer.status_code not in (requests.codes.ok, requests.codes.partial_content):
        raise TransferError(reason)


def _ended(n_bytes: int, total: int) -> str:
    return f"the transfer ended after {n_bytes:,} of {total:,} bytes"


def _plain(error: requests.exceptions.RequestException) -> str:
    """What went wrong, without the names of Python objects."""
    text = str(error)
    for sign, meaning in {
        "Connection refused": "connection refused", "timed out": "no answer in time",
        "IncompleteRead": "the transfer ended early", "Connection reset": "the connection was cut",
        "Connection aborted": "the connection was cut", "Network is unreachable": "the network cannot be reached",
    }.items():
        if sign in text:
            return meaning
    return f"{type(error).__name__}: {text}"[:200]
