"""The pages of the documentation say what is so: each claim of the comparison names a test that there is."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
LINK = re.compile(r'\[yes\]\((?P<file>\.\./tests/\S+\.py) "(?P<test>test_\w+)"\)')
CLAIMS = sorted({link.group("file", "test") for link in LINK.finditer(PAGE)})


@pytest.mark.parametrize(("file", "test"), CLAIMS, ids=[test for _, test in CLAIMS])
def test_a_claimed_test_exists(file, test):
    assert re.search(rf"^def {test}\(", (DOCS / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_yes_of_ours_is_a_link_to_a_test():
    ours = {row[1] for row in ROWS} - {"pyro_coupling", "---", "no"}
    assert len(ours) > 50
    assert all(map(LINK.fullmatch, ours))


def test_every_row_has_a_word_for_every_library():
    words = re.compile(r"(yes|no|partly|not found)(\[\^[\w-]+\])?")
    libraries = ["Pyro", "zuko", "normflows", "nflows", "FrEIA", "flowjax", "TFP"]
    for row in ROWS:
        assert len(row) == 2 + len(libraries)
        assert row[2:] in (libraries, ["---"] * len(libraries)) or all(map(words.fullmatch, row[2:])), row[0]


def test_every_footnote_is_used_and_explained_and_every_partly_has_one():
    used = set(re.findall(r"\[\^([\w-]+)\](?!:)", PAGE))
    explained = re.findall(r"^\[\^([\w-]+)\]: ", PAGE, re.MULTILINE)
    assert len(explained) == len(set(explained)) and set(explained) == used
    assert not re.search(r"\bpartly(?!\[\^)", "\n".join(line for line in PAGE.splitlines() if line.startswith("|")))
