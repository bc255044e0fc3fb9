"""The documentation site: Sphinx reads the Markdown pages; commands and the Python API are generated from the code.

``make docs`` builds it into build/site. A broken link, a missing anchor or a page outside the contents is an error.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import qcheck

project = "qcheck"
author = "the qcheck authors"
release = qcheck.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["generated/*"]  # commands.md and api.md include them

myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # attributes that a docstring lists and that are properties are described once

html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "72%"}}  # captures have 100 columns
html_title = f"qcheck {release}"
html_extra_path = ["report.schema.json"]
html_copy_source = False


def commands() -> str:
    """Every command with its arguments and options, as Typer writes them."""
    command = [sys.executable, "-m", "typer", "qcheck.cli.app", "utils", "docs", "--name", "qcheck"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return written[written.index("## `qcheck ") :]


def api() -> str:
    """A directive for each public name of the package: first functions, then classes with their public members."""
    names = [name for name in getattr(qcheck, "__all__", []) if callable(getattr(qcheck, name))]
    ordered = sorted(names, key=lambda name: (inspect.isclass(getattr(qcheck, name)), name))
    return "\n".join(["```{eval-rst}", *(_directive(name) for name in ordered), "```", ""])


def _directive(name: str) -> str:
    if inspect.isclass(getattr(qcheck, name)):
        return f".. autoclass:: qcheck.{name}\n   :members:\n"
    return f".. autofunction:: qcheck.{name}\n"


def _bars(_app: Any, _what: str, _name: str, _member: object, _options: object, lines: list[str]) -> None:
    """Docstrings write norms as |x|, which reStructuredText takes for a substitution."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
        lines[number] = "``".join(parts)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _bars)


_GENERATED = Path(__file__).parent / "generated"
_GENERATED.mkdir(exist_ok=True)
(_GENERATED / "commands.md").write_text(commands(), "utf-8")
(_GENERATED / "api.md").write_text(api(), "utf-8")
