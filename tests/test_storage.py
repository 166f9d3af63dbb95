"""Files are whole or absent, and nothing read can run code."""

import io
import os
import zipfile

import numpy as np
import pytest

from ribray import storage
from ribray.errors import RibrayError, UsageError


def test_a_failed_write_leaves_what_was_there_and_no_leftover(tmp_path, monkeypatch):
    target = tmp_path / "value.json"
    storage.write_json(target, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_json(target, {"a": 2})
    assert storage.read_json(target) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_npz_bytes_depend_on_the_arrays_alone(tmp_path):
    arrays = {"maps": np.arange(12, dtype=np.float32).reshape(3, 4), "name": np.array("x")}
    storage.write_npz(tmp_path / "a.npz", **arrays)
    storage.write_npz(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = storage.read_npz(tmp_path / "a.npz")
    assert back["maps"].dtype == np.float32
    np.testing.assert_array_equal(back["maps"], arrays["maps"])


def test_pickled_objects_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        storage.write_npz(tmp_path / "a.npz", value=np.array([{}], dtype=object))
    content = io.BytesIO()
    np.savez(content, value=np.array([{}], dtype=object))
    (tmp_path / "b.npz").write_bytes(content.getvalue())
    with pytest.raises(RibrayError, match=r"b\.npz"):
        storage.read_npz(tmp_path / "b.npz")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"no zip at all"])
def test_a_damaged_npz_is_named(tmp_path, damage):
    (tmp_path / "a.npz").write_bytes(damage)
    with pytest.raises(RibrayError, match=r"a\.npz"):
        storage.read_npz(tmp_path / "a.npz")


def test_a_truncated_npz_is_named(tmp_path):
    storage.write_npz(tmp_path / "a.npz", maps=np.random.default_rng(0).random((50, 50)))
    content = (tmp_path / "a.npz").read_bytes()
    assert zipfile.is_zipfile(io.BytesIO(content))
    for length in (10, len(content) // 2, len(content) - 5):
        (tmp_path / "a.npz").write_bytes(content[:length])
        with pytest.raises(RibrayError, match=r"a\.npz"):
            storage.read_npz(tmp_path / "a.npz")


def test_listing_leaves_out_files_being_written(tmp_path):
    storage.write_bytes(tmp_path / "ab" / "x.npz", b"1")
    (tmp_path / "ab" / f"{storage.TEMPORARY_PREFIX}y.npz").write_bytes(b"half")
    assert storage.list_ids(tmp_path, ".npz") == {"ab/x"}


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot write in"):
        storage.require_writable(tmp_path / "file" / "run")
