"""The hooks of mkdocs.yml."""

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s#]+)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the page of each alert to the navigation, and the links to edit a page if the repository has an address."""
    (monitor,) = (pages for section in config.nav for name, pages in section.items() if name == "Monitor")
    (alerts,) = (entry["Alerts"] for entry in monitor if "Alerts" in entry)
    alerts += sorted(f"alerts/{page.name}" for page in Path(config.docs_dir, "alerts").glob("NativeLink*.md"))
    if config.repo_url:
        config.repo_url = config.repo_url.removesuffix(".git")
        config.edit_uri = "edit/main/docs/"
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Change each link that leaves ``docs/``, which the site does not have: to the repository, or to a path as text."""

    def name(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link[2]))
        if path.startswith("docs/"):
            return link[0]
        return f"[{link[1]}]({config.repo_url}/blob/main/{path})" if config.repo_url else f"{link[1]} (`{path}`)"

    return LINK.sub(name, markdown)
