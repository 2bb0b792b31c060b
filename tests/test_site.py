"""The pages of the site hang together: links lead somewhere, every page is in the navigation, messages are real."""

import ast
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.glob("**/*.md"),
    *ROOT.glob("packages/*/README.md"),
    ROOT / "apps/README.md",
    *ROOT.glob("packages/ddt-tokenizer/src/*/weights/*/README.md"),  # ddt-decoder's are the same
]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Anchors of headings, as mkdocs and others write them; those that they write differently are not there."""
    for heading in re.findall(r"^#+ (.*)", FENCED.sub("", page.read_text()), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.lower()).encode("ascii", "ignore").decode()
        kept = re.sub(r"[^\w\s-]", "", plain).strip()
        if not re.search(r"[\s-]{2}", kept):  # written as one dash or as two
            yield kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^()\s#]*)(?:#([^()\s]+))?\)", FENCED.sub("", page.read_text())):
        found = (page.parent / target).resolve() if target else page
        found = found / "README.md" if anchor and found.is_dir() else found
        assert found.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(found), f"{name_of(page)}: no heading for {target}#{anchor}"


def entries(nav):
    for part in nav.values() if isinstance(nav, dict) else nav:
        yield from [part] if isinstance(part, str) else entries(part)


def test_every_page_is_in_the_navigation():
    nav = [(DOCS / entry).resolve() for entry in entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    assert len(nav) == len(set(nav))
    assert set(nav) == {*PAGES} - {ROOT / "README.md"}  # which docs/index.md holds


def test_the_start_page_holds_the_whole_readme():
    """Its parts as they are, and nothing of it in other words."""
    index, readme = (DOCS / "index.md").read_text(), (ROOT / "README.md").read_text()
    shown = []
    for begin, end in re.findall(r'<!-- include \.\./README\.md from "([^"]+)"(?: until "([^"]+)")? -->', index):
        start = readme.index(f"\n{begin}")
        shown.append(readme[start : readme.index(f"\n{end}", start) if end else None])
    assert readme == readme.partition("\n")[0] + "\n" + "".join(shown)


def test_every_page_of_results_names_a_command():
    for page in (DOCS / "results").glob("*.md"):
        assert re.search(r"\b(ddt [a-z]+|nox -s|python [\w/-]+\.py)\b|commit [0-9a-f]{7}", page.read_text()), page.name


def messages():
    """Every text of the sources that is no docstring, with ... in place of what is filled in."""
    for file in [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("apps/src/**/*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "'...'" if part.conversion == ord("r") else "..."
                    for part in node.values
                )
                yield re.sub(r"(\.\.\.)+", "...", "".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 400:
                yield node.value


def test_messages_of_the_troubleshooting_page_are_real():
    wanted = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(wanted) >= 25
    there = list(messages())
    for message in wanted:
        assert any(message in each for each in there), f"no source says '{message}'"


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocstrings", reason="what `nox -s docs` needs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, stderr=subprocess.PIPE)
    assert built.returncode == 0, built.stderr.decode()
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) == len(PAGES)  # the README is in the start page, and 404.html is beside them
    for page in pages:
        fetched = re.findall(r"""<(?:script|img|iframe)[^>]+src="?https?:|<link[^>]+href="?https?:""", page.read_text())
        assert not fetched, f"{page.name} fetches something: {fetched}"
