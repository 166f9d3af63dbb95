"""JSON and npz from bytes that anything may have happened to.

What comes out is what was written, or a `ValueError` whose message is the end of a sentence. Nothing in the bytes can
run code, and none of them can claim more memory than `MOST_BYTES`.
"""

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

MOST_BYTES = 2**30
"""Of a file of a run, and of the arrays in it: some twice what the largest image needs with every step kept."""

_ZIP_ENTRY_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, struct.error, LookupError)
"""What reading an entry of a damaged archive raises (RuntimeError: one that wants a password)."""


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, or has a number that is not finite or a key twice in one object.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_with_single_keys
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text[:40]}, which is too large")
    return number


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it holds the key {next(name for name in names if names.count(name) > 1)[:80]!r} twice")
    return values


def parse_npz(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    Raises:
        ValueError: it is no npz file, holds objects, or claims more bytes than it has.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("it holds two arrays of one name")
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
                raise ValueError("it is packed in another way than npz files are")
            if sum(entry.file_size for entry in entries) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES // 2**20:,} MiB")
            return {entry.filename.removesuffix(".npy"): parse_npy(archive.read(entry)) for entry in entries}
    except ValueError:
        raise
    except _ZIP_ENTRY_ERRORS as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_npy(content: bytes) -> np.ndarray:
    """Return the array of an npy file.

    Raises:
        ValueError: it is no npy file, holds objects, or its header claims another size than it has.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(stream)
    except KeyError:
        raise ValueError("its arrays are of another version of the npy format") from None
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header of an array is damaged ({' '.join(str(error).split())[:100]})") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    values = content[stream.tell() :]
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"an array claims the shape {shape} of {dtype}, and has {len(values)} bytes")
    array = np.frombuffer(values, dtype).reshape(shape[::-1] if is_fortran else shape)
    return (array.T if is_fortran else array).copy("K")
