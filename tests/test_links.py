"""Links of README, CONTRIBUTING and the documentation lead somewhere: files exist, and pages have the headings."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(
        page for kind in ("md", "ipynb") for page in (ROOT / "docs").rglob(f"*.{kind}") if "_build" not in page.parts
    ),
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\((?P<markdown>[^\s)]+)[^)]*\)|<(?:img|a)\s[^>]*?(?:src|href)=\\?\"(?P<html>[^\"\\]+)")
DIRECTIVE = re.compile(r"^`{3,}\{(?:figure|image|include|literalinclude)\} (\S+)$", re.MULTILINE)
PATH = re.compile(
    r"\b(?:\.ci|benchmarks|conda|docs|examples|pyro_coupling|tests)/[\w/]+\.(?:cff|ipynb|json|md|pdb|py|yaml)\b"
)


def links(text):
    """Targets of links and pictures within the project."""
    prose = CODE.sub("", FENCE.sub("", text))
    found = [match["markdown"] or match["html"] for match in LINK.finditer(prose)]
    return [target for target in found + DIRECTIVE.findall(text) if not re.match(r"https?://|mailto:", target)]


def anchors(page):
    """Names of a page's headings, made as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page, text):
    for target in links(text):
        path, _, anchor = target.partition("#")
        leads_to = page.parent / path if path else page
        if not leads_to.exists() or (anchor and anchor not in anchors(leads_to)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_broken_links_are_found():
    page = ROOT / "docs/index.md"
    text = """
[good](judging.md), ![good](images/demo.png "a title"), [](https://pyro.ai), [](mcmc_users.md#names-side-by-side),
[](missing.md), [](judging.md#missing), [here](#missing), <img src="images/missing.png" alt="">, `[code](no_link.md)`

```{include} ../missing.md
```
"""
    missing = ["missing.md", "judging.md#missing", "#missing", "images/missing.png", "../missing.md"]
    assert list(broken(page, text)) == missing
