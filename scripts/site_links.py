"""Hook of MkDocs: links that leave `docs/`, for readers of the repository, become names of files on the site."""

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page that lead to another part of the repository; other links are left for checking."""
    docs = Path(config["docs_dir"]).resolve()
    folder = (docs / page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        text, target = link.groups()
        file = (folder / target).resolve()
        if "://" in target or file.is_relative_to(docs) or not file.exists():
            return link[0]
        name = f"`{file.relative_to(docs.parent)}`"
        return name if text.strip("`") == name.strip("`") else f"{text} ({name})"

    return _LINK.sub(rewritten, markdown)
