"""The script that builds engines on the device, with TensorRT's own tool and the options of its version."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from pydantic import BeforeValidator

from qcheck.build.builder import Shapes
from qcheck.core.values import DATA, Names, Value, named, names_in
from qcheck.spec.target import Target

TRTEXEC = DATA / "trtexec"
SCRIPT = "build.sh"
_PATH = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it, beside PATH


class Trtexec(Value):
    """The documented options of one release of trtexec; those in ``removed`` are gone or do nothing any more."""

    name: str
    version: Annotated[tuple[int, ...], BeforeValidator(lambda text: tuple(map(int, str(text).split("."))))]
    source: str
    options: Names
    removed: Mapping[str, str] = {}

    def takes(self, option: str) -> bool:
        """Whether the option exists there and does something."""
        return option in self.options and option not in self.removed


def releases() -> list[Trtexec]:
    """Every release whose options are known, the oldest first."""
    found = [named(Trtexec, TRTEXEC, name) for name in names_in(TRTEXEC)]
    return sorted(found, key=lambda release: release.version)


def options(release: Trtexec) -> list[str]:
    """What every build is called with, of what this release takes.

    Raises:
        ValueError: the release lacks an option without which the script cannot do its work.
    """
    lacking = [option for option in _NEEDED if not release.takes(option)]
    if lacking:
        raise ValueError(f"trtexec {release.name} has no {', '.join(lacking)}")
    return [option for option, wanted in _WANTED.items() if release.takes(wanted)]


_REFIT = "--refit"
_NEEDED = (
    "--onnx",
    "--saveEngine",
    "--minShapes",
    "--optShapes",
    "--maxShapes",
    "--exportLayerInfo",
    "--timingCacheFile",
    _REFIT,
)
_WANTED = {
    "--stronglyTyped": "--stronglyTyped",  # the default, and without effect, from 11.0 on
    "--skipInference": "--skipInference",
    "--profilingVerbosity=detailed": "--profilingVerbosity",
}


def script(target: Target, shapes: Mapping[str, Shapes], refitted: Collection[str] = ()) -> str:
    """The text of the script; ``shapes`` are min, optimal and max of the inputs of every component's model.onnx.

    Engines of the components in ``refitted`` can be given other weights.
    """
    known = [f"{r.name} (TensorRT {r.tensorrt})" for r in target.releases if r.strongly_typed]
    lines = [
        "#!/usr/bin/env bash",
        f"# Builds the engines of this folder on {target.title}: {', '.join(known)}.",
        "# Engines work only on the kind of device and the TensorRT release that built them: run this there.",
        "# Written by qcheck from the documented options of trtexec; it was never run on a device.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        "",
        f'trtexec="${{TRTEXEC:-$(command -v trtexec || echo {_PATH})}}"',
        'if [[ ! -x "${trtexec}" ]]; then',
        '    echo "error: no trtexec at ${trtexec}" >&2',
        '    echo "fix:   install TensorRT, or set TRTEXEC to its path" >&2',
        "    exit 2",
        "fi",
        "# it greets with [TensorRT v100300] for 10.3.0",
        '''code="$("${trtexec}" --help | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)"''',
        *_choice(releases()),
        "",
        "mkdir -p engines",
        "",
        "build() {",
        '    local name="$1"',
        "    shift",
        '    echo "building engines/${name}.engine"',
        '    "${trtexec}" "${options[@]}" --onnx="${name}/model.onnx" --saveEngine="engines/${name}.engine" \\',
        '        --exportLayerInfo="engines/${name}.layers.json" --timingCacheFile=engines/timing.cache "$@"',
        "}",
        "",
        *(_call(name, given, [_REFIT] if name in refitted else []) for name, given in shapes.items()),
    ]
    return "\n".join(lines) + "\n"


def _choice(known: Sequence[Trtexec]) -> list[str]:
    """Options by version: each arm holds from its release on; neighbours with equal options share one."""
    arms: list[tuple[Trtexec, list[str]]] = []
    for release in known:
        if not arms or arms[-1][1] != options(release):
            arms.append((release, options(release)))
    lines = []
    for word, (release, chosen) in zip(["if", *["elif"] * len(arms)], reversed(arms), strict=False):
        lines += [f"{word} (( ${{code:-0}} >= {_code(release.version)} )); then", f"    options=({' '.join(chosen)})"]
    oldest = known[0].name
    return [
        *lines,
        "else",
        f'    echo "error: TensorRT version \\"${{code}}\\" is not {oldest} or newer" >&2',
        '    echo "fix:   update JetPack: older releases are not known to build strongly typed networks" >&2',
        "    exit 2",
        "fi",
    ]


def _code(version: Sequence[int]) -> int:
    """The number that trtexec greets with: major * 10000 + minor * 100 + patch, from TensorRT 10 on."""
    major, minor, *_ = version
    return major * 10000 + minor * 100


def _call(name: str, shapes: Shapes, more: Sequence[str]) -> str:
    words = [f"build {shlex.quote(name)}", *more]
    for option, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
        given = ",".join(f"{tensor}:{'x'.join(map(str, sizes[index]))}" for tensor, sizes in shapes.items())
        words.append(f"{option}={given}")
    return " \\\n    ".join(words)
