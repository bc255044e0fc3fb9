"""The licence of everything that qcheck installs or ships; an unknown one is an error.

``python -m tools.licences`` (``make licences``) goes through the requirements of the installed ``qcheck-edge`` with the
extras that a user installs, prints name, version and licence, and exits 1 where a licence is not in ``licences.toml``.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_suffix(".toml")
DISTRIBUTION, EXTRAS = "qcheck-edge", ("host", "bitsandbytes", "rtx", "modelopt", "ray", "parquet", "mlflow", "sign")
_WORD = re.compile(r"[A-Za-z0-9.+-]+")
_OPERATORS = frozenset({"AND", "OR", "WITH"})


@dataclass(frozen=True)
class Rules:
    """``licences.toml``."""

    allowed: frozenset[str]
    words: Mapping[str, str]
    packages: Mapping[str, str]
    data: Mapping[str, str]

    @classmethod
    def read(cls, path: Path = FILE) -> "Rules":
        """The rules in a file."""
        known: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        return cls(frozenset(known["allowed"]), known["words"], known["packages"], known["data"])

    def allows(self, expression: str | None) -> bool:
        """Whether every licence of an expression is allowed, or one of those that ``OR`` leaves to choose from."""
        if expression is None:
            return False
        choices = re.split(r"\bOR\b", expression.replace("(", " ").replace(")", " "))
        return any(
            all(word in self.allowed for word in _WORD.findall(choice) if word not in _OPERATORS) for choice in choices
        )


@dataclass(frozen=True)
class Package:
    """One distribution; ``licence`` is an SPDX expression, None where its metadata does not tell."""

    name: str
    version: str
    licence: str | None


def licence_of(facts: Mapping[str, Any], classifiers: Sequence[str], rules: Rules) -> str | None:
    """The SPDX expression of a distribution's metadata: by hand, else its expression, its words, its classifiers."""
    name = canonicalize_name(str(facts["Name"]))
    if name in rules.packages:
        return rules.packages[name]
    if expression := facts.get("License-Expression"):
        return str(expression)
    stated = str(facts.get("License") or "").strip()
    titles = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")]
    for words in (stated, *titles):
        if (known := rules.words.get(words.lower())) is not None:
            return known
        try:
            return canonicalize_license_expression(words)
        except InvalidLicenseExpression:
            continue
    return None


def requirements(name: str, extras: Sequence[str]) -> Iterator[Distribution]:
    """The installed distributions that one requires with some extras, each once; what is not installed is left out."""
    waiting, done = [(name, frozenset(extras))], set[tuple[str, frozenset[str]]]()
    given = set[str]()
    while waiting:
        key = waiting.pop()
        if key in done:
            continue
        done.add(key)
        try:
            found = metadata.distribution(key[0])
        except PackageNotFoundError:
            continue
        if key[0] not in given and key[0] != name:
            given.add(key[0])
            yield found
        for text in found.requires or ():
            one = Requirement(text)
            wanted = one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*key[1], ""))
            if wanted:
                waiting.append((canonicalize_name(one.name), frozenset(one.extras)))


def packages(rules: Rules, name: str = DISTRIBUTION, extras: Sequence[str] = EXTRAS) -> list[Package]:
    """What is installed with qcheck, by name."""
    found = []
    for one in requirements(name, extras):
        facts = dict(one.metadata.items())
        classifiers = one.metadata.get_all("Classifier") or []
        found.append(Package(canonicalize_name(one.name), one.version, licence_of(facts, classifiers, rules)))
    return sorted(found, key=lambda package: package.name)


def main() -> None:
    """Print them all."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    rules = Rules.read()
    found = packages(rules)
    rows = [(one.name, one.version, one.licence) for one in found]
    rows += [(name, "shipped", licence) for name, licence in rules.data.items()]
    unknown = [name for name, _, licence in rows if not rules.allows(licence)]
    for name, version, licence in rows:
        sys.stdout.write(f"{name} {version}: {licence or 'unknown'}{'  <- not allowed' if name in unknown else ''}\n")
    if unknown:
        sys.exit(f"{len(unknown)} licences are not in {FILE.relative_to(ROOT)}: {', '.join(unknown)}")


if __name__ == "__main__":
    main()
