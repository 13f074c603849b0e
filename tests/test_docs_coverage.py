"""Every public name stands on the API page, with a docstring, and with an example where a user calls it."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MODULES = [
    "pyro_coupling",
    "pyro_coupling.arviz",
    "pyro_coupling.boltzmann",
    "pyro_coupling.boltzmann.energies",
    "pyro_coupling.boltzmann.plots",
    "pyro_coupling.diagnostics",
    "pyro_coupling.flows",
    "pyro_coupling.images",
    "pyro_coupling.nn",
    "pyro_coupling.plots",
    "pyro_coupling.sklearn",
    "pyro_coupling.targets",
    "pyro_coupling.training",
    "pyro_coupling.transforms",
]
PAGES = sorted(page for kind in ("md", "ipynb") for page in DOCS.rglob(f"*.{kind}") if "_build" not in page.parts)
DIRECTIVE = re.compile(r"^\.\. auto(?P<kind>\w+):: (?P<path>\S+)\n(?P<options>(?: {3}:.*\n)*)", re.MULTILINE)
#: What users get or subclass rather than call, and what others' examples call.
WITHOUT_EXAMPLE = {
    *("Bijection", "Elementwise", "Gaussian", "GaussianStart", "LowRankStart", "Scale", "Target"),
    *("Evidence", "Samples", "TrainingRecord", "TrainingState"),
    *("AsymmetricClampScale", "ClampScale", "SigmoidScale", "SoftplusScale", "TanhScale"),
    *("conditional_additive_coupling", "conditional_spline_coupling", "load"),
    *("Constant", "SeparateMLPs", "mlp"),
    *("Trainer", "init_to_center", "log_prob_and_score", "reverse_kl_backward", "warm_start"),
}


def imported(module):
    if module == "pyro_coupling.sklearn":
        pytest.importorskip("sklearn")
    return importlib.import_module(module)


def public(module):
    """Name and object of each public name; those that are modules have entries of their own."""
    found = imported(module)
    return {name: thing for name in found.__all__ if not isinstance(thing := getattr(found, name), ModuleType)}


def on_the_api_page(module):
    """Names of a module that the directives of the page lead to, as autodoc reads them."""
    names = set()
    for directive in DIRECTIVE.finditer((DOCS / "api.md").read_text(encoding="utf-8")):
        owner, _, last = directive["path"].rpartition(".")
        if directive["kind"] == "module" and directive["path"] == module:
            assert ":members:" in directive["options"]
            own_alone = ":imported-members:" not in directive["options"]
            left_out = set(re.findall(r"[\w]+", "".join(re.findall(r":exclude-members:(.*)", directive["options"]))))
            names |= {
                name for name, thing in public(module).items()
                if callable(thing) and name not in left_out and not (own_alone and thing.__module__ != module)
            }  # fmt: skip
        elif owner == module:
            names.add(last)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_the_api_page(module):
    assert on_the_api_page(module) >= set(public(module))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring_and_what_is_called_an_example(module):
    called = {name: thing for name, thing in public(module).items() if callable(thing)}
    assert {name for name, thing in called.items() if not inspect.getdoc(thing)} == set()
    without = {name for name, thing in called.items() if not re.search(r"^Example:$", inspect.getdoc(thing), re.M)}
    assert without - WITHOUT_EXAMPLE == set()


def test_modules_of_the_list_are_all_that_are_public():
    # a package or module that has users says what is public by __all__ and stands on the API page
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert {found["path"] for found in DIRECTIVE.finditer(page) if found["kind"] == "module"} == set(MODULES[1:])


def test_every_page_is_reached_from_the_home_page():
    listed = re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES}
    assert pages - {"index"} == set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_of_a_page_exist_and_say_what_they_show(page):
    for text, path in re.findall(r"!\[(.*?)\]\((.+?)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).is_file() and len(text) > 10


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".ipynb"], ids=lambda page: page.stem)
def test_a_notebook_runs_from_top_to_bottom_and_is_stored_with_what_it_prints(page, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(page, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
