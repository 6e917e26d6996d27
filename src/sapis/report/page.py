"""The page: sections in order, one style sheet, scripts named by their hashes, one atomic file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sapis.core.files import write_text
from sapis.core.version import __version__
from sapis.report import closing, overview, performance
from sapis.report.markup import Html, asset, tag
from sapis.report.story import Report
from sapis.report.structures import structure_view

SECTIONS: tuple[tuple[str, str, Callable[[Report], Html | None]], ...] = (
    ("done", "What was done", overview.what_was_done),
    ("accuracy", "Accuracy", performance.accuracy),
    ("uncertainty", "Uncertainty", performance.uncertainty),
    ("learning", "Learning curve", performance.learning),
    ("dynamics", "Molecular dynamics", performance.dynamics),
    ("checks", "Physics checks", performance.checks),
    ("cost", "Cost", closing.cost),
    ("structures", "Structures", lambda report: structure_view(report.structures)),
    ("use", "How to use the model", closing.usage),
    ("cite", "How to cite", closing.citation),
    ("provenance", "Provenance", closing.provenance),
)


def write_report(path: Path, story: Report) -> None:
    """Write ``story`` as one HTML file that needs nothing else, neither other files nor a network.

    All text that comes from records is escaped; beyond that, the page's content security policy forbids every
    load and every script but its own two. A part whose record is absent says so in one line.
    """
    write_text(path, "<!DOCTYPE html>\n" + render(story))


def render(story: Report) -> Html:
    """The ``<html>`` element of the page."""
    scripts = [asset("3Dmol-min.js"), asset("viewer.js")] if story.structures else []
    sections = [(name, title, section(story)) for name, title, section in SECTIONS]
    present = [(name, title, found) for name, title, found in sections if found is not None]
    return document(story.title, "Model report", present, top=overview.headline(story), scripts=scripts)


def document(title: str, kicker: str, sections: Sequence[tuple[str, str, Html]], *, top: Html | None = None,
             scripts: Sequence[Html] = ()) -> Html:
    """A page: the ``<html>`` element.

    Args:
        sections: identifier, title and content of each.
        top: before the first of them.
        scripts: the only ones that may run.
    """
    body = [tag("section", tag("h2", name), content, id=identifier) for identifier, name, content in sections]
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title), tag("style", asset("report.css")),
    )
    links = (tag("a", name, href=f"#{identifier}") for identifier, name, _ in sections)
    contents = tag("nav", *links, aria_label="Contents")
    header = tag("header", tag("p", kicker, class_="kicker"), tag("h1", title), id="top")
    footer = tag("footer", f"Written by Sapis {__version__} from records alone.")
    main = tag("main", header, top, *body, footer)
    running = (tag("script", text) for text in scripts)
    return tag("html", head, tag("body", contents, main, *running), lang="en")


def _policy(scripts: Sequence[Html]) -> str:
    """A policy that allows these inline scripts, styles and pictures, and no load of any kind."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
            "base-uri 'none'; form-action 'none'")
