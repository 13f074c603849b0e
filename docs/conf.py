"""Sphinx configuration."""

from docutils import nodes

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
napoleon_use_ivar = True  # or attributes that are annotated in a class would be described twice
suppress_warnings = ["myst.header"]


def setup(app):
    """A link to a file, such as a test, shows its title on hover, which Sphinx leaves out."""

    def show(app, doctree):
        for link in doctree.findall(lambda node: node.tagname == "download_reference" and "reftitle" in node):
            link[:] = [nodes.abbreviation("", "", *link.children, explanation=link["reftitle"])]

    app.connect("doctree-read", show)
