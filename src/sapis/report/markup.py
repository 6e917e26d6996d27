"""HTML that is escaped by construction: only what is marked as `Html` passes unescaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from sapis.report.story import is_number

ABSENT = "–"
UNITS = {"K": "K", "A": "Å", "fs": "fs", "ps": "ps", "eV": "eV", "GPa": "GPa"}
VOID = frozenset({"br", "meta", "hr"})


class Html(str):
    """Markup that needs no escaping. An f-string or ``+`` makes a plain str of it, which is escaped again."""

    __slots__ = ()


def markup(value: Any) -> Html:
    """``value`` as it may stand in a page: `Html` as it is, None as nothing, anything else escaped."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(str(value), quote=True))


def asset(name: str) -> Html:
    """The text of a file that ships with the report (trusted, so not escaped)."""
    return Html(resources.files("sapis.report").joinpath("assets", name).read_text(encoding="utf-8"))


def join(parts: Iterable[Any], separator: str = "") -> Html:
    """The parts one after another, with an (escaped) separator."""
    return Html(markup(separator).join(markup(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_`` stands for class, ``_`` for ``-``; None and False leave an attribute out."""
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"')
    opening = f"<{name}{''.join(parts)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def number(value: Any, digits: int = 3, *, unit: str = "") -> Html:
    """A measured number with ``digits`` significant digits (integers in full); – if absent."""
    return _typeset(value, digits, unit, is_trimmed=False)


def chosen(value: Any, *, unit: str = "") -> Html:
    """A number that somebody chose, such as a limit or a setting: no zeros that say nothing; – if absent."""
    return _typeset(value, 6, unit, is_trimmed=True)


def significant(value: float, digits: int = 3) -> str:
    """Plain text of a number between 0.001 and a million with ``digits`` significant digits."""
    if isinstance(value, int):
        decimals = 0
    else:
        exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded value: 99.96 is 100
        decimals = max(0, digits - 1 - exponent) if value else 0
    text = f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"
    return text.replace(",", "\u202f").replace("-", "−")


def _typeset(value: Any, digits: int, unit: str, *, is_trimmed: bool) -> Html:
    if not is_number(value):
        return Html(ABSENT)
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e6 or (isinstance(value, int) and abs(value) < 10**9)
    text, power = significant(value, digits), None
    if not is_plain:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text, power = mantissa.replace("-", "−"), str(int(exponent)).replace("-", "−")
    if is_trimmed and "." in text:
        text = text.rstrip("0").rstrip(".")
    parts = [text] if power is None else [text, "\u2009×\u200910", tag("sup", power)]
    return join([*parts, f"\u202f{unit}" if unit else None])


def label(key: str) -> str:
    """A record's key as words: ``max_bond_change_A`` becomes ``Max bond change (Å)``."""
    words = key.split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 else None
    text = " ".join(words[:-1] if unit else words)
    return f"{text[:1].upper()}{text[1:]}" + (f" ({unit})" if unit else "")


def duration(seconds: Any) -> Html:
    """Seconds in the unit a person would use; – if absent."""
    if not is_number(seconds):
        return Html(ABSENT)
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return number(seconds / size, unit=unit)
    return number(float(seconds), unit="s")


def table(head: Sequence[Any], body: Iterable[Sequence[Any]], *, n_text: int = 1, class_: str = "") -> Html:
    """A table; the first ``n_text`` columns are text, the others numbers (aligned to the right)."""
    def line(cells: Sequence[Any], kind: str) -> Html:
        classes = (None if i < n_text else "num" for i in range(len(cells)))
        return tag("tr", *(tag(kind, cell, class_=name) for cell, name in zip(cells, classes, strict=True)))

    inner = tag("table", tag("thead", line(head, "th")), tag("tbody", *(line(cells, "td") for cells in body)),
                class_=class_ or None)
    return tag("div", inner, class_="scroll")


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Names and values as a definition list; pairs without a value are left out."""
    kept = [(name, value) for name, value in pairs if value is not None and value not in ("", ABSENT)]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in kept), class_="facts")


def figure(drawing: Html | None, caption: Any) -> Html | None:
    """A drawing over its caption; nothing where there is no drawing."""
    return None if drawing is None else tag("figure", drawing, tag("figcaption", caption))


def absent(what: str) -> Html:
    """The line that stands in for a section without its record."""
    return tag("p", what, class_="absent")


def folded(summary: Any, *content: Any, is_open: bool = False) -> Html:
    """Content behind a line that opens it."""
    return tag("details", tag("summary", summary), *content, open=is_open)
