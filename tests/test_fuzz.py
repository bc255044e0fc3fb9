"""Changed files of every kind that strangers send: a value or one error, soon, and nothing is written.

``QCHECK_FUZZ=50000 python -m pytest tests/test_fuzz.py`` is the long run; ``python -m benchmarks.fuzz`` one that is led
by what the code covers. What they broke is in ``FINDINGS``.
"""

import copy
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcheck.device import sums
from tests.hostile import harmless
from tests.parsers import PARSERS

EXAMPLES = int(os.environ.get("QCHECK_FUZZ", "25"))
SLOW = {"audit", "plan"}  # of which a tenth is run

_ODD: tuple[Any, ...] = (
    *("", "x", "x" * 5000, "../../x", "/dev/zero", "\0", "é\u202e\x1b[31m", "[bold]", "nan", "1e999", "0" * 5000),
    *(0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.5, 1e308, 1e-320, math.nan, math.inf, -math.inf, True),
    *([], {}, [[]], [0], ["x"], {"a": 1}, {"": {}}, [1, "x", None], list(range(300)), None),
)
_TOKENS = (
    *(b"", b"[", b"]", b"{", b"}", b'"', b"'", b"=", b",", b":", b"\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"#"),
    *(b"[[a]]", b"[a]\n", b'"""', b"1e999", b"9" * 400, b"nan", b"null", b"true", b"\\u0000", b"[" * 300, b"-"),
    *(b'{"a":' * 300, b"0x", b"1979-05-27T07:32:00Z", b"a.b.c=1\n", b"\\ud800", b"type=", b'name="', b"layers="),
    b"const_payload_size=" + b"9" * 5000,
)


def _odd(draw: st.DrawFn) -> Any:
    return copy.deepcopy(draw(st.sampled_from(_ODD)))


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value of dicts and lists, but for the value itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [one for key, child in items for one in ((*place, key), *_places(child, (*place, key)))]


@st.composite
def values(draw: st.DrawFn, value: Any) -> Any:
    """The value with one to three places in it changed, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            return value
        *path, key = draw(st.sampled_from(places))
        parent = value
        for step in path:
            parent = parent[step]
        change = draw(st.sampled_from(("change", "change", "change", "remove", "add", "copy")))
        if change == "remove":
            del parent[key]
        elif change == "change":
            parent[key] = _odd(draw)
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = _odd(draw) if change == "add" else copy.deepcopy(parent[key])
        else:
            parent.append(_odd(draw) if change == "add" else copy.deepcopy(parent[key]))
    return value


@st.composite
def slices(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with one to four pieces cut, repeated or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from((0, 1, 2, 8, 64, 1000))))
        piece = draw(st.sampled_from((*_TOKENS, content[start:end] * 2)))
        content = content[:start] + piece + content[end:]
    return content


def _toml(value: Any) -> bytes:
    try:
        return tomli_w.dumps(value).encode()
    except (TypeError, AttributeError, ValueError):
        return json.dumps(value).encode()


def _tensors(content: bytes) -> Any:
    """A safetensors file as its header and the rest, which is a text of bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    return {"header": json.loads(content[8:end]), "rest": content[end:].decode("latin-1")}


def _safetensors(value: Any) -> bytes:
    header = json.dumps(value.get("header")).encode()
    return len(header).to_bytes(8, "little") + header + str(value.get("rest")).encode("latin-1", "replace")


def _format(name: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]] | None:
    """How such a file is read as a value of dicts and lists, and written."""
    if name.endswith(".safetensors"):
        return _tensors, _safetensors
    if name.endswith(".toml"):
        return (lambda content: tomllib.loads(content.decode())), _toml
    return (json.loads, lambda value: json.dumps(value).encode()) if name.endswith(".json") else None


@st.composite
def contents(draw: st.DrawFn, name: str) -> bytes:
    """A changed file for the parser of that name."""
    parser = PARSERS[name]
    seed, pair = draw(st.sampled_from(parser.seeds())), _format(parser.name)
    if pair is None or draw(st.integers(0, 3)) == 0:
        return draw(slices(seed))
    return pair[1](draw(values(pair[0](seed))))


def _tried(name: str, content: bytes) -> None:
    parser = PARSERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / parser.name
        path.write_bytes(content)
        (path.parent / sums.NAME).write_bytes(sums.text({path.name: sums.digest(path)}))
        with harmless(path.parent):
            parser.accepts(path)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a finding that is a whole report
@pytest.mark.parametrize("name", PARSERS)
def test_a_changed_file_ends_in_a_value_or_in_one_error(name: str) -> None:
    @settings(
        max_examples=max(10, EXAMPLES // 10) if name in SLOW else EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents(name))
    def law(content: bytes) -> None:
        _tried(name, content)

    law()


@pytest.mark.parametrize("name", PARSERS)
def test_what_the_fuzzer_changes_is_read_unchanged(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    for seed in parser.seeds():
        (tmp_path / parser.name).write_bytes(seed)
        (tmp_path / sums.NAME).write_bytes(sums.text({parser.name: sums.digest(tmp_path / parser.name)}))
        assert parser.accepts(tmp_path / parser.name)


FINDINGS = {
    "a base that is a number": ("plan", b'base = 0.5\nlora = ["flat"]\n'),
    "a base that is longer than any path": ("plan", b'base = "' + b"x" * 5000 + b'"\nlora = ["flat"]\n'),
    "an adapter that is longer than any path": ("plan", b'base = "demo"\nlora = ["' + b"x" * 5000 + b'"]\n'),
    "a file that is longer than any path": ("plan", b'base = "demo"\nlora = ["a/' + b"x" * 5000 + b'"]\n'),
    "an adapter without a name, and no base": ("plan", b'lora = ""\n'),
    "a base without a name": ("plan", b'base = ""\nlora = "a"\n'),
    "steps that are a list": ("plan", b'base = "demo"\nlora = ["flat"]\nsteps = [1]\n'),
    "layers that are no list": ("inspector", b'{"Layers": {"a": 1}}'),
    "information that is a list": ("inspector", b"[1]"),
    "sides that are words": ("inspector", b'{"Layers": [{"Inputs": [1], "Constants": [{"Dimensions": ["x"]}, {}]}]}'),
    "information without end": ("inspector", b"[" * 100_000),
    "an empty engine": ("engine", b""),
    "a constant of more bytes than digits are read": (
        "engine",
        b"x\n  tensor={ const_payload_size=" + b"9" * 5000 + b' name="w" type=int8 }',
    ),
    "times of nothing": ("times", b"[]"),
    "times that are an object": ("times", b'{"computeMs": 1}'),
    "a release of 5,000 digits": ("banner", b"[TensorRT v" + b"9" * 5000 + b"]"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_broke_a_parser_once_does_so_no_more(name: str) -> None:
    _tried(*FINDINGS[name])
