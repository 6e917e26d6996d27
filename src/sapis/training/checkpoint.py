"""The state of a training in one safetensors file: tensors, and JSON in the header. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sapis.core.errors import FileError
from sapis.core.files import hash_bytes, replacing, require_file


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write atomically; ``state`` holds JSON values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"state": json.dumps(state), "content_hash": hash_tensors(tensors, state)}
    with replacing(path) as part:
        save_file(tensors, part, metadata=header)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and state.

    Raises:
        FileError: missing, empty, truncated, altered or foreign file.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        state = json.loads(header["state"])
        is_whole = header["content_hash"] == hash_tensors(tensors, state)
        problem = "content that does not match its hash: altered after writing"
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        is_whole, problem = False, f"{type(error).__name__}: {error}"
    if not is_whole:
        raise FileError(
            expected="a whole file written by sapis (safetensors)", received=problem, where=str(path),
            todo="restore it from its source, or make it again (a checkpoint: delete it, training starts afresh)",
        )
    return tensors, state


def hash_tensors(tensors: dict[str, torch.Tensor], state: Any = None) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, and of ``state``."""
    parts = [json.dumps(state, sort_keys=True).encode()]
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.view(-1).view(torch.uint8).numpy().tobytes()]
    return hash_bytes(*parts)
