"""The mask files of a run: palette PNGs that carry their own pixel counts.

Pixel values are mask values (0 background, class index + 1, 255 ignored), the palette only colours them for a
viewer. Whatever counts belong to a mask (its part of a confusion matrix, say) stand as JSON in a compressed
text chunk of the same file, so that a mask and its counts are written and read as one; other programs pass
over that chunk.
"""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ribray import storage
from ribray.errors import DamagedError, ImageError, RibrayError
from ribray.formats import parse_json

SUFFIX = ".png"
COUNTS_KEY = "ribray"  # keyword of the text chunk that holds the counts
ID_KEY = "id"  # among the counts: whose mask it is
_PNG_END = b"IEND\xaeB`\x82"  # the last chunk of a PNG file, its checksum included


def mask_path(folder: Path, id: str) -> Path:
    """Return the file of an image's mask; runs made by earlier versions have it in the folder itself."""
    path = storage.spread(folder, id, SUFFIX)
    if not path.exists() and storage.spread_id(id) is None and (before := folder / f"{id}{SUFFIX}").exists():
        return before
    return path


def list_masks(folder: Path) -> set[str]:
    return {storage.spread_id(name) or name for name in storage.list_ids(folder, SUFFIX)}


def write_mask(
    path: Path, mask: NDArray[np.uint8], palette: NDArray[np.uint8], counts: Mapping[str, Any] | None = None
) -> None:
    """Write a mask (height, width) and its counts, both or neither; the bytes depend on the arguments alone.

    The palette is (256, 3), the counts anything that JSON holds, up to a million characters.
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


def read_mask_file(path: Path, id: str | None = None) -> tuple[NDArray[np.uint8], dict[str, Any] | None]:
    """Read a mask and its counts, if it has any, as `write_mask` wrote them: of any image, or of the one that is named.

    Raises:
        DamagedError: the file is damaged, no palette PNG, another image's, or its counts are no JSON object.
        ImageError: it is missing, or cannot be read.
    """
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except RibrayError as error:
        raise error if isinstance(error, ImageError) else ImageError(str(error)) from None
    try:
        if not content.endswith(_PNG_END):
            raise ValueError("its end is missing")
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()  # every chunk's checksum, also those that decoding does not look at
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow raises almost anything
        raise DamagedError(f"{path} is a damaged mask ({error}); {storage.MADE_AGAIN}.") from None
    if image.mode != "P":
        pixels = f"its pixels are {image.mode}, not a palette's"
        raise DamagedError(f"{path} is no mask of a run: {pixels}; {storage.MADE_AGAIN}.")
    counts = None
    if (text := image.info.get(COUNTS_KEY)) is not None:
        with contextlib.suppress(ValueError):
            counts = parse_json(text)
        if not isinstance(counts, dict):
            raise DamagedError(f"The pixel counts in {path} are no JSON object; {storage.MADE_AGAIN}.")
    if id is not None and (owner := (counts or {}).get(ID_KEY)) != id:
        whose = "of no known image" if owner is None else f"that of '{owner}'"
        raise DamagedError(f"{path} should be the mask of '{id}', and is {whose}; {storage.MADE_AGAIN}.")
    return np.array(image), counts
