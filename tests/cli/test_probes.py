"""Prompts and seeds for other programs: every probe once, with its seed, in a workflow whose links lead somewhere."""

import csv
import io
import json
from typing import Any

import pytest

from qcheck.core.errors import UserError
from qcheck.spec import probe
from tests.conftest import run

BASE = ("--format", "comfyui", "--checkpoint", "sd15.safetensors")


def _workflows(*arguments: str) -> list[dict[str, Any]]:
    result = run("probes", "general", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["prompt"] for line in result.stdout.splitlines()]


def test_the_list_has_what_a_check_would_run() -> None:
    rows = [*csv.DictReader(io.StringIO(run("probes", "general", "--trigger", "sks", "--max-probes", "3").stdout))]
    wanted = probe.probes(probe.triggered(probe.repeated(probe.find("general"), 3), "sks"), ())
    assert [(row["prompt"], int(row["seed"]), int(row["steps"]), float(row["guidance"])) for row in rows] == [
        (one.prompt, one.seed, one.steps, one.guidance) for one in wanted
    ]


@pytest.mark.parametrize("lora", [(), ("--lora", "style.safetensors", "--weight", "0.8")])
def test_a_workflow_draws_its_probe_and_its_links_lead_somewhere(lora: tuple[str, ...]) -> None:
    workflows = _workflows(*BASE, *lora)
    every = probe.probes(probe.find("general"), ())
    assert [one["sampler"]["inputs"]["seed"] for one in workflows] == [one.seed for one in every]
    for nodes, wanted in zip(workflows, every, strict=True):
        sampler = nodes["sampler"]["inputs"]
        assert nodes[sampler["positive"][0]]["inputs"]["text"] == wanted.prompt
        assert nodes[sampler["negative"][0]]["inputs"]["text"] == wanted.negative
        assert (sampler["steps"], sampler["cfg"]) == (wanted.steps, wanted.guidance)
        assert nodes[sampler["model"][0]]["class_type"] == ("LoraLoader" if lora else "CheckpointLoaderSimple")
        links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
        assert {link[0] for link in links} <= set(nodes)
    if lora:
        assert workflows[0]["lora"]["inputs"]["strength_model"] == 0.8
    names = {one["picture"]["inputs"]["filename_prefix"] for one in workflows}
    assert len(names) == len(every)


def test_a_workflow_without_a_checkpoint_is_an_error() -> None:
    result = run("probes", "general", "--format", "comfyui")
    assert isinstance(result.exception, UserError)
    assert "--checkpoint" in result.exception.what
