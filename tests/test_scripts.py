"""Benchmarks and examples import names that there are: most of them need packages that tests do without."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("benchmarks", "examples") if (ROOT / name).is_dir()]
SCRIPTS = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))


def imports(path):
    """Files of ours that a script imports from, and the names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = node.module.replace(".", "/") + ".py"
            places = [path.parents[node.level - 1]] if node.level else [path.parent, ROOT, ROOT / "examples"]
            for target in (place / module for place in places):
                if target.exists():
                    yield target, [alias.name for alias in node.names]
                    break
            else:
                assert not node.level, f"{path.name} imports from {module}, which is not there"


def defined(path):
    found = set()
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
        found |= {getattr(node, "name", None)}
    return found


@pytest.mark.skipif(not SCRIPTS, reason="no benchmarks and examples beside the tests")
def test_names_that_scripts_import_from_each_other_are_there():
    links = [(path, target, names) for path in SCRIPTS for target, names in imports(path)]
    assert len(links) > 5
    missing = [f"{path.name}: {name}" for path, target, names in links for name in set(names) - defined(target)]
    assert not missing
