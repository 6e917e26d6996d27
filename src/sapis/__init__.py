"""SAPIS-MD: interatomic potentials that are accurate, checked, and say what they cost.

>>> from sapis import load                                    # doctest: +SKIP
>>> atoms.calc = load("model.sapis").calculator()             # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from sapis.core.version import __version__

if TYPE_CHECKING:
    from sapis.api import Model, load

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `sapis --help` and the error tree must not wait for it.
    if name in ("Model", "load"):
        from sapis import api

        return getattr(api, name)
    raise AttributeError(f"module 'sapis' has no attribute {name!r}")
