"""Without an optional package, what needs it says which extra brings it."""

import importlib
import sys

import pytest
import torch

from pyro_coupling.boltzmann import OpenMMEnergy, mbar


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("openmm", lambda: OpenMMEnergy(None)),
        ("pymbar", lambda: mbar(torch.zeros(2, 20), [10, 10])),
        ("sklearn.base", lambda: importlib.import_module("pyro_coupling.sklearn")),
    ],
)
def test_the_error_names_the_extra(monkeypatch, module, use):
    extra = "sklearn" if module == "sklearn.base" else "molecules"
    monkeypatch.delitem(sys.modules, "pyro_coupling.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "pyro-coupling\[{extra}\]"'):
        use()
