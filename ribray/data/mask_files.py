"""The mask files of a run: palette PNGs that carry their own pixel counts.

Pixel values are mask values (0 background, class index + 1, 255 ignored), the palette only colours them for a
viewer. Whatever counts belong to a mask (its part of a confusion matrix, say) stand as JSON in a compressed
text chunk of the same file, so that a mask and its counts are written and read as one; other programs pass
over that chunk.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ribray import storage
from ribray.errors import ImageError

COUNTS_KEY = "ribray"
"""Keyword of the text chunk that holds the counts."""

_DAMAGED = "remove it so that it is made again"


def write_mask(
    path: Path, mask: NDArray[np.uint8], palette: NDArray[np.uint8], counts: Mapping[str, Any] | None = None
) -> None:
    """Write a mask and its counts, both or neither; the bytes depend on the arguments alone.

    Args:
        path: where to, ending with ``.png``.
        mask: (height, width) uint8.
        palette: (256, 3) uint8, a colour per mask value.
        counts: anything that JSON holds, up to a million characters.

    Raises:
        ValueError: the arrays have other shapes or types, or the counts are too many or hold a number that is
            not finite.
        TypeError: the counts hold something that JSON does not.
        OSError: as the file system gives it.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise ValueError(f"A mask is (height, width) uint8, not {mask.shape} {mask.dtype}.")
    if palette.dtype != np.uint8 or palette.shape != (256, 3):
        raise ValueError(f"A palette is (256, 3) uint8, not {palette.shape} {palette.dtype}.")
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(palette.tobytes())
    chunks = PngImagePlugin.PngInfo()
    if counts is not None:
        text = json.dumps(counts, allow_nan=False, separators=(",", ":"))
        if len(text) > PngImagePlugin.MAX_TEXT_CHUNK:  # beyond it, Pillow would not read the file any more
            raise ValueError(f"The counts of {path} are {len(text)} characters long.")
        chunks.add_text(COUNTS_KEY, text, zip=True)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", bits=8, pnginfo=chunks)
    storage.write_bytes(path, buffer.getvalue())


def read_mask_file(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any] | None]:
    """Read a mask and its counts, as `write_mask` wrote them.

    Returns:
        The mask (height, width) uint8, and its counts; None where the file has no chunk of them.

    Raises:
        ImageError: the file is missing or damaged, is no palette PNG, or its counts are no JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        mode, values, text = _decode(content)
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow raises almost anything
        raise ImageError(f"{path} is a damaged mask ({error}); {_DAMAGED}.") from None
    if mode != "P":
        raise ImageError(f"{path} is no mask of a run: its pixels are {mode}, not a palette's; {_DAMAGED}.")
    return values, None if text is None else _counts(text, path)


def _decode(content: bytes) -> tuple[str, NDArray[np.uint8], str | None]:
    """Return the mode of a PNG, its pixels and the text of its counts."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.verify()  # every chunk's checksum, also those that decoding does not look at
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.load()
        return image.mode, np.array(image), image.info.get(COUNTS_KEY)


def _counts(text: str, path: Path) -> dict[str, Any]:
    try:
        counts = json.loads(text)
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, dict):
        raise ImageError(f"The pixel counts in {path} are no JSON object; {_DAMAGED}.")
    return counts
