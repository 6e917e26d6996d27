"""Settings: typed, frozen, with unknown keys refused and the nearest known key suggested."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from sapis.core.errors import ConfigError
from sapis.core.files import read_text


class Config(BaseModel):
    """Ancestor of every group of settings."""

    # Keys that are no fields but stand for values of several.
    shorthands: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def defaults(**values: Any) -> AfterValidator:
    """For a group of settings that has other defaults than its class: those hold, too, where the group names some of its keys."""
    def fill(config: C) -> C:
        return config.model_copy(update={key: value for key, value in values.items() if key not in config.model_fields_set})

    return AfterValidator(fill)


def parse_config(kind: type[C], values: Any, *, where: str) -> C:
    """Check ``values`` (a mapping, as read from YAML or JSON) and build a ``kind``.

    Raises:
        ConfigError: an unknown key, a missing key, or a value of the wrong type or range.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            expected=f"a mapping of settings ({', '.join(kind.model_fields)})",
            received=f"{type(values).__name__}: {values!r:.80}", where=where,
            todo="write 'key: value' lines; `sapis settings` lists the keys",
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def load_yaml(path: Path) -> Any:
    """Read YAML as plain data (no tags, no code, no key twice).

    Raises:
        ConfigError: the text is not YAML, or not plain.
        FileError: the file is missing or empty.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            expected="a YAML file of plain values", received=str(error).replace("\n", " "), where=str(path),
            todo="mend the line named; `sapis init` makes a commented example",
        ) from None


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that is given twice is an error: by itself it keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _explain(kind: type[Config], error: ValidationError, where: str) -> ConfigError:
    """The first problem of a pydantic error, in our four parts."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    place = f"{where}: {'.'.join(path)}" if path else where
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it, or see the keys listed above"
        return ConfigError(
            expected=f"one of the keys {', '.join(known)}", received=f"the unknown key {path[-1]!r}",
            where=place, todo=hint,
        )
    if first["type"] == "missing":
        return ConfigError(expected=f"the key {path[-1]!r}", received="nothing", where=place, todo="add it")
    return ConfigError(
        expected=first["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
        received=f"{first['input']!r:.120}", where=place, todo="mend this value; `sapis settings` says what the keys mean",
    )


def _known_keys(kind: type[Config], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        inner = _inner_config(field.annotation) if field else None
        if inner is None:
            return []
        kind = inner
    return [*kind.shorthands, *kind.model_fields]


def _inner_config(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner_config(argument)) is not None:
            return found
    return None
