"""Pages read back as a reader finds them: elements, ids, addresses, texts."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from typing_help import present

from harness.report.site.cells import leaves, show
from harness.results.schema import Result


class Document(HTMLParser):
    """Elements, ids, addresses, text, and the texts of scripts of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.text = path, ""
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self._inside.append(tag)
        assert not any(name.startswith("on") for name in values), f"{self.path}: a handler in {tag}"
        if "id" in values:
            assert values["id"] not in self.ids, f"{self.path}: the id {values['id']} stands twice"
            self.ids.add(present(values["id"]))
        self.addresses += [value for name in ("href", "src") if (value := values.get(name))]
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
            return
        self.text += data
        if {"td", "th"} & set(self._inside):
            self.cells[-1] += data


def check_links(site: Path, documents: Mapping[Path, Document]) -> None:
    """Every link leads to a page and a place in it; none but those to papers leaves the site."""
    for path, document in documents.items():
        for address in document.addresses:
            if address.startswith("https://"):
                assert path.parent.name == "methods", f"{path} leaves the site: {address}"
                continue
            file, _, fragment = address.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            assert target.is_file(), f"{path} links to {address}"
            assert target.is_relative_to(site.resolve())
            if fragment:
                assert unquote(fragment) in documents[target].ids, f"{path} links to {address}"


NOT_SHOWN = {"format", "checksum", "dev_history", "status"}
"""Of a result: its file's own marks; the dev curve is a plot and a table, the status stands in other words."""


def check_cell_page(document: Document, result: Result) -> None:
    """The page says every value that the result holds, at any depth."""
    held = {name: getattr(result, name) for name in Result.model_fields if name not in NOT_SHOWN}
    for name, value in leaves(held).items():
        if value in (None, "", [], {}):
            continue
        split, _, _rest = name.partition(".")
        is_score = split in ("dev", "test") and isinstance(value, float)
        text = f"{value:.2f}" if is_score else show(value)
        assert text in document.text, f"{document.path} lacks {name} = {text}"
