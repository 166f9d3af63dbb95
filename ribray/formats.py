"""JSON and npz from bytes that anything may have happened to.

What comes out is what was written, or a `ValueError` whose message is the end of a sentence. Nothing in the bytes can
run code, and none of them can unpack to more than `MOST_BYTES`.
"""

import io
import json
import zipfile
from typing import Any

import numpy as np

MOST_BYTES = 2**30
"""Of a file of a run, and of the arrays in it: some twice what the largest image needs with every step kept."""


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text; a `ValueError` where it is none, or has a number that is not finite."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def parse_npz(content: bytes) -> dict[str, np.ndarray]:
    """Return an npz file's arrays by name; a `ValueError` where it is none, holds objects, or unpacks to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES // 2**20:,} MiB")
            return {name.removesuffix(".npy"): parse_npy(archive.read(name)) for name in archive.namelist()}
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - on damaged bytes zipfile raises almost anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_npy(content: bytes) -> np.ndarray:
    """Return an npy file's array; a `ValueError` where it is none, holds objects, or is not of its stated size."""
    stream = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - on a damaged header numpy raises almost anything
        raise ValueError(f"an array is damaged ({' '.join(str(error).split())[:100]})") from None
    if stream.read(1):
        raise ValueError(f"an array has more bytes than its shape {array.shape} says")
    return array
