"""Pages that lie outside of docs/, put into the site as they are: a hook of mkdocs (`nox -s docs`).

Navigation names them by their path from docs/, as in `../CONTRIBUTING.md`; links between all pages are those that work
in the repository. `<!-- include FILE from "LINE" until "LINE" -->` puts a part of another page into one, lines
being named by how they begin.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INCLUDE = re.compile(r'<!-- include (\S+)(?: from "([^"]+)")?(?: until "([^"]+)")? -->')
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s#]+)(#[^()\s]+)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name pages from outside by where they stand in the site."""
    config.nav = _placed(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that navigation names from outside."""
    for path in sorted(set(re.findall(r"\.\./(\S+\.md)", Path(config.config_file_path).read_text()))):
        files.append(File.generated(config, _place(ROOT / path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what a page includes, and turn links into those of the site."""
    here = Path(page.file.abs_src_path)

    def included(match: re.Match) -> str:
        name, begin, end = match.groups()
        text = (here.parent / name).read_text()
        start = text.index(f"\n{begin}") if begin else 0
        return _linked(text[start : text.index(f"\n{end}", start) if end else None], here.parent / name, page)

    return INCLUDE.sub(included, _linked(markdown, here, page))


def _linked(text: str, source: Path, page: Page) -> str:
    """Turn links of a source file, outside of code blocks, into those of the page that holds its text."""

    def link(match: re.Match) -> str:
        picture, words, target, anchor = match.groups()
        found = (source.parent / target).resolve()
        if found.is_dir():
            found /= "README.md"
        if (place := _place(found)) is None:
            return words  # a file of the repository that is no part of the site
        return f"{picture}[{words}]({os.path.relpath(place, Path(page.file.src_uri).parent)}{anchor or ''})"

    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in FENCE.split(text))


def _place(file: Path) -> str | None:
    """Return where a file of the repository stands in the site."""
    if file == ROOT / "README.md":
        return "index.md"
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    if file.suffix == ".md":
        name = file.parent.name if file.name == "README.md" else file.stem
        return f"repository/{name.lower()}.md"
    return None


def _placed(nav):
    if isinstance(nav, str):
        return _place((DOCS / nav).resolve())
    if isinstance(nav, dict):
        return {name: _placed(part) for name, part in nav.items()}
    return [_placed(part) for part in nav]
