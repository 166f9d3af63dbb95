"""JSON and npz from bytes that anything may have happened to: what was written comes out, or a `ValueError`."""

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribray.formats import parse_json, parse_npy, parse_npz

ARRAYS = {
    "maps": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "turned": np.arange(6).reshape(2, 3).T,
    "empty": np.zeros((0, 1, 1), np.float32),
    "number": np.array(3),
    "text": np.array("finished"),
}


def packed(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def zipped(content: bytes, name: str = "a.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def test_arrays_come_back_as_they_were():
    found = parse_npz(packed(**ARRAYS))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_found_or_change_nothing(data):
    content = bytearray(packed(**ARRAYS))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for changed in (bytes(content), cut):
        try:
            found = parse_npz(changed)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            for name in found.keys() & ARRAYS.keys():
                np.testing.assert_array_equal(found[name], ARRAYS[name])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_header_is_an_array_or_a_sentence(data):
    content = bytearray(npy(ARRAYS["maps"]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        parse_npy(bytes(content))
    except ValueError as error:
        assert "\n" not in str(error)


def claiming(shape: str) -> bytes:
    """An npy file of eight bytes whose header claims another shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped(bytes(2**30 + 1)), "unpacks to more than 1,024 MiB"),
        (zipped(claiming("(-1,)")), "an array is damaged"),
        (zipped(claiming("(1,)")), "has more bytes than its shape"),
        (zipped(claiming("(" * 60)), "an array is damaged"),
        (zipped(npy(np.array([{}], dtype=object), allow_pickle=True)), "allow_pickle=False"),
        (npy(ARRAYS["maps"]), "not a zip file"),
        (b"", "not a zip file"),
    ],
    ids=["zip bomb", "negative", "small shape", "brackets", "objects", "npy", "empty"],
)
def test_bombs_are_refused_without_taking_the_memory(content, reason):
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        parse_npz(content)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_an_array_that_claims_more_than_it_has_takes_no_memory(tmp_path):
    (tmp_path / "a.npz").write_bytes(zipped(claiming("(10000000000000,)")))
    program = """
import resource, sys
from pathlib import Path
from ribray.formats import parse_npz
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    parse_npz(Path(sys.argv[1]).read_bytes())
except ValueError as error:
    print(error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 2**10
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("an array is damaged (")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1', "delimiter"),
        (b"", "Expecting value"),
        ('{"ä": 1}'.encode("latin-1"), "utf-8"),
    ],
)
def test_what_is_no_plain_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_comes_back_as_it_was():
    value = {"a": [1, 2.5, None, True], "ü": {"b": "x"}}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode()) == value
