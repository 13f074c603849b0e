"""Every picture leaves matplotlib as it found it."""

import pytest

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def matplotlib_is_left_alone():
    from matplotlib import pyplot

    settings, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    yield
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == figures
