"""GitHub's way with a composite action, as far as action.yml needs it: expressions, conditions, one shell a step."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qcheck.core.values import PACKAGE

ACTION = PACKAGE.parent / "action.yml"
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")  # GitHub's `shell: bash`


def load() -> dict[str, Any]:
    """The action as a value."""
    content: dict[str, Any] = yaml.safe_load(ACTION.read_text("utf-8"))
    return content


@dataclass
class Job:
    """A folder in which steps run, with ``tools`` before everything else on the path."""

    folder: Path
    tools: Path
    inputs: Mapping[str, str] = field(default_factory=dict)
    event: str = "pull_request"
    exits: dict[str, int] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    printed: str = ""
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {f"inputs.{name}": str(one.get("default", "")) for name, one in load()["inputs"].items()}
        self.known |= {f"inputs.{name}": value for name, value in self.inputs.items()}
        self.known |= {
            "github.token": "secret",
            "github.workspace": str(self.folder),
            "github.repository": "someone/adapters",
            "github.event_name": self.event,
            "github.event.pull_request.number": "7" if self.event == "pull_request" else "",
            "github.run_id": "100",
            "github.run_attempt": "1",
        }

    def text(self, value: str) -> str:
        """``value`` with its expressions evaluated; an unknown one is a KeyError."""
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: self.known[found[1]], value)

    def holds(self, condition: str) -> bool:
        """A condition of comparisons that are joined by &&."""
        pairs = [re.fullmatch(r"(\S+) == '(\w+)'", part) for part in condition.split(" && ")]
        return all(pair is not None and self.known[pair[1]] == pair[2] for pair in pairs)

    def run(self) -> int:
        """The exit code of the first step that fails, else 0; steps that use actions are only noted."""
        for step in load()["runs"]["steps"]:
            if "if" in step and not self.holds(step["if"]):
                continue
            if "uses" in step:
                self.used.append(step["uses"].partition("@")[0])
                continue
            code = self._step(step)
            self.exits[step["name"]] = code
            if code:
                return code
        return 0

    def _step(self, step: Mapping[str, Any]) -> int:
        places = {name: self.folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        given = {name: self.text(value) for name, value in step.get("env", {}).items()}
        environment = {
            **os.environ,
            **{name: str(path) for name, path in places.items()},
            "GITHUB_ACTION_PATH": str(ACTION.parent),
            "RUNNER_TEMP": str(self.tools),
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            **given,
        }
        command = [*SHELL, step["run"]]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        self.printed += done.stdout.decode()
        if "id" in step and places["GITHUB_OUTPUT"].exists():
            lines = places["GITHUB_OUTPUT"].read_text("utf-8").splitlines()
            self.outputs = dict(line.split("=", 1) for line in lines)
            self.known |= {f"steps.{step['id']}.outputs.{name}": value for name, value in self.outputs.items()}
        return done.returncode
