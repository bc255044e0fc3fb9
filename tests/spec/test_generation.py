"""Prompt and seed as generators write them into pictures."""

import json
from typing import Any

import pytest

from qcheck.spec.generation import Generation, of_graph, of_metadata, of_parameters

A1111 = """a red fox,  <lora:flat:0.8> flat colours
in the snow
Negative prompt: blurry, bad
hands
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 4242, Size: 512x512, Model: x, Version: v1"""


def test_a1111_text_gives_the_prompt_without_its_loras_and_the_seed() -> None:
    expected = Generation("a red fox, flat colours in the snow", 4242)
    assert of_parameters(A1111) == expected
    assert of_metadata({"parameters": A1111.replace("<lora:flat:0.8> ", "")}) == expected
    assert of_parameters("a red fox\nSteps: 8, Seed: 1, Size: 1x1") == Generation("a red fox", 1)


def graph(**more: Any) -> dict[str, Any]:
    nodes = {
        "3": {"seed": 7, "steps": 20, "positive": ["6", 0], "negative": ["9", 0], "latent_image": ["5", 0]},
        "4": {"ckpt_name": "x.safetensors"},
        "5": {"width": 512, "height": 512, "batch_size": 1},
        "6": {"text": "a red fox", "clip": ["10", 1]},
        "9": {"text": "blurry", "clip": ["10", 1]},
        "10": {"lora_name": "flat", "model": ["4", 0], "clip": ["4", 1]},
    } | more
    return {name: {"class_type": "Any", "inputs": inputs} for name, inputs in nodes.items()}


FLUX = {
    "3": {"noise": ["11", 0], "guider": ["12", 0], "latent_image": ["5", 0], "sampler": ["13", 0]},
    "11": {"noise_seed": 7},
    "12": {"model": ["4", 0], "conditioning": ["14", 0]},
    "14": {"guidance": 3.5, "conditioning": ["6", 0]},
    "6": {"clip": ["4", 1], "clip_l": "a red fox", "t5xxl": "a red fox", "guidance": 3.5},
    "9": {},
}
REFINED = {
    "20": {"noise_seed": 99, "positive": ["21", 0], "negative": ["9", 0], "latent_image": ["3", 0]},
    "21": {"text": "refined", "clip": ["4", 1]},
}
LINKED = {
    "3": {"seed": ["15", 0], "positive": ["16", 0], "negative": ["9", 0], "latent_image": ["5", 0]},
    "15": {"value": 7},
    "16": {"conditioning": ["6", 0], "control_net": ["4", 0]},
    "6": {"text": ["17", 0], "clip": ["10", 1]},
    "17": {"string": "a red fox"},
}
GUIDED = FLUX | {"12": {"model": ["4", 0], "positive": ["6", 0], "negative": ["9", 0]}}


@pytest.mark.parametrize(
    "nodes", [{}, FLUX, GUIDED, REFINED, LINKED], ids=["plain", "flux", "guided", "refiner", "linked"]
)
def test_comfyui_graphs_give_what_reaches_the_sampler(nodes: dict[str, Any]) -> None:
    assert of_graph(json.dumps(graph(**nodes))) == Generation("a red fox", 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "no json",
        '{"1": 2}',
        json.dumps(graph(**{"3": {"seed": 7}})),
        json.dumps(graph(**{"6": {"clip": "x"}})),
    ],
)
def test_any_other_text_is_none_and_no_error(text: str) -> None:
    assert of_graph(text) is None
    assert of_parameters(text) is None


def test_a_graph_that_makes_two_pictures_does_not_say_which() -> None:
    other = {"30": {"seed": 8, "positive": ["6", 0], "latent_image": ["5", 0]}}
    assert of_graph(json.dumps(graph(**other))) is None


def test_a_graph_in_a_circle_ends() -> None:
    assert of_graph(json.dumps(graph(**{"6": {"text": ["6", 0], "clip": ["3", 0]}}))) is None


def test_no_metadata_is_none() -> None:
    assert of_metadata({"Software": "gimp"}) is None
