"""Every test starts from the same seed, an empty parameter store, the default dtype and Python's own Ctrl-C."""

import signal
import sys

import pyro
import pytest
import torch
from hypothesis import settings

settings.register_profile("pyro_coupling", deadline=None, derandomize=True)
settings.load_profile("pyro_coupling")


@pytest.fixture(autouse=True)
def fresh_state():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As where it is not installed: no figure can be made."""
    monkeypatch.delitem(sys.modules, "pyro_coupling.plots.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
