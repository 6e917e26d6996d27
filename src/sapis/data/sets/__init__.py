"""Public data sets by name: what they are, where they are, and how to have them."""

from sapis.data.sets.catalogue import PublicSet, find, listing
from sapis.data.sets.fetch import cache_folder, get

__all__ = ["PublicSet", "cache_folder", "find", "get", "listing"]
