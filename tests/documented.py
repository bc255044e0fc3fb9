"""The commands of the documentation: what a page's consoles and workflows type, and what its text names."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

PROGRAMS = ("qcheck", "python", "python3", "pytest", "make", "pip", "pip-audit", "gh")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    tokens = MarkdownIt().parse(page.read_text("utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def script(page: Path) -> str:
    """What a reader types in the page's consoles, and what its workflows run, as a script of bash."""
    typed = [line for block in blocks(page, "console") for line in re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.M)]
    for block in blocks(page, "yaml"):
        for job in (yaml.safe_load(block).get("jobs") or {}).values():
            typed += [re.sub(r"\$\{\{.*?\}\}", "x", step["run"]) for step in job["steps"] if "run" in step]
    return "\n".join(typed)


def mentions(page: Path) -> Iterator[list[str]]:
    """The words of each command with arguments that the text names: the first of alternatives, no optional ones."""
    for token in MarkdownIt().enable("table").parse(page.read_text("utf-8")):
        for span in token.children or ():
            text = re.sub(r"^(\w+=\S+ )+", "", span.content) if span.type == "code_inline" else ""
            text = re.sub(r"(?<= )\[[^\]]*\](?= |$)|(?<=\w)(\|\w+)+", "", text).replace("...", "")
            for part in text.split(" && "):
                words = shlex.split(part.partition(" > ")[0]) if part.startswith(PROGRAMS) else []
                if len(words) > 1 and words[0] in PROGRAMS:
                    yield words


@dataclass(frozen=True)
class Asked:
    """A command that bash came to: its words, where, and the variables of qcheck that it is given."""

    words: tuple[str, ...]
    folder: Path
    environment: dict[str, str]


# Programs that are on the path run; of any other text and exit code are what is answered.
_ASK = r"""
command_not_found_handle() {
  local given=() name code
  for name in "${!QCHECK_@}"; do given+=("$name=${!name}"); done
  printf '%s\0' "$PWD" "${#given[@]}" "${given[@]}" "$#" "$@" >&"$ASKED"
  read -r code <&"$ANSWERED"
  cat "$TEXT"
  return "$code"
}
kill() { command_not_found_handle kill "$@"; }
"""
_REAL = ("cat", "cp", "mkdir", "git", "openssl", "env")


def run(text: str, folder: Path, answer: Callable[[Asked], tuple[int, str]]) -> str:
    """Run a script in ``folder``; ``answer`` gives exit code and text of each command; what bash complains of."""
    tools, said = folder.with_name("tools"), folder.with_name("said")
    tools.mkdir()
    for name in _REAL:
        (tools / name).symlink_to(shutil.which(name) or name)
    (asked, asks), (answered, answers) = os.pipe(), os.pipe()
    environment = {"PATH": str(tools), "HOME": str(folder), "TEXT": str(said), "GITHUB_STEP_SUMMARY": str(said) + ".md"}
    environment |= {"ASKED": str(asks), "ANSWERED": str(answered)}
    with subprocess.Popen(
        [shutil.which("bash") or "bash", "--noprofile", "--norc", "-c", _ASK + text],
        cwd=folder, env=environment, pass_fds=(asks, answered), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as bash:  # fmt: skip
        os.close(asks)
        os.close(answered)
        with os.fdopen(asked, "rb") as questions, os.fdopen(answers, "w") as replies:
            for one in _questions(iter(lambda: questions.read(1), b"")):
                code, printed = answer(one)
                said.write_text(printed, "utf-8")
                replies.write(f"{code}\n")
                replies.flush()
        told = bash.stderr.read() if bash.stderr else ""
    return re.sub(r"^(read|writing) EC key\n", "", told, flags=re.M)  # of openssl: no complaint


def _questions(stream: Iterator[bytes]) -> Iterator[Asked]:
    fields = iter(lambda: b"".join(iter(lambda: next(stream, b"\0"), b"\0")).decode(), "")
    for place in fields:
        given = [next(fields) for _ in range(int(next(fields)))]
        words = _texts(stream, int(next(fields)))
        yield Asked(words, Path(place), dict(one.split("=", 1) for one in given))


def _texts(stream: Iterator[bytes], count: int) -> tuple[str, ...]:
    """The next fields, which may be empty."""
    return tuple(b"".join(iter(lambda: next(stream, b"\0"), b"\0")).decode() for _ in range(count))


def within(words: Sequence[str]) -> tuple[str, ...]:
    """The command of qcheck, or of its image, that another program such as podman or ray is to run; else nothing."""
    names = ("qcheck", "qcheck-edge")
    places = [n for n, word in enumerate(words[:-1]) if n and word in names and re.fullmatch("[a-z]+", words[n + 1])]
    return ("qcheck", *words[places[-1] + 1 :]) if places else ()
