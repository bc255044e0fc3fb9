"""The same inputs give the same bytes: whatever the seed of Python's hashes, which orders its sets."""

import hashlib
import os
import subprocess
import sys

from qcheck.api import plan
from qcheck.core import cache
from qcheck.core.digest import digest_of_value
from qcheck.core.values import DATA
from qcheck.report import junit, markdown, statement
from qcheck.result import schema
from qcheck.spec import command, limits, recipe, scheme, target
from tests import audits, reports

_MODULES = ("qcheck.sampling.sampler", "qcheck.quantize.artifact", "qcheck.calibration.inputs")


def written() -> str:
    """Digests of texts, of values and of code, and the requests of a plan, each a line."""
    report = audits.report(audits.case(0.1))
    schemes = [scheme.find(path.stem) for path in sorted((DATA / "schemes").glob("*.toml"))]
    asked = plan.requests({"base": "demo", "lora": ["flat", "ink"], "scheme": ["int8", "int4-g128"]})
    texts = [
        *(report.to_json(), markdown.render(report), junit.render(report), schema.text(), statement.render(report, {})),
        *(one.model_dump_json() for one in asked),
        *(" ".join(command.words(one)) for one in (*asked, reports.SPEC)),
        *(digest_of_value(one) for one in (*schemes, *map(target.find, ("jetson-thor-t5000",)), *asked)),
        *(digest_of_value(one) for one in (limits.find("default"), recipe.find("emoji"))),
        *(repr([one.name for one in target.find("jetson-thor-t5000").deployable()]),),
        *(cache.key(module, "a") for module in _MODULES),
    ]
    return "\n".join(hashlib.sha256(text.encode()).hexdigest() for text in texts)


def test_what_is_written_knows_no_seed_of_hashes() -> None:
    program = "import tests.test_determinism as module; print(module.written())"
    seen = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-W", "ignore", "-c", program]
        seen.append(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(seen[0].splitlines()) > 30
    assert seen[0] == seen[1]
