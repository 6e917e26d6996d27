"""`sapis label`: energies and forces of structures, by any method, into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def label(
    inputs: Annotated[list[Path], typer.Argument(help="Structures, in any format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The store; it is made, or appended to.")],
    method: Annotated[str | None, typer.Option(
        help="gfn2, gfn1, dft, openmm, potential, emt, lj, command or ase; default gfn2.")] = None,
    argument: Annotated[list[str] | None, typer.Option(help="Of the method, as name=value (YAML); several times.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML: labeler, limits, cluster, workers.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Longest time of a label.")] = None,
    memory_mb: Annotated[float | None, typer.Option("--memory-MB", help="Most memory of a label's process.")] = None,
    retries: Annotated[int | None, typer.Option(min=0, help="Of a label whose process died.")] = None,
    retry_failures: Annotated[bool, typer.Option(help="Compute again what has failed before.")] = False,
    index: Annotated[str | None, typer.Option(help="Which frames of each input, such as :1000 or ::10.")] = None,
) -> None:
    """Label structures into a store, in parallel. The same command goes on where it was stopped."""
    from sapis.data.formats import parse_index
    from sapis.pipeline.label import FAILURES, LabelRequest, label_files, read_request

    request = read_request(config) if config else LabelRequest()
    given = {"timeout_s": timeout_s, "memory_MB": memory_mb, "retries": retries}
    limits = {name: value for name, value in given.items() if value is not None}
    request = _updated(request, method, argument or [], limits, workers)
    found = label_files(inputs, output, request, index=parse_index(index, inputs[0]) if index else None,
                        retry_failures=retry_failures)
    typer.echo(f"{found.level}: {found.n_read:,} structures, {found.n_known:,} known, {found.n_labelled:,} labelled "
               f"({found.cpu_seconds:.1f} CPU-s), {sum(found.failures.values()):,} failed")
    if found.failures:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in found.failures.most_common())
        typer.echo(f"failures: {kinds}; reasons in {output / FAILURES}")


def _updated(request: Any, method: str | None, arguments: list[str], limits: dict[str, Any], workers: int | None) -> Any:
    """The settings of a file with those of the command line in their place, checked as those of a file are."""
    import yaml

    from sapis.core.config import parse_config
    from sapis.core.errors import ConfigError
    from sapis.pipeline.label import LabelRequest

    given: dict[str, Any] = {}
    for text in arguments:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(expected="name=value, such as functional=PBE", received=repr(text), where="--argument",
                              todo="write the value after an equals sign")
        given[name] = yaml.safe_load(value)
    values = request.model_dump(mode="json")
    if method is not None and method != values["labeler"]["name"]:
        values["labeler"] |= {"name": method, "arguments": {}, "calculator": None}
    values["labeler"]["arguments"] |= given
    values["limits"] |= limits
    values["workers"] = workers or values["workers"]
    return parse_config(LabelRequest, values, where="sapis label")
