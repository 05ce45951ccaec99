"""A hook of mkdocs: pages from outside docs/, and links between the two, as they are on the site.

The documents are written for the repository, where `../README.md` is a file. On the site, the files of `OUTSIDE` are
pages; links to anything else outside docs/ lose their target and keep their text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "readme.md", "configuration/README.md": "configuration.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=rewritten(text, posixpath.dirname(source))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    is_generated = page.file.src_uri in OUTSIDE.values()
    return markdown if is_generated else rewritten(markdown, "docs")


def rewritten(markdown: str, folder: str) -> str:
    """The text of a document that lies in a folder of the repository, with the site's links."""

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        page = path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE.get(path)
        return text if page is None else f"[{text}]({page}{anchor})"

    return LINK.sub(replace, markdown)
