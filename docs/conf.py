"""The documentation site: `python3 start.py docs` builds it into docs/_build/html."""

import importlib.util
import os
import sys
from pathlib import Path

import ddpm_jax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "ddpm_jax"
version = release = ddpm_jax.__version__
html_title = f"ddpm_jax {version}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "reference",
]
exclude_patterns = ["_build", "notebooks"]
default_role = "code"
smartquotes_action = "De"  # dashes and ellipses; "eps" in a docstring is a string of Python
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!ddpm_jax\b).*")]
"""A link to a name of this package has to resolve; types of others are text."""

suppress_warnings = [
    "misc.highlighting_failure",  # of "!ddpm-jax ..." that goes on in another line
    "ref.python",  # several names end in a word of a shape, as in Float[Array, "n classes"]
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

# Cells run in an empty folder. What they print as a warning or an error fails the build.
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_in_temp = True
nb_execution_show_tb = True  # an exception is a warning, and fails the build
nb_merge_streams = True
nb_output_stderr = "warn"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONWARNINGS"] = "ignore:os.fork() was called:RuntimeWarning"  # a cell with !ddpm-jax
os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars, though IPython asks for colours
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_display_short_literal_types = True

# Mathematics without a network: one file of MathJax, which has its glyphs as SVG, in the site.
mathjax_path = "tex-svg-full.js"
MATHJAX = importlib.util.find_spec("sphinx-mathjax-offline")
html_static_path += [str(Path(MATHJAX.origin).parent / "static" / "mathjax" / mathjax_path)]
