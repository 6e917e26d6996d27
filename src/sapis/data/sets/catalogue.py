"""What is known of each public data set: one YAML file per family below ``entries``, read as data and checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from sapis.core.config import Config, load_yaml, parse_config
from sapis.core.errors import ConfigError

ENTRIES = Path(__file__).parent / "entries"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
# git: the name that git gives a file, the SHA-1 of a short header and the content.
N_DIGITS = {"md5": 32, "sha256": 64, "git": 40}


class Checksum(Config):
    """What the bytes of a file must hash to.

    Attributes:
        is_verified: read in a published source. If not, there is no value: SHA-256 of the first file is recorded instead.
        source: where the checksum, and the size of the file, were read.
    """

    is_verified: bool
    algorithm: Literal["md5", "sha256", "git"] | None = None
    value: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.is_verified and (self.algorithm or self.value):
            raise ValueError("no checksum where is_verified is false: what nobody published must not be compared with")
        if self.is_verified and not (self.algorithm and self.source):
            raise ValueError("an algorithm, a value and a source where is_verified is true")
        if self.algorithm and not re.fullmatch(rf"[0-9a-f]{{{N_DIGITS[self.algorithm]}}}", self.value):
            raise ValueError(f"{N_DIGITS[self.algorithm]} hexadecimal digits in lower case")
        return self


class Address(Config):
    """Where a file is served.

    Attributes:
        url: of the file, or of its folder, with a slash at the end.
        is_verified: read in a published source.
        source: that source.
    """

    url: str = Field(pattern=r"^https?://[^\s/]+/\S*$")
    is_verified: bool
    source: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.is_verified and not self.source:
            raise ValueError("a source where is_verified is true")
        return self


class RemoteFile(Config):
    """One file to fetch.

    Attributes:
        name: in the cache.
        addresses: the same file in several places, tried in turn; none for those of the family.
        size_bytes: exact; None where it is not published.
        size_about: as rounded by the publisher, where it is not exact.
        checksum: of the whole file.
    """

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    addresses: tuple[Address, ...] = ()
    size_bytes: int | None = Field(default=None, gt=0)
    size_about: str = ""
    checksum: Checksum

    @property
    def is_archive(self) -> bool:
        """Whether the file is one to unpack."""
        return self.name.endswith(ARCHIVES)

    @property
    def is_verified(self) -> bool:
        """Whether the checksum and an address were read in a published source."""
        return self.checksum.is_verified and any(address.is_verified for address in self.addresses)


class Units(Config):
    """Units in the files as they are published; "" where there is no such label."""

    length: str
    energy: str
    forces: str = ""


class Part(Config):
    """One set of a family.

    Attributes:
        n_frames: labelled structures; None where the number is not published.
        files: names of files of the family.
        members: of the archives among them, as patterns; none for everything.
    """

    n_frames: int | None = Field(default=None, gt=0)
    files: tuple[str, ...] = Field(min_length=1)
    members: tuple[str, ...] = ()

    @field_validator("members")
    @classmethod
    def _inside(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        if any(PurePosixPath(each).is_absolute() or ".." in PurePosixPath(each).parts for each in members):
            raise ValueError("paths inside the archive")
        return members


class Family(Config):
    """Sets of one publication: a file below ``entries``.

    Attributes:
        splits: what the publication says of training and test frames.
        format: of the files, as a reader needs to know it.
        addresses: folders that hold every file without an address of its own.
        sets: by name, ``family`` or ``family/member``.
    """

    family: str = Field(pattern=r"^[a-z0-9]+$")
    title: str
    level_of_theory: str
    units: Units
    licence: str
    citation: str
    format: str
    splits: str
    notes: str = ""
    addresses: tuple[Address, ...] = ()
    files: tuple[RemoteFile, ...] = Field(min_length=1)
    sets: dict[str, Part] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            raise ValueError("each file once")
        if any(not (file.addresses or self.addresses) for file in self.files):
            raise ValueError("an address of each file")
        if any(not address.url.endswith("/") for address in self.addresses):
            raise ValueError("addresses of folders, with a slash at the end")
        if foreign := [name for name in self.sets if name.split("/")[0] != self.family or name.count("/") > 1]:
            raise ValueError(f"names that are {self.family} or {self.family}/MEMBER, unlike {foreign[0]!r}")
        used = {name for part in self.sets.values() for name in part.files}
        if odd := used.symmetric_difference(names):
            raise ValueError(f"each file in a set and known, unlike {min(odd)!r}")
        return self

    def file(self, name: str) -> RemoteFile:
        """A file with its addresses in full."""
        (found,) = [file for file in self.files if file.name == name]
        if found.addresses:
            return found
        full = tuple(each.model_copy(update={"url": each.url + found.name}) for each in self.addresses)
        return found.model_copy(update={"addresses": full})


@dataclass(frozen=True)
class PublicSet:
    """A set by its name.

    Attributes:
        name: as ``rmd17/ethanol``.
        part: what of the family it is.
        family: what it shares with the others.
    """

    name: str
    part: Part
    family: Family

    @property
    def files(self) -> list[RemoteFile]:
        """What must be fetched."""
        return [self.family.file(name) for name in self.part.files]

    @property
    def is_verified(self) -> bool:
        """Whether checksums and addresses of all files were read in a published source."""
        return all(file.is_verified for file in self.files)

    @property
    def size(self) -> str:
        """Size of the download, "≈" where it is rounded, ">" where it is not known of all files, "" of none."""
        files = self.files
        n_bytes = sum(file.size_bytes or 0 for file in files)
        if all(file.size_bytes for file in files):
            return readable(n_bytes)
        if len(files) == 1:
            return f"≈ {files[0].size_about}" if files[0].size_about else ""
        return f"> {readable(n_bytes)}" if n_bytes else ""


def readable(n_bytes: int) -> str:
    """``344000000`` -> ``344 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} B"


def read_entries(folder: Path = ENTRIES) -> list[PublicSet]:
    """All sets of the YAML files in ``folder``, family after family. No name comes twice: each begins with its file's.

    Raises:
        ConfigError: an unknown key, a missing one, a value that cannot be, or a name given twice.
    """
    found = []
    for path in sorted(folder.glob("*.yaml")):
        family = parse_config(Family, load_yaml(path), where=str(path))
        if family.family != path.stem:
            raise ConfigError(expected=f"the family {path.stem!r}, as the file is called", received=repr(family.family),
                              where=f"{path}: family", todo="rename one of them")
        found += [PublicSet(name, part, family) for name, part in family.sets.items()]
    return found


@cache
def listing() -> tuple[PublicSet, ...]:
    """Every set that `get` knows."""
    return tuple(read_entries())


def find(name: str, sets: Sequence[PublicSet] | None = None) -> PublicSet:
    """The set called ``name``.

    Args:
        sets: those to look among; default: `listing`.

    Raises:
        ConfigError: there is none; the message has the nearest names.
    """
    known = {each.name: each for each in (listing() if sets is None else sets)}
    if name in known:
        return known[name]
    families = {each.family.family for each in known.values()}
    near = [] if name in families else difflib.get_close_matches(name, known, n=3)
    family = next(iter(difflib.get_close_matches(name, families, n=1)), None)
    near = near or [each for each in known if each.split("/")[0] == family]
    raise ConfigError(
        expected="the name of a public data set, as rmd17/ethanol", received=repr(name), where="NAME",
        todo=f"did you mean {' or '.join(near)}?" if near else "`sapis data get --list` shows all names",
    )
