"""Digests are what their docstrings say: anyone can compute them again with SHA-256 alone."""

from hashlib import sha256
from pathlib import Path

from qcheck.core import digest


def test_a_digest_is_the_sha_256_of_the_digests_of_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    parts = [sha256(part).digest() for part in (b"content", b"text", b"bytes")]
    expected = sha256(b"".join(parts)).hexdigest()[:16]
    assert digest.digest_of(path, "text", b"bytes") == expected
    assert digest.joined(part.hex() for part in parts) == expected


def test_the_digest_of_a_folder_knows_names_contents_and_no_order(tmp_path: Path) -> None:
    contents = {"b": b"2", "inner/a": b"1", "a": b"3"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    order = ("a", "b", "inner/a")
    flat = b"".join(sha256(name.encode()).digest() + sha256(contents[name]).digest() for name in order)
    assert digest.digest_of_folder(tmp_path) == sha256(flat).hexdigest()[:16]
