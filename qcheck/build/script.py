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
_JETPACK_PATH = "/usr/src/tensorrt/bin/trtexec"  # JetPack installs it outside PATH


class Trtexec(Value):
    """The documented options of one release of trtexec; options in ``removed`` are gone or without effect."""

    name: str
    version: Annotated[tuple[int, ...], BeforeValidator(lambda text: tuple(map(int, str(text).split("."))))]
    source: str
    options: Names
    removed: Mapping[str, str] = {}

    def takes(self, option: str) -> bool:
        """Whether the release has the option and it has an effect."""
        return option in self.options and option not in self.removed


def releases() -> list[Trtexec]:
    """Every release whose options are known, the oldest first."""
    unordered = [named(Trtexec, TRTEXEC, name) for name in names_in(TRTEXEC)]
    return sorted(unordered, key=lambda release: release.version)


def options(release: Trtexec) -> list[str]:
    """The options of every build that this release takes.

    Raises:
        ValueError: the release lacks an option without which the script cannot do its work.
    """
    missing = [option for option in _REQUIRED if not release.takes(option)]
    if missing:
        raise ValueError(f"trtexec {release.name} has no {', '.join(missing)}")
    return [option for option, name in _OPTIONAL.items() if release.takes(name)]


_REFIT = "--refit"
_REQUIRED = (
    "--onnx",
    "--saveEngine",
    "--minShapes",
    "--optShapes",
    "--maxShapes",
    "--exportLayerInfo",
    "--timingCacheFile",
    _REFIT,
)
_OPTIONAL = {
    "--stronglyTyped": "--stronglyTyped",  # the default, and without effect, from 11.0 on
    "--skipInference": "--skipInference",
    "--profilingVerbosity=detailed": "--profilingVerbosity",
}


def script(target: Target, shapes: Mapping[str, Shapes], refitted: Collection[str] = ()) -> str:
    """The text of the script; ``shapes`` are min, optimal and max of the inputs of every component's model.onnx.

    Engines of the components in ``refitted`` are built refittable: their weights can be replaced.
    """
    supported = [f"{r.name} (TensorRT {r.tensorrt})" for r in target.releases if r.strongly_typed]
    lines = [
        "#!/usr/bin/env bash",
        f"# Builds the engines of this folder on {target.title}: {', '.join(supported)}.",
        "# Engines work only on the kind of device and the TensorRT release that built them: run this there.",
        "# Written by qcheck from the documented options of trtexec; it was never run on a device.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        "",
        f'trtexec="${{TRTEXEC:-$(command -v trtexec || echo {_JETPACK_PATH})}}"',
        'if [[ ! -x "${trtexec}" ]]; then',
        '    echo "error: no trtexec at ${trtexec}" >&2',
        '    echo "fix:   install TensorRT, or set TRTEXEC to its path" >&2',
        "    exit 2",
        "fi",
        "# it greets with [TensorRT v100300] for 10.3.0",
        '''code="$("${trtexec}" --help | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)"''',
        *_version_branches(releases()),
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
        *(_call(name, sizes, [_REFIT] if name in refitted else []) for name, sizes in shapes.items()),
    ]
    return "\n".join(lines) + "\n"


def _version_branches(trtexecs: Sequence[Trtexec]) -> list[str]:
    """Shell branches that set the options by version; successive releases with equal options share a branch."""
    arms: list[tuple[Trtexec, list[str]]] = []
    for release in trtexecs:
        if not arms or arms[-1][1] != options(release):
            arms.append((release, options(release)))
    lines = []
    for word, (release, flags) in zip(["if", *["elif"] * len(arms)], reversed(arms), strict=False):
        lines += [
            f"{word} (( ${{code:-0}} >= {_code(release.version)} )); then",
            f"    options=({' '.join(flags)})",
        ]
    oldest = trtexecs[0].name
    return [
        *lines,
        "else",
        f'    echo "error: TensorRT version \\"${{code}}\\" is not {oldest} or newer" >&2',
        '    echo "fix:   update JetPack: older releases are not known to build strongly typed networks" >&2',
        "    exit 2",
        "fi",
    ]


def _code(version: Sequence[int]) -> int:
    """The version number in trtexec's banner, from TensorRT 10 on: major * 10000 + minor * 100 + patch."""
    major, minor, *_ = version
    return major * 10000 + minor * 100


def _call(name: str, shapes: Shapes, flags: Sequence[str]) -> str:
    arguments = [f"build {shlex.quote(name)}", *flags]
    for option, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
        shapes_text = ",".join(f"{tensor}:{'x'.join(map(str, sizes[index]))}" for tensor, sizes in shapes.items())
        arguments.append(f"{option}={shapes_text}")
    return " \\\n    ".join(arguments)
