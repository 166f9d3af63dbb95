"""Pictures with more than eight bits: which of their values is shown white.

A camera's 10, 12 or 14 bits lie in values of 16, other programs write 32 bits or floating point. For each file:

* Whole numbers have 8, 10, 12, 14 or 16 significant bits: as many as hold the brightest one, or what the file states
  (PNG's sBIT, TIFF's BitsPerSample and MaxSampleValue) where that is more. The highest number of these bits is white.
  No picture is stretched over its own range, so that pictures of one camera stay comparable.
* Floating-point numbers from 0 to 1 have 1 as white, whole ones are read as above, others up to 255 have 255 as white.
* Anything else has no agreed brightness and is refused.
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from ribray.errors import ValuesError

SIXTEEN_BITS, FLOATING_POINT = "16-bit", "floating-point"
FULL = 0xFFFF  # the brightest value of 16 bits
_WIDTHS = (8, 10, 12, 14, 16)  # significant bits that a picture may have
_DIM = 1 << 6  # where no high byte reaches it, 14 bits or fewer are used
_LEAST_FLOAT = 2.0  # below it, numbers may be from 0 to 1 with a little more by rounding, or from 0 to 255 and dark
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SMAX_SAMPLE = 258, 262, 281, 341  # tags of a TIFF
_WHITE_IS_ZERO = 0
# The order in which a decoder has to read 16-bit values to keep the byte that it drops in this order.
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Scale(NamedTuple):
    """How a picture with more than eight bits was read."""

    kind: str  # of its numbers: `SIXTEEN_BITS`, `FLOATING_POINT`, or another number of bits
    white: int  # the number that is shown white; 0 is black

    def __str__(self) -> str:
        return f"{self.kind} values, of which 0 to {self.white} are read as black to white"


def deep_colour(image: ImageFile.ImageFile, path: Path) -> str | None:
    """Return Pillow's name for how an image, not yet decoded, stores 16-bit colours, such as ``RGB;16B``, or None."""
    if image.mode not in ("RGB", "RGBA"):
        return None
    modes = {tile.args if isinstance(tile.args, str) else str(tile.args[0]) for tile in image.tile if tile.args}
    if ";16" in (name := next(iter(modes), "")):
        return name
    if _tag(image, _BITS_PER_SAMPLE, 8) > 8:
        raise ValuesError(f"{path} keeps 16-bit colours in a plane each, which cannot be read: save it with 8 bits.")
    return None


def grey_in_eight_bits(image: Image.Image, content: bytes, path: Path) -> tuple[Image.Image, Scale]:
    """Scale a decoded grey picture of 16 or 32 bits, or of floating point; ``content`` is its file."""
    values = np.asarray(image)
    kind = FLOATING_POINT if image.mode == "F" else f"{_tag(image, _BITS_PER_SAMPLE, 16)}-bit"
    if not np.isfinite(values).all():
        raise ValuesError(f"{path} holds floating-point pixels that are no numbers (NaN) or infinite.")
    low, top = values.min().item(), values.max().item()
    is_known = low >= 0 and top <= FULL
    if is_known and image.mode == "F" and top <= 1:
        white, pixels = 1, np.rint(255 * values)
    elif is_known and (image.mode != "F" or (values == np.rint(values)).all()):
        bits = _significant_bits(int(top), _stated_white(image, content, int(top)))
        white, pixels = (1 << bits) - 1, values.astype(np.uint16) >> (bits - 8)
    elif is_known and _LEAST_FLOAT <= top <= 255:
        white, pixels = 255, np.rint(values)
    else:
        held = f"{kind} pixels from {low:g} to {top:g}, which have no agreed brightness"
        raise ValuesError(f"{path} holds {held}: save it with 8 bits.")
    pixels = pixels.astype(np.uint8)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        pixels = ~pixels
    if (invisible := image.info.get("transparency")) is not None:
        pixels = np.dstack([pixels, np.where(values == invisible, 0, 255).astype(np.uint8)])
    return Image.fromarray(pixels), Scale(kind, white)


def colour_in_eight_bits(image: Image.Image, stored: str, content: bytes, path: Path) -> tuple[Image.Image, Scale]:
    """Scale a decoded picture with 16-bit colours, whose 8 bits are the high bytes of those ``stored``."""
    high = np.asarray(image)
    colour, alpha = high[..., :3], high[..., 3:]
    invisible = image.info.get("transparency")
    if colour.max() >= _DIM and (not alpha.size or alpha.max() >= _DIM) and invisible is None:
        return image, Scale(SIXTEEN_BITS, FULL)
    values = high.astype(np.uint16) << 8 | _low_bytes(stored, content, path)
    colour, alpha = values[..., :3], values[..., 3:]
    top = int(colour.max())
    bits = _significant_bits(top, _stated_white(image, content, top))
    pixels = (colour >> (bits - 8)).astype(np.uint8)
    if alpha.size:
        alpha = alpha >> (_significant_bits(int(alpha.max())) - 8)
    elif invisible is not None:
        alpha = np.where((colour == invisible).all(2), 0, 255)
    scaled = np.dstack([pixels, alpha.astype(np.uint8)]) if alpha.size else pixels
    return Image.fromarray(scaled), Scale(SIXTEEN_BITS, (1 << bits) - 1)


def _low_bytes(stored: str, content: bytes, path: Path) -> np.ndarray:
    """Decode a picture with 16-bit colours again, for the bytes that Pillow drops, in the shape of those it keeps."""
    name, order = stored[:-1], stored[-1:]
    channels = [0, 1, 2, 3]
    if stored == "LA;16B":  # four bytes a pixel, which is RGBA with 8 bits: grey high and low, alpha high and low
        wanted, channels = "RGBA", [1, 1, 1, 3]
    elif name in ("RGB;16", "RGBA;16", "RGBX;16") and order in _OTHER:
        wanted = name + _OTHER[order]
    else:
        raise ValuesError(f"{path} holds {stored} pixels of few significant bits: save it with 8 bits.")
    with Image.open(io.BytesIO(content)) as image:
        args = [(wanted, *tile.args[1:]) if isinstance(tile.args, tuple) else wanted for tile in image.tile]
        image.tile = [tile._replace(args=arg) for tile, arg in zip(image.tile, args, strict=True)]
        image.load()
        return np.asarray(image)[..., channels[: len(image.getbands())]]


def _significant_bits(top: int, stated: int = 0) -> int:
    return next(bits for bits in _WIDTHS if max(top, stated) < 1 << bits)


def _stated_white(image: Image.Image, content: bytes, top: int) -> int:
    """Return the value that the file calls white; 0 where it is none, passed by pixels, or `FULL`, said of any file."""
    if image.format == "PNG":
        white = (1 << max(_png_chunk(content, b"sBIT"), default=16)) - 1
        if white < top:  # as PNG's standard has it: the significant bits are the high ones
            return FULL
    else:
        of_depth = (1 << _tag(image, _BITS_PER_SAMPLE, 16)) - 1
        stated = [0, of_depth, _tag(image, _MAX_SAMPLE, 0), _tag(image, _SMAX_SAMPLE, 0)]
        white = max(value for value in stated if value < FULL)
    return white if top <= white < FULL else 0


def _png_chunk(content: bytes, name: bytes) -> bytes:
    """Return a chunk that stands before the pixels, empty where there is none."""
    place = 8  # behind the signature
    while (kind := content[place + 4 : place + 8]) not in (name, b"IDAT", b""):
        place += 12 + int.from_bytes(content[place : place + 4])
    return content[place + 8 : place + 8 + int.from_bytes(content[place : place + 4])] if kind == name else b""


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return a whole number that a TIFF states, the largest where it states one for each channel."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(max(value) if isinstance(value, tuple) else value)
