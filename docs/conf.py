"""Sphinx configuration."""

import pyro_coupling

project = "pyro_coupling"
author = "The pyro_coupling authors"
release = pyro_coupling.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "pyro_coupling"
exclude_patterns = ["_build"]
nb_execution_mode = "off"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "code"
suppress_warnings = ["myst.header"]
