"""Reading photographs and masks from files, local or remote.

A photograph is read as a viewer shows it. Whatever is wrong with a file is an `ImageError` that names it: no
damaged image is passed on half-decoded.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ribray.errors import ImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of files that are taken for photographs, compared in lower case."""

# Only these are tried: some of Pillow's other formats start programs (EPS), none of them holds photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_MASK_FORMATS = ("PNG",)
_MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a gigabyte of RGB; beyond it, it only warns
_PNG_BIT_DEPTH = 24  # offset of the bit depth in a PNG file

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation asks a viewer to do."""

warnings.simplefilter("error", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata beside sound pixels


def read_image(path: Path) -> np.ndarray:
    """Read a photograph as a viewer shows it: turned as EXIF says, in colour, eight bits, alpha over white.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the file is missing, empty, damaged, truncated, no image, or unreasonably large.
    """
    with _decoding(path), _opened(path, io.BytesIO(_read_bytes(path)), _FORMATS) as image:
        image.load()
        orientation = _orientation(image)  # after load(), which turns a TIFF by itself
        shown = _to_rgb(image, path)
        return np.array(shown.transpose(_TURNS[orientation]) if orientation in _TURNS else shown)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: a palette or grey PNG whose pixel values (not colours) are class numbers, 255 = ignore.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: the file is missing, damaged, or a PNG of another kind.
    """
    content = _read_bytes(path)
    with _decoding(path, "a PNG"), _opened(path, io.BytesIO(content), _MASK_FORMATS) as image:
        image.load()
        if image.mode not in ("P", "L", "1"):
            raise ImageError(
                f"{path} is no mask: its pixels are {_kind(image.mode)}, where a mask is a palette or 8-bit "
                "grey PNG whose pixel values are class numbers."
            )
        values = np.array(image).astype(np.uint8)
        if image.mode == "L" and content[_PNG_BIT_DEPTH] < 8:  # Pillow spreads 2- and 4-bit grey over 0…255
            values //= 255 // (2 ** content[_PNG_BIT_DEPTH] - 1)
        return values


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of a photograph as a viewer shows it, from its header alone.

    Raises:
        ImageError: as `read_image`, as far as the header tells.
    """
    with _decoding(path), path.open("rb") as stream, _opened(path, stream, _FORMATS) as image:
        turned = image.format != "TIFF" and _lies_down(image)  # Pillow turns the sizes of a TIFF by itself
        return (image.width, image.height) if turned else (image.height, image.width)


def is_turned(path: Path) -> bool:
    """Whether EXIF tells a viewer to swap a photograph's height and width.

    Raises:
        ImageError: as `image_size`.
    """
    with _decoding(path), path.open("rb") as stream, _opened(path, stream, _FORMATS) as image:
        return _lies_down(image)


# --- opening -----------------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    with _decoding(path):
        content = path.read_bytes()
    if not content:
        raise ImageError(f"{path} is empty (0 bytes).")
    return content


def _opened(path: Path, stream: io.IOBase, formats: tuple[str, ...]) -> Image.Image:
    """Read the header of an image and refuse one that would fill the memory."""
    image = Image.open(stream, formats=formats)  # type: ignore[arg-type]
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError(f"{image.width} × {image.height} pixels")
    return image


@contextmanager
def _decoding(path: Path, expected: str = "an image") -> Iterator[None]:
    """Turn what Pillow and the file system raise about ``path`` into one sentence."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path} {_instead_of(path, expected)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path} is too large: an image may have {_MAX_PIXELS / 1e6:.0f} million pixels.") from None
    except MemoryError:
        raise ImageError(f"{path} needs more memory to decode than there is.") from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow's decoders raise almost anything
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from None
        raise ImageError(f"{path} is damaged: {_reason(error)}.") from None


def _reason(error: object) -> str:
    text = " ".join(str(error).split()).removeprefix("image file is ").rstrip(".")
    return text or type(error).__name__


def _instead_of(path: Path, expected: str) -> str:
    """Say what a file is that no decoder recognises."""
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError:
        return "cannot be read any more"
    if not start:
        return "is empty (0 bytes)"
    is_text = not any(byte < 9 or 13 < byte < 32 for byte in start)
    return f"is {'a text file' if is_text else 'damaged or of another format'}, not {expected} that can be read"


# --- colours -----------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) where there is none or the metadata is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - the pixels are sound all the same
        return 1


def _lies_down(image: Image.Image) -> bool:
    return _orientation(image) in (5, 6, 7, 8)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image, path)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, path: Path) -> np.ndarray:
    """Scale 16-bit grey to 8 bits by its high byte, which is what Pillow does for 16-bit colour."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ImageError(
            f"{path} holds {_kind(image.mode)} pixels, which have no agreed brightness: save it with 8 bits."
        )
    return (values.astype(np.uint16) >> 8).astype(np.uint8)


def _kind(mode: str) -> str:
    names = {
        "I": "32-bit",
        "F": "floating-point",
        "RGB": "RGB",
        "RGBA": "RGB with alpha",
        "LA": "grey with alpha",
    }
    return names.get(mode, "16-bit" if mode.startswith("I;16") else mode)
