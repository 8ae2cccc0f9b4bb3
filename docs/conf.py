"""The site: `make site` builds it from the same files that are read on GitHub, so the repository is its source.

Pages, README, CONTRIBUTING and the examples' READMEs keep their places, and a link means the same in both. Nothing is
fetched. `{command} MODULE` in a page prints what `MODULE --help` prints.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"  # of --help, wherever the site is built

import eagle  # noqa: E402

project = "eagle"
author = "the authors of eagle"
release = version = eagle.__version__
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "examples/*/README.md", "examples/benchmarks/*/*.md", "*.md"]
exclude_patterns = ["build", ".venv", "**/__pycache__", "docs/conf.py", "eagle", "tests"]
nitpicky = True
# Signatures name types that are documented elsewhere, which nobody looks up here, or on no page.
nitpick_ignore_regex = [("py:class", r"(torch|transformers|numpy|collections|pathlib|os|eagle)\..*|dict\[\w+")]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"eagle {release}"
html_static_path = ["_static"] if (ROOT / "docs" / "_static").is_dir() else []
html_copy_source = False
html_show_copyright = False

linkcheck_ignore = [r"http://(localhost|127\.0\.0\.1).*"]
linkcheck_timeout = 20
linkcheck_retries = 2

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!https?:|#|mailto:)[^)#\s]+)\)")


class CommandHelp(SphinxDirective):
    """Prints the help of a module's `main`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the text as a literal block."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            importlib.import_module(self.arguments[0]).main(["--help"])
        return [nodes.literal_block(text=said.getvalue().rstrip(), language="text")]


def divide_attributes(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Give every name of `a, b: words` in a docstring's attributes a line of its own: napoleon would read a type."""
    if "Attributes:" not in lines:
        return
    first = lines.index("Attributes:") + 1
    divided = []
    for line in lines[first:]:
        match = re.match(r"(    )(\w+(?:, \w+)+)(: .*)", line)
        divided += [f"    {one}{match[3]}" for one in match[2].split(", ")] if match else [line]
    lines[first:] = divided


def link_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to folders mean what they mean on GitHub: a folder's README, or the folder, which no page shows."""
    here = (ROOT / f"{docname}.md").parent

    def linked(match: re.Match[str]) -> str:
        words, path = match.groups()
        folder = here / path
        if not folder.is_dir():
            return match[0]
        return f"[{words}]({path.rstrip('/')}/README.md)" if (folder / "README.md").is_file() else words

    source[0] = LINK.sub(linked, source[0])


def write_front_door(app: Sphinx, problem: Exception | None) -> None:
    """Send who opens the folder to the first page."""
    if problem is None and app.builder.format == "html":
        words = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>eagle</title>\n'
        (Path(app.outdir) / "index.html").write_text(words, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is above."""
    app.add_directive("command", CommandHelp)
    app.connect("autodoc-process-docstring", divide_attributes, priority=400)  # before napoleon
    app.connect("source-read", link_to_pages)
    app.connect("build-finished", write_front_door)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
