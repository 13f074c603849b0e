"""Sphinx configuration."""

from docutils import nodes
from docutils.utils.math import latex2mathml

import pyro_coupling

project = "pyro_coupling"
author = "The pyro_coupling authors"
release = pyro_coupling.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "pyro_coupling"
exclude_patterns = ["_build"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_use_ivar = True  # or attributes that are annotated in a class would be described twice
suppress_warnings = ["myst.header"]


def show_math(self, node):
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def show_display(self, node):
    self.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Formulas as MathML, which browsers draw without a script from elsewhere; tests of links shown on hover.

    A link to a file, such as a test, shows its title on hover, which Sphinx leaves out. Fields of named tuples stand in
    their docstrings alone; so do properties that give an attribute of the base class, which describes it, and the text
    that modules add to their ``repr``.
    """
    app.add_html_math_renderer("mathml", (show_math, None), (show_display, None))

    def show(app, doctree):
        for link in doctree.findall(lambda node: node.tagname == "download_reference" and "reftitle" in node):
            link[:] = [nodes.abbreviation("", "", *link.children, explanation=link["reftitle"])]

    def is_told_elsewhere(app, what, name, member, skip, options):
        is_field = type(member).__name__ == "_tuplegetter"
        is_override = isinstance(member, property) and name in ("period", "slope_is_constant")
        return skip or is_field or is_override or name == "extra_repr"

    app.connect("doctree-read", show)
    app.connect("autodoc-skip-member", is_told_elsewhere)
