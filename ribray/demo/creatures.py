"""A small world of invented creatures, drawn on demand, in which RIB's effect shows.

A creature has a *head* (a two-toned disc; its kind is the creature's class), a *body* (an ellipse in the hue
and pattern of one of a few families) and legs. The label says only which heads are in the picture, so that a
classifier needs no more than the head, while the mask covers head, body and legs: the gap that RIB closes.

Every picture is a pure function of (seed, split, index, size, classes). Lengths are in *units*, 1/112 of its
side: another size shows the same picture in another resolution.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ribray.data.transforms import keyed_rng

UNITS = 112.0  # the picture's side, in the unit of every length below
FAMILIES = 8  # kinds of body; the shipped backbone was pretrained on these
OWN_FAMILY = 0.4  # how often a class has a body of its own family: more helps plain CAM and leaves RIB less
TWO_CREATURES = 0.2  # share of pictures with two creatures
TWO_CREATURES_SCALE = 0.75  # two full-sized creatures would hide one another
LEG = 2.4  # half the width of a leg
LEG_START, LEG_END = 0.45, 1.4  # below the body's middle, in half-axes
NOISE = 6.0  # standard deviation of the pixel noise, in grey levels
NAMES = ("tavi", "lumo", "pipa", "noru", "kibo", "wela")
_SYLLABLES = tuple(consonant + vowel for vowel in "aoiue" for consonant in "bdfgjklmnprstvz")


def class_names(count: int) -> tuple[str, ...]:
    """Names of the first `count` kinds of creature, all different: six given ones, then invented ones."""
    pairs = len(_SYLLABLES) ** 2
    names = list(NAMES)
    for number in range(count):
        # A stride without a factor in common with the number of pairs reaches each of them once.
        first, second = divmod(number * 1013 % pairs, len(_SYLLABLES))
        names.append(_SYLLABLES[first] + _SYLLABLES[second])
    return tuple(dict.fromkeys(names))[:count]


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Colour as (3,) float32 in 0…255; the hue wraps around at 1."""
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)), np.float32) * 255


# --- the canvas ---------------------------------------------------------------------------------------------


@dataclass
class Canvas:
    """A picture in the making: `pixels` (size, size, 3) float32 in 0…255, `mask` (size, size) uint8."""

    pixels: np.ndarray
    mask: np.ndarray

    @property
    def scale(self) -> float:
        return len(self.mask) / UNITS

    def patch(self, y: float, x: float, radius: float) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The square of half-side `radius` around (y, x): its place in the arrays, and offsets from it."""
        places, offsets = [], []
        for centre in (y, x):
            low = max(int((centre - radius) * self.scale), 0)
            high = min(math.ceil((centre + radius) * self.scale) + 1, len(self.mask))
            places.append(slice(low, max(high, low)))
            offsets.append((np.arange(low, max(high, low), dtype=np.float32) + 0.5) / self.scale - centre)
        return (places[0], places[1]), offsets[0][:, None], offsets[1][None, :]

    def paint(
        self,
        place: tuple[slice, slice],
        distance: np.ndarray,
        colour: np.ndarray,
        label: int | None = None,
        opacity: float = 1.0,
    ) -> None:
        """Lay `colour` (…, 3) over a shape, given by its edge's `distance` (h, w) in units, negative inside."""
        cover = np.clip(0.5 - distance * self.scale, 0, 1)  # the edge is one pixel of partial cover
        pixels = self.pixels[place]
        pixels += (opacity * cover)[..., None] * (colour - pixels)
        if label is not None:
            self.mask[place][cover >= 0.5] = label


def _ellipse(along: np.ndarray, across: np.ndarray, a: float, b: float) -> np.ndarray:
    """Distance to an ellipse with half-axes a and b, exact to first order at its edge."""
    radius = np.sqrt((along / a) ** 2 + (across / b) ** 2)
    slope = np.sqrt((along / a**2) ** 2 + (across / b**2) ** 2)
    return (radius - 1) * radius / np.maximum(slope, 1e-6)


def _box(along: np.ndarray, across: np.ndarray, a: float, b: float, corner: float) -> np.ndarray:
    """Distance to a rectangle with half-sides a and b and rounded corners."""
    dx, dy = np.abs(along) - (a - corner), np.abs(across) - (b - corner)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _capsule(y: np.ndarray, x: np.ndarray, to_y: float, to_x: float, radius: float) -> np.ndarray:
    """Distance to a thick line from (0, 0) to (to_y, to_x) with round ends."""
    share = np.clip((y * to_y + x * to_x) / (to_y**2 + to_x**2), 0, 1)
    return np.hypot(y - share * to_y, x - share * to_x) - radius


# --- what lies behind ---------------------------------------------------------------------------------------


def _smooth(grid: np.ndarray, size: int) -> np.ndarray:
    """A coarse grid (g, g, C) of control points as a smooth surface (size, size, C): a cubic B-spline."""
    knots = len(grid) - 3
    position = (np.arange(size, dtype=np.float32) + 0.5) / size * knots
    cell = np.minimum(position.astype(int), knots - 1)
    t = position - cell
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    taps = [((weight / 6)[:, None, None], cell + tap) for tap, weight in enumerate(weights)]
    # Sums in a fixed order, not a matrix product, whose last bits depend on the number of threads.
    rows: np.ndarray = sum(weight * grid.astype(np.float32)[knot] for weight, knot in taps)  # (size, g, C)
    columns = rows.swapaxes(0, 1)
    surface: np.ndarray = sum(weight * columns[knot] for weight, knot in taps)  # (x, y, C)
    return np.ascontiguousarray(surface.swapaxes(0, 1))


def draw_landscape(rng: np.random.Generator, size: int) -> Canvas:
    hue, value = rng.uniform(), rng.uniform(0.5, 0.85)
    other_hue = hue + rng.uniform(-0.2, 0.2)
    start, end = (hsv(each, rng.uniform(0.1, 0.32), value) for each in (hue, other_hue))
    blend = rng.uniform(-0.3, 1.3, (6, 6, 1))
    light = rng.uniform(0.72, 1.2, (6, 6, 1))
    ground = _smooth((start + blend * (end - start)) * light, size)
    canvas = Canvas(ground, np.zeros((size, size), np.uint8))
    for _ in range(rng.integers(4, 10)):
        _stone(rng, canvas)
    return canvas


def _stone(rng: np.random.Generator, canvas: Canvas) -> None:
    y, x, angle = rng.uniform(0, UNITS), rng.uniform(0, UNITS), rng.uniform(0, math.pi)
    a, b = rng.uniform(5, 19), rng.uniform(4, 12)
    place, dy, dx = canvas.patch(y, x, a + b)
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = dy * math.cos(angle) - dx * math.sin(angle)
    is_round = rng.uniform() < 0.5
    distance = _ellipse(along, across, a, b) if is_round else _box(along, across, a, b, rng.uniform(1, b))
    colour = hsv(rng.uniform(), rng.uniform(0.03, 0.22), rng.uniform(0.35, 0.9))
    canvas.paint(place, distance, colour, opacity=rng.uniform(0.6, 0.95))


# --- creatures ----------------------------------------------------------------------------------------------


def _wave(t: np.ndarray) -> np.ndarray:
    return np.sin(2 * math.pi * t)


# From (along, across, radius) to light, above 0, and dark. The first two count periods of the pattern from the
# middle of the body, the last goes from 0 there to 1 at the edge.
PATTERNS: tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v, r: _wave(u),  # stripes across the body
    lambda u, v, r: _wave(v),  # stripes along it
    lambda u, v, r: _wave(0.7 * (u + v)),  # diagonal
    lambda u, v, r: 2 * _wave(0.6 * u) * _wave(0.6 * v),  # checker
    lambda u, v, r: 2 * (_wave(0.5 * (u + v)) * _wave(0.5 * (u - v))) ** 2 - 0.7,  # spots
    lambda u, v, r: _wave(2.2 * r),  # rings
    lambda u, v, r: _wave(u + 0.9 * np.abs((1.2 * v) % 1 - 0.5)),  # zigzag
    lambda u, v, r: 2.2 * np.maximum(np.abs(_wave(0.35 * (u + v))), np.abs(_wave(0.35 * (u - v)))) - 1.9,  # net
)


@dataclass(frozen=True)
class Creature:
    kind: int | None  # of head; None: it has no head
    family: int  # of body
    y: float  # middle of the body
    x: float
    a: float  # half-axes of the body
    b: float
    tilt: float
    facing: int  # 1: the head is on the right, −1: on the left
    head: float  # radius
    legs: tuple[tuple[float, float], ...]  # place of each along the body, and how far its foot stands ahead
    scale: float

    def axes(self, dy: np.ndarray, dx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets in the picture as offsets (ahead, down) of the creature."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return self.facing * (dx * cos + dy * sin), dy * cos - dx * sin

    def offset(self, ahead: float, down: float) -> tuple[float, float]:
        """The other way: offsets of the creature as offsets (dy, dx) in the picture."""
        cos, sin, along = math.cos(self.tilt), math.sin(self.tilt), self.facing * ahead
        return along * sin + down * cos, along * cos - down * sin

    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """How far it reaches (up, down) and (left, right) of the body's middle."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        body = math.hypot(self.a * sin, self.b * cos), math.hypot(self.a * cos, self.b * sin)
        parts = [((0.0, 0.0), body), (self.offset(*self.neck), (self.head, self.head))]
        sole = 2 * (LEG * self.scale,)
        parts += [(self.offset(place + ahead, LEG_END * self.b), sole) for place, ahead in self.legs]
        return tuple(  # type: ignore[return-value]
            (max(size[i] - at[i] for at, size in parts), max(at[i] + size[i] for at, size in parts)) for i in (0, 1)
        )

    @property
    def neck(self) -> tuple[float, float]:
        return self.a + 0.3 * self.head, -0.3 * self.b

    def point(self, ahead: float, down: float) -> tuple[float, float]:
        """The place (y, x) that lies so far ahead and below of the body's middle."""
        dy, dx = self.offset(ahead, down)
        return self.y + dy, self.x + dx


def draw_build(
    rng: np.random.Generator, kind: int | None, family: int, scale: float, cell: tuple[int, int, int] = (0, 0, 1)
) -> Creature:
    """A random creature, all of it in the picture, at a random place in its cell: (row, column, n) of n×n."""
    a, b = scale * rng.uniform(24, 38), scale * rng.uniform(14, 22)
    head, tilt = scale * rng.uniform(5.5, 8), rng.uniform(-0.5, 0.5)
    facing = 1 if rng.uniform() < 0.5 else -1
    count = int(rng.integers(2, 5))
    places = (np.linspace(-0.62, 0.62, count) + rng.uniform(-0.06, 0.06, count)) * a
    legs = tuple(zip(places.tolist(), (rng.uniform(-0.3, 0.3, count) * b).tolist(), strict=True))
    creature = Creature(kind, family, 0.0, 0.0, a, b, tilt, facing, head, legs, scale)
    y, x = (_placed(rng, *extent, part, cell[2]) for extent, part in zip(creature.extent(), cell[:2], strict=True))
    return replace(creature, y=y, x=x)


def _placed(rng: np.random.Generator, before: float, after: float, part: int, parts: int) -> float:
    """A random place along an axis for what reaches from −`before` to `after`: in its part, or at least inside."""
    side = UNITS / parts
    slack = max(side - before - after, 0)
    place = side * part + (side - before - after) / 2 + before + rng.uniform(-0.5, 0.5) * slack
    return min(max(place, before + 1), UNITS - after - 1)


def draw_body(rng: np.random.Generator, canvas: Canvas, creature: Creature, label: int) -> None:
    hue = creature.family / FAMILIES + rng.uniform(-0.03, 0.03)
    colour = hsv(hue, 0.45 * rng.uniform(0.6, 1.2), rng.uniform(0.6, 0.85))
    amplitude, phase_u, phase_v = rng.uniform(0.12, 0.35), rng.uniform(), rng.uniform()
    a, b, scale = creature.a, creature.b, creature.scale
    for place, ahead in creature.legs:
        down, right = creature.offset(ahead, (LEG_END - LEG_START) * b)
        hip = creature.point(place, LEG_START * b)
        patch, dy, dx = canvas.patch(*hip, math.hypot(down, right) + 4 * scale)
        canvas.paint(patch, _capsule(dy, dx, down, right, LEG * scale), colour * 0.75, label)
    patch, dy, dx = canvas.patch(creature.y, creature.x, a + 2)
    u, v = creature.axes(dy, dx)
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    period = 9.0 * scale
    wave = PATTERNS[creature.family % len(PATTERNS)](u / period + phase_u, v / period + phase_v, radius)
    pattern = np.tanh(2.5 * wave)  # crisp, −1 to 1
    light = 1 + amplitude * pattern - 0.1 * v / b - 0.12 * np.minimum(radius, 1) ** 4  # lit from above, round
    canvas.paint(patch, _ellipse(u, v, a, b), colour * light[..., None], label)


# Where a head wears its second colour: the distance of `Canvas.paint`, from (ahead, down), in radii.
CAPS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: v + 0.1 + 0 * u,  # on top
    lambda u, v: np.hypot(u, v) - 0.62,  # in the middle
    lambda u, v: u + 0.15 + 0 * v,  # at the back
    lambda u, v: np.abs(v + 0.1) - 0.35 + 0 * u,  # a band
)
HUES = 6  # of heads that wear their colours in the same way


def head_style(kind: int) -> tuple[float, float, int]:
    """Hue of the face, hue of the cap, and which cap, for any kind of head; no two kinds are the same."""
    turn, place = divmod(kind, HUES)
    hue = (place + (turn * 0.381966) % 1) / HUES
    return hue, hue + 1 / 12, turn % len(CAPS)


def draw_head(rng: np.random.Generator, canvas: Canvas, creature: Creature, label: int) -> None:
    assert creature.kind is not None
    face, cap, shape = head_style(creature.kind)
    value, size = rng.uniform(0.85, 1.0), creature.head
    patch, dy, dx = canvas.patch(*creature.point(*creature.neck), size + 1)
    u, v = creature.axes(dy, dx)
    disc = np.hypot(dy, dx) - size
    canvas.paint(patch, disc, hsv(face, 0.95, value), label)
    canvas.paint(patch, np.maximum(disc, CAPS[shape](u / size, v / size) * size), hsv(cap, 0.95, value))
    canvas.paint(patch, np.hypot(u - 0.35 * size, v + 0.05 * size) - 0.3 * size, hsv(0, 0, 0.98))
    canvas.paint(patch, np.hypot(u - 0.45 * size, v + 0.05 * size) - 0.16 * size, hsv(0, 0, 0.1))


# --- pictures -----------------------------------------------------------------------------------------------


def draw(
    split: str, index: int, seed: int, size: int = 112, classes: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture `index` of a split: image (size, size, 3) uint8, mask (size, size) uint8, labels (classes,) bool."""
    rng, kinds = kinds_of(split, index, seed, classes)
    canvas = draw_landscape(rng, size)
    row, column = divmod(int(rng.integers(4)), 2)
    cells, scale = [(0, 0, 1)], 1.0
    if len(kinds) == 2:  # they stand in opposite quarters
        cells, scale = [(row, column, 2), (1 - row, 1 - column, 2)], TWO_CREATURES_SCALE
    creatures = []
    for kind, cell in zip(kinds, cells, strict=True):
        family = kind % FAMILIES if rng.uniform() < OWN_FAMILY else int(rng.integers(FAMILIES))
        creatures.append(draw_build(rng, kind, family, scale, cell))
    for creature, kind in zip(creatures, kinds, strict=True):
        draw_body(rng, canvas, creature, kind + 1)
    for creature, kind in zip(creatures, kinds, strict=True):  # heads last: none is hidden
        draw_head(rng, canvas, creature, kind + 1)
    return finished(rng, canvas), canvas.mask, np.isin(np.arange(classes), kinds)


def kinds_of(split: str, index: int, seed: int, classes: int) -> tuple[np.random.Generator, list[int]]:
    """The kinds of creature in a picture, and what goes on to draw it."""
    rng = keyed_rng("synthetic", seed, split, index)
    kinds = [index % classes]  # in turn, so that the smallest world has every class
    if rng.uniform() < TWO_CREATURES:
        kinds.append((kinds[0] + 1 + int(rng.integers(classes - 1))) % classes)
    return rng, kinds


def finished(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    noise = rng.standard_normal(canvas.pixels.shape, np.float32) * np.float32(NOISE)
    return np.clip(np.rint(canvas.pixels + noise), 0, 255).astype(np.uint8)
