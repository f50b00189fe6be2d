"""The site's configuration: ``make docs`` builds it. Nothing is fetched, and a warning is an error."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several cost more than they do in the small networks of the tutorial
DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # mtl and its examples; the extensions beside this file

project = "mtl"
author = "the mtl authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",  # the sources, beside the reference
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",  # runs the tutorial
    "mathml",
    "generated",
    "links",
]
exclude_patterns = ["_build", "tutorial"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "mtl"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "tango"
pygments_dark_style = "monokai"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

highlight_language = "text"  # of indented blocks, which are commands and what they print

plot_formats = [("png", 150)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_working_directory = str(DOCS)

sphinx_gallery_conf = {
    "examples_dirs": "tutorial",
    "gallery_dirs": "_tutorial",
    "filename_pattern": r"\.py",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": (),
    "write_computation_times": False,  # its page wants scripts from a network
    "min_reported_time": 1e9,
    "show_signature": False,
    "remove_config_comments": True,
}
