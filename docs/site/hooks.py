"""Hooks of the documentation site: pages from outside of ``docs/``, the generated reference, the check of words."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import command_line
import http_pages
import python_pages
import words
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]

#: Files of the repository that pages link to, outside of ``docs/``: the site has them at the same places.
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "examples/README.md",
    "examples/custom_backend.py",
    "examples/custom_sampler.py",
    "examples/diffusers_before_after.py",
    "examples/editing.py",
    "examples/fashion/README.md",
    "examples/fastapi_app.py",
    "examples/inversion.py",
    "examples/notebook.ipynb",
    "examples/ray_data.py",
    "examples/fashion/loss.png",
    "examples/fashion/results.png",
    "examples/ray_serve/config.yaml",
    "tests/public_names.txt",
)

#: What a link is looked for beside, and what is skipped: code, whose brackets are none of a link's.
_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|(?<=\]\()[^)\s]+(?=\))", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Puts a page for each public module into the navigation."""
    for section in config.nav:
        for entry in next(iter(section.values())) if isinstance(section, dict) else ():
            if isinstance(entry, dict) and entry.get("Python") == ["PYTHON"]:
                entry["Python"] = [{name: page} for name, page in python_pages.navigation()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds README as the home page, what is linked to outside of ``docs/``, and the generated reference."""
    taken = [("index.md", "README.md"), *((name, name) for name in OUTSIDE)]
    for page, source in taken:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    for page, text in (*python_pages.pages(), *command_line.pages(), *http_pages.pages()):
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turns links between the repository's files into links between the site's pages.

    Raises:
        PluginError: If the page spells a word of the glossary otherwise.
    """
    name = page.file.src_uri
    if found := words.misspelt(markdown) if name not in words.QUOTING else []:
        raise PluginError(f"{name}: words that docs/glossary.md spells otherwise: {'; '.join(found)}")
    source = "README.md" if name == "index.md" else name if name in OUTSIDE else f"docs/{name}"
    here = posixpath.dirname(name)

    def link(match: re.Match[str]) -> str:
        target, anchor = re.match(r"([^#]*)(.*)", match[0]).groups()
        if match[0].startswith("`") or not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        return posixpath.relpath(_page_of(path), here or ".") + anchor

    return _LINK.sub(link, markdown)


def _page_of(path: str) -> str:
    """The site's page of a file or a folder of the repository."""
    if (ROOT / path).is_dir():
        path = f"{'benchmarks' if path == 'benchmarks/results' else path}/README.md"
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
