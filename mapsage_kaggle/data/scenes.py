"""Aerial scenes, generated: a small data set in EarthVQA's shape whose labels are right by construction.

For the demo and for tests, where the real data set may not be carried along. Each scene has two sets of
streets, and between them fields, a village, woods, bare soil, a park with a running track, and water. All
coordinates are in units of 1/256 of the scene's side, about 0.6 m.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, NO_DATA

Field = NDArray[np.floating[Any]]
Colour = Sequence[float] | NDArray[np.floating[Any]]

_BACKGROUND, _BUILDING, _ROAD, _WATER, _BARREN, _FOREST, _AGRICULTURE, _PLAYGROUND = (
    index + 1 for index in range(len(EARTHVQA_CLASSES))
)
_SIDE = 256.0
_FAR = 220.0
_STRAIGHT = 0.85  # half of a track's straight, in radii of its bends
_ROOFS = ((168, 74, 58), (140, 62, 52), (86, 110, 140), (172, 168, 160), (120, 116, 112), (196, 188, 176))
_CROPS = ((96, 112, 58), (124, 136, 70), (134, 108, 76), (112, 88, 64), (160, 146, 88), (84, 104, 66))
_CARS = ((225, 225, 225), (60, 62, 68), (170, 40, 40), (50, 80, 140))


def generate_scenes(folder: Path, *, train: int, val: int, size: int, seed: int, test: int = 0) -> None:
    """Write a data set: ``<split>/images_png/<number>.png`` and ``masks_png`` beside it.

    ``train``, ``val`` and ``test`` count scenes of ``size`` pixels squared. A scene depends on the seed (not
    negative), its split and its number alone, so that a longer data set begins like a shorter one. ``Test``
    has no masks, like the published one.

    Raises:
        OSError: The folder cannot be written.
    """
    for position, (split, count) in enumerate((("Train", train), ("Val", val), ("Test", test))):
        if not count:
            continue
        images, masks = folder / split / "images_png", folder / split / "masks_png"
        images.mkdir(parents=True, exist_ok=True)
        if split != "Test":
            masks.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = draw_scene(size, (seed, position, number))
            Image.fromarray(image).save(images / f"{number}.png", compress_level=3)
            if split != "Test":
                Image.fromarray(mask).save(masks / f"{number}.png", compress_level=3)


def draw_scene(size: int, key: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a scene and its mask.

    Args:
        size: The side, in pixels.
        key: Numbers, none negative, of which the scene is a function.

    Returns:
        Image (size, size, 3), RGB, and mask (size, size) with 0 for no data and class + 1 elsewhere.
    """
    return _Scene(size, np.random.RandomState(list(key))).draw()


class _Canvas:
    """The ground, the street grid and the light of a scene, and the brushes that paint on it."""

    def __init__(self, size: int, random: np.random.RandomState) -> None:
        self.size = size
        self.random = random
        self.scale = size / _SIDE
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / self.scale - _SIDE / 2).astype(np.float32)
        self.x, self.y = np.meshgrid(axis, axis)
        self.rgb = np.zeros((size, size, 3), np.float32)
        self.label = np.full((size, size), _BACKGROUND, np.uint8)
        # Streets follow a turned grid, bent a little: u and v are a pixel's coordinates in it.
        self.turn = random.uniform(-0.6, 0.6)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        bend_u, bend_v = random.uniform(-7, 7, 2)
        phase_u, phase_v = random.uniform(0, 6, 2)
        self.u = (cos * self.x + sin * self.y + bend_u * np.sin(self.y / 45 + phase_u)).astype(np.float32)
        self.v = (cos * self.y - sin * self.x + bend_v * np.sin(self.x / 45 + phase_v)).astype(np.float32)
        angle = random.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(angle), np.sin(angle)], np.float32)
        self.trees: list[tuple[float, float, float]] = []

    def noise(self, cell: float) -> Field:
        """Return smooth noise of mean 0 and deviation about 1, with features ``cell`` units wide."""
        count = max(2, round(_SIDE / cell)) + 3
        grid = self.random.standard_normal((count, count)).astype(np.float32)
        span = round(count * cell * self.scale)
        picture = Image.fromarray(grid).resize((max(span, self.size),) * 2, Image.Resampling.BICUBIC)
        return np.asarray(picture, np.float32)[: self.size, : self.size] * 1.5

    def rough(self, cell: float, octaves: int = 3) -> Field:
        """Return noise with detail at ever smaller scales."""
        layers = [self.noise(max(cell / 2**step, 1.2 / self.scale)) / 2**step for step in range(octaves)]
        total: Field = np.sum(layers, axis=0, dtype=np.float32) * np.float32(0.75)
        return total

    def tint(self, colour: Colour, *layers: tuple[Field, float]) -> Field:
        """Return a colour for each pixel, made lighter and darker by layers of noise."""
        change = sum((layer * amount for layer, amount in layers), np.zeros_like(self.u))
        tinted: Field = np.asarray(colour, np.float32) * (1 + change[..., None] / 100)
        return tinted

    def paint(self, distance: Field, colour: Any, label: int | None = None, soft: float = 0.7) -> None:
        """Paint where ``distance`` is negative, with an edge ``soft`` units wide; set the label there."""
        reached = distance < soft / 2
        rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
        if not rows.size:
            return
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        distance, colour = distance[window], np.asarray(colour, np.float32)
        cover = np.clip(0.5 - distance / soft, 0, 1)[..., None]
        under = self.rgb[window]
        under += cover * ((colour if colour.ndim == 1 else colour[window]) - under)
        if label is not None:
            self.label[window][distance < 0] = label

    def shade(self, distance: Field, factor: float, soft: float = 1.0) -> None:
        """Darken what lies where ``distance`` is negative."""
        cover = np.clip(0.5 - distance / soft, 0, 1)[..., None]
        self.rgb *= 1 - (1 - factor) * cover

    def block(self, left: float, right: float, top: float, bottom: float) -> Field:
        """Return the distance from the edge of a rectangle of the street grid, negative within."""
        return box(self.u - (left + right) / 2, self.v - (top + bottom) / 2, right - left, bottom - top)

    def places(
        self, region: Field, spacing: float, margin: float, jitter: float = 0.16
    ) -> list[tuple[float, float]]:
        """Return points (x, y) of a jittered grid along the streets that lie inside a region."""
        steps = np.arange(-_FAR, _FAR, spacing)
        u, v = (axis.ravel() for axis in np.meshgrid(steps, steps))
        u, v = (axis + self.random.uniform(-jitter, jitter, u.size) * spacing for axis in (u, v))
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x, y = cos * u - sin * v, sin * u + cos * v
        column, row = (((axis + _SIDE / 2) * self.scale).astype(int) for axis in (x, y))
        inside = (column >= 0) & (column < self.size) & (row >= 0) & (row < self.size)
        inside[inside] = region[row[inside], column[inside]] < -margin
        return list(zip(x[inside].tolist(), y[inside].tolist(), strict=True))

    def near(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Return the window of pixels within ``reach`` units of a point."""
        row, column = ((value + _SIDE / 2) * self.scale for value in (y, x))
        half = reach * self.scale + 1
        return (
            slice(max(0, int(row - half)), max(0, int(row + half) + 1)),
            slice(max(0, int(column - half)), max(0, int(column + half) + 1)),
        )

    def part(self, rows: slice, columns: slice) -> _Canvas:
        """Return this scene's brushes for a window of it."""
        part = object.__new__(_Canvas)
        part.rgb, part.label = self.rgb[rows, columns], self.label[rows, columns]
        return part


class _Scene(_Canvas):
    """One scene while it is drawn, from the ground up: what comes later lies on top."""

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        random = self.random
        self.grass(np.full_like(self.u, -_FAR))
        street_u = random.uniform(-45, 45)
        streets_v = [random.uniform(-75, -30), random.uniform(25, 75)]
        width_u, *widths_v = random.uniform(5.0, 7.5), random.uniform(3.5, 5.0), random.uniform(3.5, 5.0)
        edges_u = [-_FAR, street_u, _FAR]
        edges_v = [-_FAR, *streets_v, _FAR]
        uses = [self.fields, self.village, self.woods, self.barren, self.park, self.lake]
        order = list(random.permutation(len(uses)))
        for place in range(len(order)):
            if random.uniform() < 0.15:
                order[place] = random.randint(len(uses))
        villages = []
        for place, use in enumerate(order):
            column, row = divmod(place, 3)
            block = self.block(edges_u[column], edges_u[column + 1], edges_v[row], edges_v[row + 1])
            uses[use](block)
            if uses[use] == self.village:
                villages.append(block)
        if random.uniform() < 0.4:
            self.river()
        for block in villages:
            self.houses(block)
        for along, across, at, width in (
            (self.u, self.v, streets_v[0], widths_v[0]),
            (self.u, self.v, streets_v[1], widths_v[1]),
            (self.v, self.u, street_u, width_u),
        ):
            self.street(along, across - at, width)
        for at, across in ((street_u, self.u), (streets_v[0], self.v)):
            self.avenue(np.abs(across - at) - 9.0)
        self.crowns()
        return self.photograph()

    # --- land ---------------------------------------------------------------------------------------------

    def grass(self, block: Field) -> None:
        green = self.random.uniform([104, 122, 72], [128, 138, 88])
        self.paint(block, self.tint(green, (self.rough(40), 8), (self.noise(1.6), 5)), _BACKGROUND)

    def fields(self, block: Field) -> None:
        random = self.random
        cuts_u = np.cumsum(random.uniform(26, 58, 20)) - _FAR
        cuts_v = np.cumsum(random.uniform(30, 70, 20)) - _FAR
        column = np.searchsorted(cuts_u, self.u)
        shifted = self.v + (random.uniform(-14, 14, 21).astype(np.float32))[column]
        row = np.searchsorted(cuts_v, shifted)
        shape = (21, 21)
        crop = np.asarray(_CROPS, np.float32)[random.randint(len(_CROPS), size=shape)]
        crop = (crop * random.uniform(0.85, 1.12, (*shape, 1))).astype(np.float32)[column, row]
        across = np.where(random.uniform(size=shape)[column, row] < 0.5, self.u, shifted)
        period = random.uniform(3.4, 5.2, shape).astype(np.float32)[column, row]
        ploughed = 9 * np.sin(2 * np.pi * across / period)
        wheels = 12 * (np.abs(np.mod(across, period * 6) - 2) < 0.7)
        change = ploughed + wheels + 7 * self.rough(24) + 5 * self.noise(1.5)
        earth = crop * (1 + change[..., None] / 100)
        self.paint(block + 3, earth, _AGRICULTURE)
        edge_u = edge(self.u, cuts_u, column)
        edge_v = edge(shifted, cuts_v, row)
        balk = np.maximum(np.minimum(edge_u, edge_v) - 0.9, block + 3)
        self.paint(balk, self.tint((108, 118, 74), (self.noise(3), 10)), None, soft=1.2)

    def woods(self, block: Field) -> None:
        region = np.maximum(block + 5, block + 9 + 7 * self.rough(28))
        self.paint(region, self.tint((46, 62, 40), (self.noise(4), 12)), _FOREST, soft=3)
        for x, y in self.places(region, 5.6, -0.5, jitter=0.45):
            self.trees.append((x, y, self.random.uniform(2.6, 5.4)))

    def barren(self, block: Field) -> None:
        region = np.maximum(block + 5, block + 8 + 6 * self.rough(34))
        sand = self.random.uniform([186, 152, 118], [206, 176, 146])
        self.paint(region, self.tint(sand, (self.rough(30, 4), 9), (self.noise(1.4), 4)), _BARREN, soft=4)
        track = np.abs(self.u - self.v * 0.4 - 12 * np.sin(self.v / 26 + self.random.uniform(0, 6)))
        for offset in (2.2, -2.2):
            ruts = np.abs(np.mod(track + offset + 20, 40) - 20) - 0.7
            self.paint(np.maximum(ruts, region + 2), sand * 0.86, None, soft=1.5)
        for x, y in self.places(region, 30, 8)[:4]:
            heap = np.hypot(self.x - x, self.y - y) - self.random.uniform(4, 7) + self.noise(6)
            lit = np.clip((self.x - x) * self.sun[0] + (self.y - y) * self.sun[1], -6, 6)
            self.shade(np.hypot(self.x - x + 2 * self.sun[0], self.y - y + 2 * self.sun[1]) - 7, 0.82, 3)
            self.paint(heap, sand * (1 + lit[..., None] * 0.035), None, soft=2)

    def lake(self, block: Field) -> None:
        self.water(np.maximum(block + 8, block + 14 + 8 * self.rough(46)))

    def river(self) -> None:
        """Find a way for a river that leaves the playgrounds dry; none if three tries do not."""
        for _ in range(3):
            at, phase = self.random.uniform(-90, 90), self.random.uniform(0, 6)
            middle = at + 14 * np.sin(self.u / 38 + phase) + 3 * self.noise(50)
            region = (np.abs(self.v - middle) - self.random.uniform(9, 13)).astype(np.float32)
            if not np.any(self.label[region < 3] == _PLAYGROUND):
                self.water(region)
                return

    def water(self, region: Field) -> None:
        self.paint(region - 3.5, self.tint((122, 118, 88), (self.noise(5), 10)), None, soft=5)
        deep = self.random.uniform([34, 62, 72], [58, 86, 86])
        depth = np.clip(-region / 14, 0, 1)
        ripple = np.sin((self.x * 0.5 + self.y) / 1.4 + 2 * self.noise(20)) * 1.5
        colour = self.tint(deep, (1 - depth, 22), (self.rough(40), 5), (ripple, 1), (self.noise(1.5), 2))
        self.paint(region, colour, _WATER, soft=2.2)

    # --- what people built --------------------------------------------------------------------------------

    def street(self, along: Field, across: Field, width: float) -> None:
        distance = np.abs(across)
        verge = self.tint((150, 144, 126), (self.noise(3), 7))
        self.paint(distance - width - 1.6, verge, None, soft=1.6)
        asphalt = self.random.uniform(104, 140) * np.array([1.0, 1.0, 1.01])
        worn = -np.cos(across / width * 2 * np.pi)
        self.paint(distance - width, self.tint(asphalt, (self.rough(26), 5), (worn, 2.5)), _ROAD)
        dash = np.abs(np.mod(along, 11) - 5.5) - 2.6
        self.paint(np.maximum(distance - 0.35, dash), (226, 226, 218), None, soft=0.8)
        if width > 4.6:
            for side in (-1, 1):
                line = np.abs(across - side * (width - 0.9)) - 0.25
                self.paint(line, (214, 214, 206), None, soft=0.8)
        for _ in range(self.random.randint(2, 6)):
            at, side = self.random.uniform(-110, 110), self.random.choice([-0.45, 0.45]) * width
            car = box(along - at, across - side, 4.6, 2.1)
            self.shade(car - 0.6, 0.7)
            self.paint(car, _CARS[self.random.randint(len(_CARS))], None)
            self.paint(box(along - at - 0.3, across - side, 1.9, 1.6), (48, 54, 60), None)

    def village(self, block: Field) -> None:
        yard = self.random.uniform([138, 134, 120], [160, 154, 142])
        worn = np.maximum(block + 3, block + 6 + 5 * self.rough(22))
        self.paint(worn, self.tint(yard, (self.rough(24), 5), (self.noise(1.6), 3)), _BACKGROUND, soft=4)
        gardens = np.maximum(worn + 3, 3 * self.noise(13) + 1)
        self.paint(gardens, self.tint((106, 122, 76), (self.noise(3), 8)), None, soft=2.5)

    def houses(self, block: Field) -> None:
        dry = np.where(self.label == _WATER, _FAR, block).astype(np.float32)
        for x, y in self.places(dry, 28, 11):
            if np.any(self.label[self.near(x, y, 14)] == _WATER):
                continue
            if self.random.uniform() < 0.86:
                self.house(x, y)
            else:
                self.trees.append((x, y, self.random.uniform(5, 7)))

    def house(self, x: float, y: float) -> None:
        random = self.random
        rows, columns = window = self.near(x, y, 24)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        east, south = self.x[window] - x, self.y[window] - y
        u, v = cos * east + sin * south, cos * south - sin * east
        if random.uniform() < 0.5:
            u, v = v, u
        length, depth = random.uniform(15, 22), random.uniform(9, 14)
        height = random.uniform(3, 5.5)
        shadow_u, shadow_v = (cos * self.sun[0] + sin * self.sun[1], cos * self.sun[1] - sin * self.sun[0])
        part = self.part(rows, columns)
        for step in (0.25, 0.5, 0.75, 1.0):
            moved = box(u + shadow_u * height * step, v + shadow_v * height * step, length, depth)
            part.shade(moved, 0.80, soft=1.2)
        roof = np.asarray(_ROOFS[random.randint(len(_ROOFS))], np.float32) * random.uniform(0.88, 1.12)
        outline = box(u, v, length, depth)
        if random.uniform() < 0.65:
            # A gable: the slope that faces the sun is lighter, and tiles run down to the eaves.
            lit = float(np.sign(shadow_v) or 1.0)
            slope = np.where(v * lit > 0, 1.13, 0.80) + 0.04 * np.sin(u * 2 * np.pi / 1.7)
            part.paint(outline, roof * slope[..., None], _BUILDING)
            part.paint(np.maximum(np.abs(v) - 0.4, np.abs(u) - length / 2), roof * 1.28, None)
        else:
            part.paint(outline, roof * (1 + 0.03 * np.sin(u))[..., None], _BUILDING)
            part.paint(np.maximum(outline, -outline - 0.9), roof * 1.25, None)
            for _ in range(random.randint(1, 4)):
                at_u, at_v = random.uniform(-0.32, 0.32, 2) * (length, depth)
                part.shade(box(u - at_u + 0.8, v - at_v + 0.8, 2.6, 2.0), 0.7)
                part.paint(box(u - at_u, v - at_v, 2.4, 1.8), roof * 1.18, None)

    def park(self, block: Field) -> None:
        self.paint(block + 3, self.tint((112, 140, 80), (self.rough(26), 7), (self.noise(2), 4)), _BACKGROUND)
        # In the middle of what is visible of the block; the frame counts as one more edge.
        seen = np.maximum(block, np.maximum(np.abs(self.x), np.abs(self.y)) - _SIDE / 2)
        row, column = np.unravel_index(int(np.argmin(seen)), block.shape)
        u, v = self.u - self.u[row, column], self.v - self.v[row, column]
        radius, turned = max((self.fit(u, v, block), False), (self.fit(v, u, block), True))
        u, v = (v, u) if turned else (u, v)
        if radius > 13:
            self.track(u, v, radius)
        else:
            self.court(u, v, -float(seen[row, column]))
        for x, y in self.places(np.maximum(block, -np.hypot(u, v) + 62), 22, 10):
            self.trees.append((x, y, self.random.uniform(4, 6.5)))

    def fit(self, u: Field, v: Field, block: Field) -> float:
        """Return the radius of the largest track along ``u`` that a block has room for, at most 28."""
        return next((r for r in range(28, 12, -3) if np.all(block[stadium(u, v, r) < 0] < -6)), 0)

    def track(self, u: Field, v: Field, radius: float) -> None:
        straight = radius * _STRAIGHT
        outer = stadium(u, v, radius)
        red = self.random.uniform([172, 78, 56], [192, 92, 70])
        self.paint(outer - 1.5, (168, 160, 146), None, soft=1.5)
        self.paint(outer, self.tint(red, (self.noise(3), 3)), _PLAYGROUND)
        lanes = radius * 0.3
        for lane in range(1, 5):
            self.paint(np.abs(outer + lane * lanes / 5) - 0.12, (220, 196, 186), None, soft=1.0)
        mown = np.sign(np.sin(u * np.pi / 5.5))
        turf = self.tint((82, 132, 66), (mown, 5), (self.noise(2), 4))
        self.paint(outer + lanes, turf, None)
        pitch = box(u, v, straight * 1.9, (radius - lanes) * 1.5)
        middle = np.hypot(u, v) - radius * 0.22
        for line in (pitch, middle, np.maximum(np.abs(u) - 0.05, pitch)):
            self.paint(np.maximum(np.abs(line) - 0.3, pitch - 0.4), (228, 232, 222), None, soft=0.9)

    def court(self, u: Field, v: Field, room: float) -> None:
        """Draw ball courts side by side, where a track does not fit."""
        half = max(4.0, min(room - 2, 14.0))
        ground = box(u, v, 4 * half, 2 * half)
        base = ((58, 120, 120), (178, 84, 60))[self.random.randint(2)]
        self.paint(ground, self.tint(base, (self.noise(3), 3)), _PLAYGROUND)
        for at in (-half, half):
            court = box(u - at, v, 1.6 * half, 1.7 * half)
            ring = np.hypot(u - at, v) - half * 0.25
            for line in (court, ring, np.maximum(np.abs(v), court)):
                self.paint(np.maximum(np.abs(line) - 0.25, court - 0.3), (226, 226, 220), None, soft=0.9)

    # --- trees, light, camera -----------------------------------------------------------------------------

    def avenue(self, strip: Field) -> None:
        """Plant trees along a street."""
        for x, y in self.places(np.abs(strip) - 2.0, 17, 0):
            row, column = (int((value + _SIDE / 2) * self.scale) for value in (y, x))
            if (
                self.label[row, column] in (_BACKGROUND, _AGRICULTURE, _BARREN)
                and self.random.uniform() < 0.5
            ):
                self.trees.append((x, y, self.random.uniform(3.5, 5.0)))

    def crowns(self) -> None:
        """Draw all trees: crowns are domes, lit from the sun's side, and the higher hides the lower."""
        height = np.zeros((self.size, self.size), np.float32)
        hue = np.zeros_like(height)
        for x, y, radius in self.trees:
            row, column = (int((value + _SIDE / 2) * self.scale) for value in (y, x))
            if self.label[row, column] == _WATER:
                continue
            window = self.near(x, y, radius)
            square = ((self.x[window] - x) ** 2 + (self.y[window] - y) ** 2) / radius**2
            dome = (
                np.sqrt(np.maximum(1 - square, 0)) * radius + 2.0 * (square < 1) + self.random.uniform(0, 1)
            )
            dome[square >= 1] = 0
            above = dome > height[window]
            height[window][above] = dome[above]
            hue[window][above] = self.random.uniform(-1, 1)
        leaves = np.where(height > 0, height + 0.45 * self.noise(2.2), 0).astype(np.float32)
        slope_y, slope_x = np.gradient(leaves, 1 / self.scale)
        light = np.clip(-(slope_x * self.sun[0] + slope_y * self.sun[1]), -1.6, 1.6)
        # Shadows fall away from the sun. Padded, so that none comes in again on the far side.
        margin = round(4 * self.scale)
        left, top = (margin + round(float(value) * 3.2 * self.scale) for value in self.sun)
        trees = np.pad(height > 0, margin)
        shadow = trees[top : top + self.size, left : left + self.size] & (height == 0)
        blurred = Image.fromarray((shadow * 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(0.8 * self.scale)
        )
        self.rgb *= (1 - 0.42 * np.asarray(blurred, np.float32) / 255)[..., None]
        green = np.stack([58 + 12 * hue, 86 + 7 * hue, 48 + 3 * hue], -1)
        colour = green * (1 + 0.30 * light + 0.03 * self.noise(1.3))[..., None]
        self.paint(np.where(height > 0, -1.0, 1.0).astype(np.float32), colour, None, soft=0.1)
        self.label[height > 0] = _FOREST

    def photograph(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Take the picture: light of the day, haze, the lens, the sensor, and the edge of the strip."""
        random = self.random
        light = random.uniform(0.88, 1.1) * random.uniform(0.97, 1.03, 3)
        haze = random.uniform(0, 0.07)
        picture = self.rgb * (light * (1 - haze)) + 175 * haze
        picture *= (1 + 0.03 * self.noise(150))[..., None]
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(0.45 * self.scale))
        grain = random.standard_normal((self.size, self.size, 3)) * 2.5
        pixels = np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8)
        if random.uniform() < 0.12:
            angle = random.uniform(0, 2 * np.pi)
            beyond = self.x * np.cos(angle) + self.y * np.sin(angle) > random.uniform(100, 140)
            pixels[beyond] = 0
            self.label[beyond] = NO_DATA
        return pixels, self.label


def stadium(u: Field, v: Field, radius: float) -> Field:
    """Return the distance from the edge of a running track, negative within."""
    ends = np.maximum(np.abs(u) - np.float32(radius * _STRAIGHT), 0)
    distance: Field = np.hypot(ends, v) - np.float32(radius)
    return distance


def edge(values: Field, cuts: NDArray[np.float64], index: NDArray[np.intp]) -> Field:
    """Return the distance to the nearest cut; ``index`` is where ``searchsorted`` puts each value."""
    above = cuts[np.minimum(index, len(cuts) - 1)]
    below = cuts[np.maximum(index - 1, 0)]
    distance: Field = np.minimum(np.abs(above - values), np.abs(values - below))
    return distance


def box(u: Field, v: Field, length: float, depth: float) -> Field:
    """Return the distance from the edge of a centred rectangle, negative within (exact on its sides)."""
    distance: Field = np.maximum(np.abs(u) - np.float32(length / 2), np.abs(v) - np.float32(depth / 2))
    return distance
