"""The code of the documentation runs as it stands there.

Blocks that are fenced as ``python`` run in the order of their page, in one namespace; what is only shown is fenced
as ``{code-block} python``. A comment ``<!-- needs NAME -->`` above a block leaves it out where that module is missing.
"""

import importlib.util
import re
import shutil
import sys
import types
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "docs/chemists.md",
    "docs/flow_users.md",
    "docs/flows_in_torch.md",
    "docs/judging.md",
    "docs/logging.md",
    "docs/mcmc_users.md",
    "docs/migration.md",
    "docs/svi.md",
    "docs/uses.md",
]
BLOCK = re.compile(r"^(?:<!-- needs (?P<needs>\w+) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page):
    """Runs the blocks of a page, each under the numbers that its lines have there; returns their namespace."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    module = types.ModuleType("page")
    sys.modules["page"] = module  # dataclasses look up the module that they are defined in
    vars(module)["__file__"] = str(path)
    blocks = list(BLOCK.finditer(text))
    assert blocks, f"{page} has no block to run"
    for block in blocks:
        if block["needs"] is None or importlib.util.find_spec(block["needs"]) is not None:
            lines_before = text.count("\n", 0, block.start("code"))
            exec(compile("\n" * lines_before + block["code"], str(path), "exec"), vars(module))
    return vars(module)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own for what a page writes, with the molecule that one reads, and no windows."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "tests/boltzmann/fixtures/alanine_dipeptide.pdb", tmp_path)
    matplotlib.use("agg")
    yield tmp_path
    sys.modules.pop("page", None)


@pytest.fixture
def writer(monkeypatch):
    """TensorBoard's writer where it is installed, else one that keeps in memory what it is given."""
    if importlib.util.find_spec("tensorboard") is None:
        stub = types.ModuleType("torch.utils.tensorboard")
        stub.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, stub.__name__, stub)


class Writer:
    def __init__(self, folder):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step, value))

    def add_text(self, name, text):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_page_runs(page, elsewhere, writer):
    run(page)


@pytest.mark.filterwarnings("ignore")
def test_what_is_logged_is_what_training_saw(elsewhere, writer):
    found = run("docs/logging.md")["writer"]
    if isinstance(found, Writer):
        logged = {(name, step) for name, step, _ in found.scalars}
        ess = [value for name, _, value in found.scalars if name == "ess"]
    else:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = accumulator.EventAccumulator(str(elsewhere / "runs/first")).Reload()
        logged = {(name, event.step) for name in events.Tags()["scalars"] for event in events.Scalars(name)}
        ess = [event.value for event in events.Scalars("ess")]
    assert logged == {(name, step) for name in ("elbo", "ess") for step in range(10, 101, 10)}
    assert all(0 < value <= 1 for value in ess)


def test_pyro_draws_a_model_with_a_flow_and_its_guide(elsewhere):
    pytest.importorskip("graphviz")
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_coupling import AutoCouplingFlow, flows

    prior = flows.real_nvp(2, 2, (4,))

    def model():
        pyro.module("prior", prior)
        code = pyro.sample("code", flows.distribution(prior))
        pyro.sample("y", dist.Normal(code, 1.0).to_event(1), obs=torch.zeros(2))

    source = pyro.render_model(model).source
    assert re.search(r"\bcode -> y\b", source)
    guide = AutoCouplingFlow(model)
    guide()
    assert re.search(r"_AutoCouplingFlow_latent -> code\b", pyro.render_model(guide).source)


def test_the_map_of_contributing_passes_the_harness(elsewhere, monkeypatch):
    import inspect

    import harness
    import test_bijections

    found = run("CONTRIBUTING.md")["Modulus"]()
    cases = {f"modulus-{dim}": lambda dim=dim: harness.coupling(harness.halves(dim), found) for dim in (1, 4)}
    for name, case in cases.items():
        monkeypatch.setitem(harness.CASES, name, case)
    claims = [
        claim for name, claim in vars(test_bijections).items()
        if name.startswith("test_") and list(inspect.signature(claim).parameters) == ["name"]
        and "coupling-tanh" in claim.pytestmark[0].args[1]
    ]  # fmt: skip
    assert len(claims) > 5
    for name in cases:
        for claim in claims:
            claim(name)
        for dtype, tolerance in test_bijections.PRECISIONS:
            test_bijections.test_round_trip(name, 1.5, dtype, tolerance)
            test_bijections.test_round_trip(name, 1e3, dtype, tolerance)


def test_contributing_keeps_to_thirty_lines():
    (block,) = BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len([line for line in block["code"].splitlines() if line]) <= 30
