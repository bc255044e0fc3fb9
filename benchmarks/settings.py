"""What ``qcheck check --print-config`` shows of the qcheck.toml in docs/config.md."""

import contextlib
import json
import os
import re
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from qcheck.cli import config
from qcheck.cli.app import app

_ARGUMENTS = "--print-config --max-probes 8"
_HOME = "/home/me"
_VARIABLES = ("QCHECK_CACHE", "QCHECK_CONFIG", "QCHECK_DEVICE", "XDG_CACHE_HOME")
_ENVIRONMENT = {**dict.fromkeys(_VARIABLES), "QCHECK_THREADS": "1", "HOME": _HOME}


def sample(page: Path) -> str:
    """The page's own file in a project at /home/me/style, whose base is a pipeline of Stable Diffusion."""
    toml = re.search(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(os.path.realpath(folder))
        _write(project, toml[1] if toml else "")
        with contextlib.chdir(project / "adapters"):
            asked = ["check", *_ARGUMENTS.split(), "--json"]
            printed = CliRunner(env=_ENVIRONMENT).invoke(app, asked, catch_exceptions=False).stdout
    rows = map(config.Setting.model_validate, json.loads(printed.replace(str(project), f"{_HOME}/style")))
    plain = config.Setting(name="json", value=False, source="default")  # the reader does not ask for it
    shown = StringIO()
    Console(file=shown, width=120).print(config.table([plain if row.name == plain.name else row for row in rows]))
    lines = (line.rstrip() for line in shown.getvalue().splitlines())
    table = "\n".join(line for line in lines if line)
    return f"```console\n$ cd adapters && QCHECK_THREADS=1 qcheck check {_ARGUMENTS}\n{table}\n```"


def _write(project: Path, toml: str) -> None:
    """The files that ``toml`` names, and itself."""
    files = {
        config.NAME: toml,
        "pipeline/model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
        "adapters/style.safetensors": "",
        "probes.txt": "a cat\n",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text, "utf-8")
