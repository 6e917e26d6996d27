"""The model bundle: one safetensors file with weights, and JSON that says everything else about the model.

Loading a bundle never runs code that it holds. Its header is JSON: ``format_version``, ``architecture``, ``settings``
(what builds the model), ``card`` (units, level of theory, data hashes, training, test figures, physics checks). A hash
over all of it makes a truncated or altered file unreadable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sapis.core.errors import FileError
from sapis.core.files import hash_bytes, replacing, require_file

FORMAT_VERSION = 1
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å^3, tension positive"}


@dataclass(frozen=True)
class Bundle:
    """What a bundle file holds.

    Attributes:
        architecture: name of the model class.
        settings: JSON values that build the model without its weights.
        weights: named tensors.
        card: where the model comes from and what was measured of it.
    """

    architecture: str
    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    card: dict[str, Any] = field(default_factory=dict)


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write atomically."""
    write_tensors(path, bundle.weights, {
        "format_version": FORMAT_VERSION, "architecture": bundle.architecture, "settings": bundle.settings,
        "units": UNITS, "card": bundle.card,
    })


def read_bundle(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        FileError: missing, empty, truncated, altered or foreign file, or a newer format.
    """
    weights, header = read_tensors(path)
    version = header.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FileError(expected=f"format_version <= {FORMAT_VERSION}", received=str(version),
                        where=str(path), todo="update sapis-md")
    if version is None or not header.keys() >= {"architecture", "settings", "card"}:
        raise FileError(expected="a model bundle", received="a sapis file of another kind (a checkpoint?)", where=str(path),
                        todo="give the .sapis file that the training wrote")
    return Bundle(header["architecture"], header["settings"], weights, header["card"])


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically, with the hash of both.

    The same content gives the same bytes, so the metadata have one entry: safetensors writes several in random order.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.loads(_text(header))  # as a reader will see it
    text = _text({**header, "content_hash": hash_tensors(tensors, _text(header))})
    with replacing(path) as part:
        try:
            save_file(tensors, part, metadata={"sapis": text})
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file of `write_tensors`.

    Raises:
        FileError: missing, empty, truncated, altered or foreign file.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(metadata["sapis"])
        problem = "content that does not match its hash: truncated or altered"
        if header.pop("content_hash") == hash_tensors(tensors, _text(header)):
            return tensors, header
    except (KeyError, AttributeError, TypeError) as error:
        problem = f"a safetensors file that sapis did not write ({error})"
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"not a whole safetensors file ({error})"
    raise FileError(expected="a whole file written by sapis (safetensors with a sapis header)", received=problem,
                    where=str(path), todo="restore the file from its source, or make it again")


def _text(header: dict[str, Any]) -> str:
    return json.dumps(header, sort_keys=True)


def hash_tensors(tensors: dict[str, torch.Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, and of ``text``."""
    parts = [text.encode()]
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return hash_bytes(*parts)
