"""The prompt and the seed that a generator wrote into its picture: A1111's and Forge's text, or ComfyUI's graph."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qcheck.core.files import parse_json

_EXTRA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # adapters that A1111 names in the prompt, in f1 and not in f0
_SETTINGS = re.compile(r"^Steps: \d+, .*?\bSeed: (\d+)", re.MULTILINE)
_NEGATIVE = re.compile(r"^Negative prompt:.*", re.MULTILINE | re.DOTALL)
_SEEDS = ("seed", "noise_seed")
_TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "string", "value")  # inputs of text nodes, in order
_POSITIVE = ("positive", "guider", "conditioning")
Graph = Mapping[str, Any]


class Generation(NamedTuple):
    """The prompt, without tags that load an adapter, and the seed."""

    prompt: str
    seed: int

    def text(self) -> str:
        """Both, for a message."""
        shown = self.prompt if len(self.prompt) <= 40 else f"{self.prompt[:40]}…"
        return f"{shown!r} seed {self.seed}"


def of_metadata(fields: Mapping[str, str]) -> Generation | None:
    """The generation that a picture's text fields tell of: ``parameters`` or ``prompt``; None where neither does."""
    if (parameters := fields.get("parameters")) is not None:
        return of_parameters(parameters)
    return of_graph(fields["prompt"]) if "prompt" in fields else None


def of_parameters(text: str) -> Generation | None:
    """From A1111's text: the prompt, ``Negative prompt: ...``, ``Steps: 20, ..., Seed: 1, ...``; None for any other."""
    settings = _SETTINGS.search(text)
    if settings is None:
        return None
    return Generation(_plain(_NEGATIVE.sub("", text[: settings.start()])), int(settings.group(1)))


def of_graph(text: str) -> Generation | None:
    """From ComfyUI's graph of nodes: the seed of its sampler, and the text that reaches the sampler's positive side.

    Of several samplers, as with a refiner, it is the one whose latents come from no other. None for any other text.
    """
    try:
        content = parse_json(text)
    except ValueError:
        return None
    nodes = content if isinstance(content, dict) else {}
    graph = {name: node["inputs"] for name, node in nodes.items() if _is_node(node)}
    samplers = [
        name for name, inputs in graph.items() if any(isinstance(inputs.get(key), list) for key in _POSITIVE[:2])
    ]
    first = [
        one for one in samplers if not any(other in samplers for other in _upstream(graph, one, ("latent_image",)))
    ]
    found = [
        Generation(prompt, seed)
        for one in first
        if (seed := _value(graph, one, _SEEDS, int)) is not None
        if (prompt := _positive(graph, one)) is not None
    ]
    return found[0] if len(set(found)) == 1 else None


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _upstream(graph: Graph, start: str, keys: tuple[str, ...] | None = None) -> Iterator[str]:
    """The nodes that feed ``start``, the nearest first; those of its inputs ``keys``, if they are given."""
    known, waiting = {start}, [start]
    for name in waiting:
        inputs = graph.get(name, {})
        chosen = [inputs.get(key) for key in keys] if keys is not None and name == start else list(inputs.values())
        for link in chosen:
            if isinstance(link, list) and link and (source := str(link[0])) in graph and source not in known:
                known.add(source)
                waiting.append(source)
                yield source


def _value(graph: Graph, start: str, keys: tuple[str, ...], kind: type) -> Any:
    """The value of the first of ``keys`` that ``start`` or a node upstream of it has; None where there is none."""
    for name in (start, *_upstream(graph, start, (*keys, "noise"))):
        for key in (*keys, "value"):
            if isinstance(value := graph[name].get(key), kind):
                return value
    return None


def _positive(graph: Graph, sampler: str) -> str | None:
    """All texts of the nearest node with a text on the sampler's positive side, in a line."""
    key = next((key for key in _POSITIVE if isinstance(graph[sampler].get(key), list)), None)
    if key is None:
        return None
    for name in _upstream(graph, sampler, (key,)):
        if key == "guider" and isinstance(graph[name].get("positive"), list):
            return _positive(graph, name)
        texts = [value for field in _TEXTS if isinstance(value := graph[name].get(field), str)]
        if texts:
            return _plain(" ".join(dict.fromkeys(texts)))
    return None


def _plain(prompt: str) -> str:
    """A prompt without tags of adapters, its white space and commas made alike."""
    words = [" ".join(part.split()) for part in _EXTRA.sub("", prompt).split(",")]
    return ", ".join(word for word in words if word)
