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
    if "architecture" not in header:
        raise FileError(expected="a model bundle", received="a sapis file of another kind (a checkpoint?)", where=str(path),
                        todo="give the .sapis file that the training wrote")
    if header["format_version"] > FORMAT_VERSION:
        raise FileError(expected=f"format_version <= {FORMAT_VERSION}", received=str(header["format_version"]),
                        where=str(path), todo="update sapis-md")
    return Bundle(header["architecture"], header["settings"], weights, header["card"])


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically, with the hash of both."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    with replacing(path) as part:
        save_file(tensors, part, metadata={"sapis": text, "content_hash": hash_tensors(tensors, text)})


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
        text = metadata["sapis"]
        problem = "content that does not match its hash: truncated or altered"
        if metadata["content_hash"] == hash_tensors(tensors, text):
            return tensors, json.loads(text)
    except KeyError as error:
        problem = f"a safetensors file without the entry {error}: not written by sapis"
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"not a whole safetensors file ({error})"
    raise FileError(expected="a whole file written by sapis (safetensors with a sapis header)", received=problem,
                    where=str(path), todo="restore the file from its source, or make it again")


def hash_tensors(tensors: dict[str, torch.Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, and of ``text``."""
    parts = [text.encode()]
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return hash_bytes(*parts)
