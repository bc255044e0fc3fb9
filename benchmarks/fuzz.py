"""Fuzz a parser of strangers' files, led by what the code covers: ``python -m benchmarks.fuzz PARSER --runs 50000``.

It needs atheris, which the tests do not: ``pip install atheris``, in an environment of its own. The names of parsers
and their seeds are in ``tests/parsers.py``. A file that ends otherwise than in a value or in one error is written to
``build/fuzz``; it belongs into ``FINDINGS`` of ``tests/test_fuzz.py`` then.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import atheris

from qcheck.device import sums


def main() -> None:
    """The command line; it ends with libFuzzer's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="PARSER")
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--seconds", type=int, default=0, help="at most; 0 is no limit")
    given = parser.parse_args()
    with atheris.instrument_imports(include=["qcheck"]):
        reader = importlib.import_module("tests.parsers").PARSERS[given.name]
    findings = Path("build/fuzz")
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        corpus, place = Path(name) / "corpus", Path(name) / "place"
        corpus.mkdir()
        place.mkdir()
        for number, seed in enumerate(reader.seeds()):
            (corpus / str(number)).write_bytes(seed)

        def tried(content: bytes) -> None:
            path = place / reader.name
            path.write_bytes(content)
            (place / sums.NAME).write_bytes(sums.text({path.name: sums.digest(path)}))
            reader.accepts(path)

        limits = [f"-runs={given.runs}", f"-max_total_time={given.seconds}", "-timeout=60", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={findings}/{given.name}-", str(corpus)], tried)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
