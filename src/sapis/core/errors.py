"""One error tree; every message says what was expected, what came, where, and what to do."""

from __future__ import annotations


class SapisError(Exception):
    """A problem that the user can act on. The command line prints it and exits with code 2.

    Args:
        expected: what would have been right.
        received: what was found instead.
        where: file, frame, key or setting.
        todo: what to do about it.
    """

    def __init__(self, *, expected: str, received: str, where: str, todo: str) -> None:
        self.expected, self.received, self.where, self.todo = expected, received, where, todo
        super().__init__(f"expected: {expected}\nreceived: {received}\nwhere:    {where}\nwhat to do: {todo}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive the trip between processes without this.
        return _rebuild, (type(self), self.expected, self.received, self.where, self.todo)


def _rebuild(kind: type[SapisError], expected: str, received: str, where: str, todo: str) -> SapisError:
    return kind(expected=expected, received=received, where=where, todo=todo)


class ConfigError(SapisError):
    """A recipe or an option is wrong."""


class DataError(SapisError):
    """A structure, a label or a data file is wrong."""


class FileError(SapisError):
    """A file is missing, empty, truncated, altered or of a foreign kind."""


class ModelError(SapisError):
    """A model cannot be used in the way it was asked to."""


class LabelerError(SapisError):
    """A labeler cannot be built (a failed label is a recorded value, not an error)."""


class TrainingError(SapisError):
    """Training cannot start or cannot go on."""


class SimulationError(SapisError):
    """A simulation left the region in which its result means anything."""


class MissingDependencyError(SapisError):
    """An optional package is needed; the message holds the command that installs it."""

    @classmethod
    def of(cls, package: str, *, extra: str, purpose: str) -> MissingDependencyError:
        """The error for an optional ``package`` that ``pip install sapis-md[extra]`` would bring."""
        return cls(
            expected=f"the package {package!r}, needed for {purpose}",
            received="it is not installed",
            where=f"import {package}",
            todo=f"pip install 'sapis-md[{extra}]'  (or: pip install {package})",
        )
