"""What can be set, in words: the keys of a group of settings, their values and what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sapis.core.config import Config

LIMITS = {"exclusiveMinimum": "> {:g}", "minimum": "≥ {:g}", "exclusiveMaximum": "< {:g}", "maximum": "≤ {:g}"}
BEYOND = 1e9  # limits that only keep a number in its type
NAMES = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}
ATTRIBUTE = re.compile(r"^ {4}(?P<names>\w+(?:, \w+)*): (?P<meaning>.*?)(?=^ {4}\S|\Z)", re.MULTILINE | re.DOTALL)


def group_name(kind: type[Config]) -> str:
    """Of the section about a group: ``StopRules`` is "Stop rules"."""
    return _readable(kind.__name__)


def settings_tables(kinds: Sequence[type[Config]]) -> dict[str, str]:
    """A Markdown table of the keys of each of ``kinds`` and of every group within them, by the name of the group."""
    schemas = dict[str, dict[str, Any]]()
    for kind in kinds:
        schema = kind.model_json_schema()
        schemas |= {kind.__name__: schema, **schema.get("$defs", {})}
    return {_readable(name): _table(schema, schemas) for name, schema in schemas.items()}


def _readable(name: str) -> str:
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z]|$)|[A-Z][a-z]*", name.removesuffix("Config"))
    return " ".join([words[0], *(word if word.isupper() else word.lower() for word in words[1:])])


def _table(schema: dict[str, Any], groups: dict[str, dict[str, Any]]) -> str:
    about, _, attributes = schema.get("description", "").partition("Attributes:\n")
    meanings = {name: re.sub(r"\s+", " ", found["meaning"]).strip()
                for found in ATTRIBUTE.finditer(attributes) for name in found["names"].split(", ")}
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        default = "needed" if key in schema.get("required", ()) else _default(field, groups)
        meaning = field.get("description") or meanings.get(key, "")
        cells = f"`{key}`", _value(field), default, meaning if ". " in meaning else meaning.removesuffix(".")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([re.sub(r"\s+", " ", about).strip(), "", *rows]).replace("``", "`")


def _value(schema: dict[str, Any]) -> str:
    """What may be given, from the JSON schema of a field."""
    if "$ref" in schema:
        name = _readable(schema["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower().replace(' ', '-')})"
    if "anyOf" in schema:
        return " or ".join(_value(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return ", ".join(_value(each) for each in schema["prefixItems"])
    if kind == "array":
        return f"list of: {_value(schema['items'])}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"keys and: {_value(inner)}" if isinstance(inner, dict) else "keys and values"
    name = "path" if schema.get("format") == "path" else NAMES.get(kind or "", "anything")
    limits = [text.format(schema[key]) for key, text in LIMITS.items() if key in schema and schema[key] < BEYOND]
    return ", ".join([name, *limits])


def _default(schema: dict[str, Any], groups: dict[str, dict[str, Any]]) -> str:
    default = schema.get("default")
    if default is None or default in ("", [], {}):
        return ""
    if isinstance(default, dict):  # of a group: what differs from its own
        own = groups[schema["$ref"].rpartition("/")[2]]["properties"]
        return ", ".join(f"`{key}: {value}`" for key, value in default.items()
                         if value not in ([], {}) and value != own[key].get("default"))
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ", ".join(f"{each}" for each in default)
    return f"{default:g}" if isinstance(default, float) else f"{default}"
