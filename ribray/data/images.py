"""Reading photographs and masks from files, local or remote.

A photograph is read as a viewer shows it. Whatever is wrong with a file is an `ImageError` that names it: no
damaged image is passed on half-decoded. Where a file could be read in another way, `read_picture` tells which way was
taken.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from ribray.data.depth import Scale, colour_in_eight_bits, deep_colour, grey_in_eight_bits
from ribray.data.names import plain
from ribray.errors import ImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of files that are taken for photographs, compared in lower case."""

UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw")
"""Endings of photographs that are not read, compared in lower case."""

MASK_SUFFIX = ".png"
READERS = 16
"""Threads that read files beside one another: most of the time goes into waiting for them and into decoding."""
# Only these are tried: some of Pillow's other formats start programs (EPS), none of them holds photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_SEVERAL = ("PNG", "WEBP", "GIF", "TIFF")  # their files may hold frames or pages; a JPEG's belong to its first picture
_MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a gigabyte of RGB; beyond it, it only warns
_EXTRA_SAMPLES = 338  # the tag by which a TIFF names channels beyond three
_TIFF_STARTS = (b"II*\0", b"MM\0*")
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
_WHITE, _BLACK = 224, 31  # at least and at most, of each channel of a palette's colour
_LYING = (5, 6, 7, 8)  # orientations that swap height and width

warnings.simplefilter("error", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata beside sound pixels


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    scale: Scale | None = None  # how more than eight bits were brought to eight
    choices: tuple[str, ...] = ()  # what else it holds that could be read in another way, and how it was read
    opacity: tuple[int, int] | None = None  # least and greatest alpha, of 255; None where it has none
    turn: int = 1  # the EXIF orientation, which was followed; 1: none

    @property
    def readings(self) -> tuple[Scale | str, ...]:
        return self.choices if self.scale is None else (self.scale, *self.choices)

    @property
    def blank(self) -> str | None:
        """`TRANSPARENT`, `SINGLE_VALUE` or `LOW_CONTRAST` where it shows nothing; None where it does."""
        if self.opacity is not None and self.opacity[1] < _OPAQUE:
            return TRANSPARENT
        sample = self.pixels[:: self.pixels.shape[0] // 16 + 1, :: self.pixels.shape[1] // 16 + 1]
        if _levels(sample) > _CONTRAST or (levels := _levels(self.pixels)) > _CONTRAST:
            return None
        return LOW_CONTRAST if levels else SINGLE_VALUE

    @property
    def is_turned(self) -> bool:
        """Whether EXIF turns or mirrors it."""
        return self.turn in _TURNS

    @property
    def hides_turn(self) -> bool:
        """Whether EXIF turns or mirrors it and leaves its size, so that a mask of the file's pixels fits it too."""
        return self.is_turned and (self.turn not in _LYING or self.pixels.shape[0] == self.pixels.shape[1])

    @property
    def remarks(self) -> tuple[Scale | str, ...]:
        return self.readings if self.blank is None else (*self.readings, self.blank)


TRANSPARENT, SINGLE_VALUE, LOW_CONTRAST = "transparent", "single value", "low contrast"
_OPAQUE = 128
_CONTRAST = 3  # no photograph spans so few of 255 levels: it was saved as 0 and 1, or shows nothing
BLANK = {
    TRANSPARENT: "pixels that are hardly opaque anywhere, so that it is white",
    SINGLE_VALUE: "the same value in all pixels",
    LOW_CONTRAST: f"no values that differ by more than {_CONTRAST} of 255",
}
"""What a picture that shows nothing holds."""


def is_photograph(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def without_ending(name: str) -> str:
    """Return the name of a photograph without its ending; any other name as it is."""
    stem = name.rpartition(".")[0]
    return stem if is_photograph(name) and stem and not stem.endswith("/") else name


def read_picture(path: Path) -> Picture:
    """Read a photograph as a viewer shows it: turned as EXIF says, in colour, eight bits, alpha over white."""
    with _decoding(path), _opened(io.BytesIO(content := path.read_bytes())) as image:
        scale, choices = None, []
        stored = deep_colour(image, path)
        turn = _orientation(image) if image.format == "TIFF" else 1
        image.load()
        orientation = _orientation(image)  # after load(), which turns a TIFF by itself
        turn = max(turn, orientation)
        shown: Image.Image = image
        if stored is not None:
            shown, scale = colour_in_eight_bits(image, stored, content, path)
        elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
            shown, scale = grey_in_eight_bits(image, content, path)
        with suppress(Exception):  # a GIF is looked through for it, and its later frames may be damaged
            if image.format in _SEVERAL and getattr(image, "is_animated", False):
                choices.append("several pictures in one file, of which the first is read")
        if image.mode == "RGBA" and _EXTRA_SAMPLES not in getattr(image, "tag_v2", (_EXTRA_SAMPLES,)):
            choices.append("a fourth channel that the file does not name, which is read as opacity")
        opacity = None
        if shown.has_transparency_data:
            shown = shown.convert("RGBA")
            alpha = np.asarray(shown.getchannel("A"))
            opacity = int(alpha.min()), int(alpha.max())
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        shown = shown.convert("RGB")
        pixels = np.array(shown.transpose(_TURNS[orientation]) if orientation in _TURNS else shown)
        return Picture(pixels, scale, tuple(choices), opacity, turn)


def read_image(path: Path) -> np.ndarray:
    return read_picture(path).pixels


def tell_readings(counts: Mapping[Scale | str, int], whose: str = "") -> list[str]:
    """Say how many pictures each of their `Picture.remarks` goes for; ``whose``: such as " of split 'train'"."""
    sentences = []
    for what, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))):
        images, hold = ("image", "holds") if count == 1 else ("images", "hold")
        sentences.append(f"{count} {images}{whose} {hold} {BLANK.get(str(what), what)}.")
    if sum(isinstance(what, Scale) for what in counts) > 1:
        advice = "save them with 8 bits, scaled alike"
        sentences.append(f"The brightness of these images{whose} is not comparable: {advice}.")
    return sentences


def read_mask(path: Path) -> np.ndarray:
    """Read a mask, (H, W) uint8: a palette or grey PNG whose pixel values (not colours) are class numbers."""
    with _decoding(path, "a PNG"), _opened(io.BytesIO(content := path.read_bytes()), ("PNG",)) as image:
        image.load()
        if image.mode not in ("P", "L", "1"):
            mode = "16-bit" if image.mode.startswith("I;16") else image.mode
            kind = {"RGBA": "RGB with alpha", "LA": "grey with alpha"}.get(mode, mode)
            wanted = "where a mask is a palette or 8-bit grey PNG whose pixel values are class numbers"
            raise ImageError(f"{path} is no mask: its pixels are {kind}, {wanted}.")
        if image.mode == "P" and _shows_background_white(image):
            raise ImageError(
                f"{path} can be read in two ways: its palette shows 0, which is background, white and all else black. "
                "Save masks as grey, 0 for background and a class's number where it is, or with 0 black in the palette."
            )
        values = np.array(image).astype(np.uint8)
        if image.mode == "L" and content[_PNG_BIT_DEPTH] < 8:  # Pillow spreads 2- and 4-bit grey over 0…255
            values //= 255 // (2 ** content[_PNG_BIT_DEPTH] - 1)
        return values


def moved_colour(path: Path, colours: np.ndarray) -> tuple[int, int] | None:
    """Return a value of a palette mask that has the colour of another one, and that one, given the colours (256, 3).

    None where it has none, or colours of its own beside.
    """
    with _decoding(path, "a PNG"), path.open("rb") as stream, _opened(stream, ("PNG",)) as image:
        if image.mode != "P" or image.palette is None or colours.tobytes().startswith(bytes(image.palette.palette)):
            return None
        used, own = _used_colours(image)
        places = {tuple(colour): value for value, colour in enumerate(colours.tolist())}
        if any(tuple(colour) not in places for colour in own.tolist()):
            return None
        meant = [places[tuple(colour)] for colour in own.tolist()]
        return next(((value, other) for value, other in zip(used.tolist(), meant, strict=True) if other != value), None)


def _used_colours(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a palette image that occur and have a colour, and their colours (values, 3)."""
    used, colours = np.flatnonzero(image.histogram()), np.reshape(image.getpalette() or (), (-1, 3))
    used = used[used < len(colours)]
    return used, colours[used]


def _shows_background_white(image: Image.Image) -> bool:
    used, colours = _used_colours(image)
    is_doubtful = len(used) > 1 and used[0] == 0
    return is_doubtful and bool((colours[0] >= _WHITE).all() and (colours[1:] <= _BLACK).all())


def by(size: Sequence[int]) -> str:
    """Write a size (height, width) as people do: width × height."""
    return f"{size[1]} × {size[0]}"


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of a photograph as a viewer shows it, from its header alone."""
    with _decoding(path), path.open("rb") as stream, _opened(stream) as image:
        turned = image.format != "TIFF" and _orientation(image) in _LYING  # Pillow turns the sizes of a TIFF by itself
        return (image.width, image.height) if turned else (image.height, image.width)


def swaps_sides(path: Path) -> bool:
    """Whether EXIF tells a viewer to swap a photograph's height and width."""
    with _decoding(path), path.open("rb") as stream, _opened(stream) as image:
        return _orientation(image) in _LYING


def _opened(stream: IO[bytes], formats: tuple[str, ...] = _FORMATS) -> ImageFile.ImageFile:
    image = Image.open(stream, formats=formats)
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError(f"{image.width} × {image.height} pixels")
    return image


@contextmanager
def _decoding(path: Path, expected: str = "an image") -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        link = f"is a link to {path.readlink()}, which " if path.is_symlink() else ""
        raise ImageError(f"{path} {link}does not exist.") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path} {_instead_of(path, expected)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path} is too large: an image may have {_MAX_PIXELS / 1e6:.0f} million pixels.") from None
    except MemoryError:
        raise ImageError(f"{path} needs more memory to decode than there is.") from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes Pillow's decoders raise almost anything
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from None
        reason = plain(str(error)).removeprefix("image file is ").rstrip(".")
        raise ImageError(f"{path} is damaged: {reason or type(error).__name__}.") from None


def _instead_of(path: Path, expected: str) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError:
        return "cannot be read any more"
    if not start:
        return "is empty (0 bytes)"
    if start[:4] in _TIFF_STARTS:
        return f"is a TIFF that is damaged or has pixels of a kind that is not read, not {expected} that can be read"
    is_text = not any(byte < 9 or 13 < byte < 32 for byte in start)
    return f"is {'a text file' if is_text else 'damaged or of another format'}, not {expected} that can be read"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) where there is none or the metadata is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - the pixels are sound all the same
        return 1


def _levels(pixels: np.ndarray) -> int:
    """Return the span of the values (H, W, 3) of the channel that has most."""
    return int((pixels.max((0, 1)) - pixels.min((0, 1))).max())
