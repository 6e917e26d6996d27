"""`sapis settings`: every key of every file of settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sapis.core.config import Config

HEAD = """# Settings

Every key of the files that `sapis` reads, as `sapis settings` prints them; `sapis settings training` prints one group. Unknown
keys are refused, and so are values that are not as said here."""


def settings(
    group: Annotated[str | None, typer.Argument(help="One group, such as training; default: all.")] = None,
) -> None:
    """Keys of recipes and other settings: values, defaults and what they mean."""
    from sapis.core.errors import ConfigError

    if group is None:
        text = settings_page()
    else:
        sections = {name.lower(): section for name, section in _sections().items()}
        if group.lower() not in sections:
            raise ConfigError(expected=f"one of {', '.join(sections)}", received=repr(group), where="sapis settings",
                              todo="name one of these, or none for all")
        text = sections[group.lower()]
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text, hyperlinks=False))


def settings_page() -> str:
    """docs/settings.md, which is made from the classes: ``sapis settings > docs/settings.md``."""
    return "\n\n".join([HEAD, *_sections().values()])


def _sections() -> dict[str, str]:
    """By the name of the group; what commands read first."""
    from sapis.core.settings import group_name, settings_tables

    files = _files()
    tables = settings_tables([*files.values(), *_arguments()])
    read_by = {group_name(kind): f"Read by `{command}`. " for command, kind in files.items()}
    names = [*read_by, *sorted(set(tables) - set(read_by))]
    return {name: f"## {name}\n\n{read_by.get(name, '')}{tables[name]}" for name in names}


def _files() -> dict[str, type[Config]]:
    """The commands that read a file of settings, and what is in it."""
    from sapis.generate.organic import OrganicConfig
    from sapis.pipeline.active_config import ActiveRecipe
    from sapis.pipeline.auto_config import AutoConfig
    from sapis.pipeline.label import LabelRequest
    from sapis.pipeline.recipe import Recipe
    from sapis.pipeline.train import TrainRequest
    from sapis.scaling.plan import StudyConfig

    return {"sapis run RECIPE": Recipe, "sapis active RECIPE": ActiveRecipe, "sapis train --config": TrainRequest,
            "sapis label --config": LabelRequest, "sapis scale plan --config": StudyConfig,
            "sapis scale auto --config": AutoConfig, "sapis data generate organic --config": OrganicConfig}


def _arguments() -> list[type[Config]]:
    """Of methods of labels, under ``labeler: {arguments: …}``."""
    from sapis.labelers.methods.command import CommandConfig
    from sapis.labelers.methods.dft import DftConfig
    from sapis.labelers.methods.openmm import OpenMMConfig

    return [CommandConfig, DftConfig, OpenMMConfig]
