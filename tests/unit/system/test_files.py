"""Files that are whole or not there."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from toolkit.system import files


def test_a_file_holds_the_text_and_nothing_is_left_beside_it_when_written_twice(tmp_path: Path):
    for text in ("one\n", "two and more\n", ""):
        files.write_text(tmp_path / "file.txt", text)
        assert (tmp_path / "file.txt").read_text() == text
        assert list(tmp_path.iterdir()) == [tmp_path / "file.txt"]


def test_a_reader_never_sees_half_a_file_when_it_is_written_over(tmp_path: Path):
    file, texts = tmp_path / "file.txt", ["a" * 200_000, "b" * 100_000]
    files.write_text(file, texts[0])
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 60):
        files.write_text(file, texts[i % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)


def test_the_old_file_stays_when_writing_fails(tmp_path: Path):
    file = tmp_path / "value.json"
    files.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_a_hash_is_that_of_the_content_when_a_file_is_read(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_arrays_are_read_as_written_and_as_none_when_a_byte_is_wrong(tmp_path: Path):
    file, values = tmp_path / "x.npz", {"a": np.arange(50), "b": np.zeros(0)}
    assert files.read_arrays(file, "ab") is None
    files.write_arrays(file, values)
    assert list(tmp_path.iterdir()) == [file]
    known = files.read_arrays(file, "ab")
    assert known is not None
    assert np.array_equal(known["a"], values["a"])
    assert files.read_arrays(file, "ac") is None
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        assert files.read_arrays(file, "ab") is None
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        known = files.read_arrays(file, "ab")
        assert known is None or all(np.array_equal(known[name], values[name]) for name in "ab")


def test_a_key_is_that_of_fips_180_and_another_one_when_any_part_is():
    assert files.key("abc") == "ba7816bf8f01cfea414140de"  # its first example, cut
    others = (("a", "b"), ("ab",), ("a", b"b", b""), ("b", "a"), ("\udcff",), (b"\xfe",))
    keys = [files.key(*parts) for parts in others]
    assert len({*keys}) == len(keys)
    assert files.key("a", b"b") == keys[0]
