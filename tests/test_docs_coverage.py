"""Every public name stands on the API page and is described: callables by an example, records field by field."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import pyro_coupling

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


def imported(module):
    if module == "pyro_coupling.sklearn":
        pytest.importorskip("sklearn")
    return importlib.import_module(module)


def public(module):
    """Name and object of each public name; those that are modules have entries of their own."""
    found = imported(module)
    return {name: thing for name in found.__all__ if not isinstance(thing := getattr(found, name), ModuleType)}


def is_record(thing):
    """Whether users are given it and never call it: a named tuple."""
    return inspect.isclass(thing) and issubclass(thing, tuple)


def docstring(thing):
    return inspect.getdoc(thing) or ""


def own_modules():
    for found in pkgutil.walk_packages(pyro_coupling.__path__, "pyro_coupling."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def is_own(thing, module):
    return inspect.isclass(thing) and thing.__module__ == module.__name__


def returned(thing):
    """Names in the return annotation of a function, or of the public methods and properties of a class."""
    members = [member for name, member in inspect.getmembers(thing) if not name.startswith("_")]
    functions = [getattr(f, "fget", f) for f in (members if inspect.isclass(thing) else [thing])]
    annotations = [getattr(f, "__annotations__", {}).get("return", "") for f in functions]
    return set(re.findall(r"\w+", " ".join(map(str, annotations))))


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
def test_every_public_callable_has_a_docstring_with_an_example(module):
    called = {name: thing for name, thing in public(module).items() if callable(thing) and not is_record(thing)}
    without = {name for name, thing in called.items() if not re.search(r"^Example:\n +>>> ", docstring(thing), re.M)}
    assert without == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_record_says_what_each_of_its_fields_is(module):
    for name, thing in public(module).items():
        if is_record(thing):
            _, _, attributes = docstring(thing).partition("\nAttributes:\n")
            assert re.findall(r"^    (\w+): ", attributes, re.M) == list(thing._fields), name


def test_what_public_functions_return_is_public():
    known = {name for module in MODULES for name in public(module)}
    own = {name for module in own_modules() for name, thing in vars(module).items() if is_own(thing, module)}
    for module in MODULES:
        for name, thing in public(module).items():
            hidden = returned(thing) & own - known
            assert not hidden, f"{module}.{name} returns {hidden}"


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
