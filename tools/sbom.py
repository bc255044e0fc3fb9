"""The bill of materials of a wheel: ``python -m tools.sbom dist/*.whl`` writes a CycloneDX file beside it.

It names the wheel by its digest, every package that is installed with it here, with version and licence, and the data
that it ships. Run it where ``constraints.txt`` is installed.
"""

import argparse
import hashlib
import json
from pathlib import Path

from qcheck.core import sbom
from qcheck.core.sbom import Part
from tools.licences import DISTRIBUTION, Rules, packages


def bill(wheel: Path, rules: Rules) -> str:
    """The document's text."""
    version = wheel.name.split("-")[1]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    subject = Part("application", DISTRIBUTION, version, f"pkg:pypi/{DISTRIBUTION}@{version}", "Apache-2.0", digest)
    parts = [
        Part("library", one.name, one.version, f"pkg:pypi/{one.name}@{one.version}", one.licence)
        for one in packages(rules)
    ]
    parts += [Part("data", name, version, licence=licence) for name, licence in rules.data.items()]
    return json.dumps(sbom.document(subject, parts), indent=1) + "\n"


def main() -> None:
    """Write one for each wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheels", type=Path, nargs="+")
    for wheel in parser.parse_args().wheels:
        wheel.with_suffix(".cdx.json").write_text(bill(wheel, Rules.read()), "utf-8")


if __name__ == "__main__":
    main()
