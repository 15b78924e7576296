"""How the pages become a site: ``sphinx-build -b html docs build/docs``. Nothing is fetched from anywhere.

The pages are Markdown that is read without a site too, so what only a site can do is done to them while it is built, by
the two modules in `_sphinx`: the reference from the docstrings, and links where the text names something in code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_sphinx")]  # this very checkout, whatever is installed

project = "kgas-async"
author = "The kgas-async authors"
release = version = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "names", "pages"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_sphinx"]
nitpicky = True  # a name in backticks that leads nowhere is an error
default_role = "py:obj"  # of `names` in docstrings

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # of the same names as where Markdown is shown without a site

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"kgas-async {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_show_search_summary = False  # it is fetched, which pages that are opened as files must not do
html_theme_options = {"navigation_with_keys": True}
html_last_updated_fmt = None  # a site of the same sources is the same
pygments_style = "friendly"
pygments_dark_style = "github-dark"
