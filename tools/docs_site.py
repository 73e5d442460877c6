"""Hooks of mkdocs: pages that lie outside docs/, and links between them.

The README, the changelog and the page of the benchmarks belong to the site but lie where a reader of the repository
looks for them. Here they become pages; links to them, and from them into docs/, are turned to the place of the page.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""By path in the repository, the page of the site."""
NOTEBOOK = "notebook.ipynb"
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, and the notebook as one."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=turned((ROOT / source).read_text(), source)))
    for found in list(files):
        if found.src_uri == NOTEBOOK:
            files.append(File.generated(config, f"{NOTEBOOK}.md", content=notebook_page(ROOT / "docs" / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page of docs/ that lead out of it."""
    source = page.file.src_uri
    return markdown if source in OUTSIDE.values() else turned(markdown, f"docs/{source}")


def turned(markdown: str, source: str) -> str:
    """The text of a page with its links as the site has them; `source` is the file's path in the repository."""

    def turn(found: re.Match[str]) -> str:
        target = found["target"]
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page == NOTEBOOK:
            page = f"{NOTEBOOK}.md"
        if page is None and (ROOT / path).exists():
            return f"{found['text']} (`{path}`)"  # a file of the repository that is no page
        return f"[{found['text']}]({page or target}{found['anchor'] or ''})"

    return LINK.sub(turn, markdown)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what the code printed; pictures as they are stored in it."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                parts.append(f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
