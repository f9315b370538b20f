"""The hooks of mkdocs.yml."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.utils import get_relative_url

VARIABLE = re.compile(r"^### (\w+)$", re.MULTILINE)
CODE = re.compile(r"<a\b.*?</a>|<h\d.*?</h\d>|<pre.*?</pre>|<code>(\w+)</code>", re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s#]+)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the page of each alert to the navigation, and links to the repository at NATIVELINK_GITOPS."""
    (monitor,) = (pages for section in config.nav for name, pages in section.items() if name == "Monitor")
    (alerts,) = (entry["Alerts"] for entry in monitor if "Alerts" in entry)
    alerts += sorted(f"alerts/{page.name}" for page in Path(config.docs_dir, "alerts").glob("NativeLink*.md"))
    if address := os.environ.get("NATIVELINK_GITOPS", "").removesuffix(".git"):
        config.repo_url, config.repo_name, config.edit_uri = address, "Repository", "edit/main/docs/"
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Change each link that leaves ``docs/``, which the site does not have: to the repository, or to a path as text."""

    def name(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link[2]))
        if path.startswith("docs/"):
            return link[0]
        return f"[{link[1]}]({config.repo_url}/blob/main/{path})" if config.repo_url else f"{link[1]} (`{path}`)"

    return LINK.sub(name, markdown)


def on_page_content(html: str, *, page: Any, config: Any, **_: Any) -> str:
    """Link the names of variables to their places in the reference."""
    names = set(VARIABLE.findall(Path(config.docs_dir, "variables.md").read_text()))
    reference = get_relative_url("variables.html", page.url)

    def link(code: re.Match[str]) -> str:
        return f'<a href="{reference}#{code[1]}">{code[0]}</a>' if code[1] in names else code[0]

    return CODE.sub(link, html)
