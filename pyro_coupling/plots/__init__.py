"""Pictures of fits, flows and what they make, with matplotlib, in whatever style is set.

Every function but `plot_fit` returns axes: those that it is given, or those of a new figure that belongs to no window,
``axes.figure.savefig("plot.png")``. Colours and fonts are those of matplotlib's rcParams, so that styles hold:
``with matplotlib.style.context("arviz-darkgrid"): plot_weights(log_weights)``.
"""

from .calibration import plot_calibration
from .fit import plot_fit
from .flows import plot_grid, plot_layers
from .images import plot_images
from .jacobian import plot_jacobian
from .marginals import plot_marginals
from .pairs import plot_pairs
from .training import plot_training
from .weights import plot_weights

__all__ = [
    "plot_calibration",
    "plot_fit",
    "plot_grid",
    "plot_images",
    "plot_jacobian",
    "plot_layers",
    "plot_marginals",
    "plot_pairs",
    "plot_training",
    "plot_weights",
]
