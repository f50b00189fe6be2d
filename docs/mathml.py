"""Sphinx extension: maths as MathML, which browsers render themselves, by docutils' own translator from LaTeX.

MathJax and KaTeX come from a network or as a bundle of megabytes; this needs neither, and no script in the page.
"""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def inline(writer, node):
    """Write a formula within a line."""
    writer.body.append(translated(node, as_block=False))
    raise nodes.SkipNode


def block(writer, node):
    """Write a formula of its own, with the target that other places refer to."""
    writer.body.append(f'<div class="math">{translated(node, as_block=True)}</div>')
    raise nodes.SkipNode


def translated(node, as_block):
    """The MathML of a node's LaTeX; a warning, which is an error here, where it has a macro that is not known."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        log.warning("no MathML for %r: %s", node.astext(), error, location=node)
        return node.astext()


def setup(app):
    """Register the renderer under the name that ``html_math_renderer`` has."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
