"""What packages of several kinds say of this one agrees with pyproject.toml."""

import re
from pathlib import Path

import pytest

import pyro_coupling

tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RECIPE = (ROOT / "conda/recipe.yaml").read_text(encoding="utf-8")
IN_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements(listed):
    """Name -> versions, by the names of conda-forge."""
    pairs = [re.fullmatch(r"([\w-]+) *(\S*)", requirement).groups() for requirement in listed]
    return {IN_CONDA.get(name, name): versions for name, versions in pairs}


def in_recipe(key):
    """The items of a list in the recipe."""
    (items,) = re.findall(rf"^  {key}:\n((?:    - .*\n)+)", RECIPE, re.MULTILINE)
    return [item.strip("- ") for item in items.splitlines()]


def test_all_name_the_same_version():
    version = re.escape(PROJECT["version"])
    assert pyro_coupling.__version__ == PROJECT["version"]
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(rf"^  version: {version}$", RECIPE, re.MULTILINE)


def test_the_recipe_has_the_requirements_of_the_package():
    python, *others = in_recipe("run")
    assert python == "python >=${{ python_min }}"
    assert f'python_min: "{PROJECT["requires-python"].removeprefix(">=")}"' in RECIPE
    assert requirements(others) == requirements(PROJECT["dependencies"])


def test_the_recipe_constrains_what_the_extras_add():
    extras = PROJECT["optional-dependencies"]
    added = [*extras["arviz"], *extras["molecules"], *extras["plots"], *extras["sklearn"]]
    assert requirements(in_recipe("run_constraints")) == requirements(added)


def test_the_recipe_builds_with_what_the_build_system_requires():
    needed = requirements(PYPROJECT["build-system"]["requires"])
    assert needed.items() <= requirements(in_recipe("host")[1:]).items()


def test_the_recipe_has_the_summary_and_the_licence_of_the_package():
    assert f'summary: "{PROJECT["description"]}"' in RECIPE and f"license: {PROJECT['license']}\n" in RECIPE
