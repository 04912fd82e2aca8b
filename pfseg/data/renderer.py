"""Renders aerial-like scenes with exact labels, see `pfseg.data.synthetic`.

Units: see `pfseg.data.canvas`. The order in which random numbers are drawn is part of the scenes: another order gives
other pixels.
"""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np

from pfseg.data.canvas import Canvas, box, fill, line, pixels

FIELD, ROAD, BUILDING, TREE, WATER, CAR = range(6)

_SOILS = ((96, 116, 62), (122, 132, 74), (74, 98, 56), (152, 140, 92), (134, 112, 82), (168, 150, 116), (108, 94, 76))
_TILES = ((158, 84, 64), (134, 72, 58), (140, 116, 92), (96, 116, 128), (98, 122, 104))
_ROOFS = (*_TILES, (112, 112, 114), (82, 80, 84), (178, 174, 166), (206, 204, 198))
_LEAVES = ((52, 82, 44), (66, 94, 48), (46, 72, 50), (84, 96, 48), (104, 92, 46))
_WATERS = ((44, 74, 92), (58, 88, 84), (74, 86, 66), (96, 104, 92), (52, 64, 72), (88, 114, 120))
_SHORES = ((160, 148, 120), (92, 96, 66))
_PAVINGS = ((104, 104, 106), (84, 85, 90), (126, 123, 117), (148, 143, 134), (142, 124, 100))
_GREYS = ((232, 232, 230), (38, 40, 44), (150, 154, 160), (98, 102, 110))
_PAINTS = (*_GREYS, (172, 40, 38), (46, 78, 138), (196, 176, 120))
_GLASS = np.array([46.0, 54, 62])


class _Road:
    """A straight centre line with a bend, through the whole scene: (N, 2) `points` 4 px apart, and their `normals`."""

    def __init__(self, size: int, angle: float, offset: float, width: int, rng: np.random.Generator) -> None:
        along = np.arange(-0.85 * size, 0.85 * size, 4.0)
        side = offset + rng.uniform(0, 0.13) * size * np.sin(along / size * rng.uniform(1.5, 5) + rng.uniform(0, 6.3))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self.points = np.stack([along, side], axis=1) @ turn + size / 2
        tangents = np.gradient(self.points, axis=0)
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        self.normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
        self.width = width

    def angle(self, place: int) -> float:
        """Direction of the road at point `place`."""
        return float(np.arctan2(-self.normals[place, 0], self.normals[place, 1]))

    def draw(self, canvas: np.ndarray, width: int, value: int = 1) -> None:
        """Draw the line into a mask."""
        cv2.polylines(canvas, [pixels(self.points)], False, (value,), width)


class SceneRenderer(Canvas):
    """One scene while it is painted."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        super().__init__(size, rng)
        self.mask[:] = FIELD
        self.town = rng.uniform(0, 1)  # how built-up the scene is
        self.roads: list[_Road] = []
        self.cars: list[np.ndarray] = []  # their centres
        self.upright: list[partial[None]] = []  # what is painted after the shadows have fallen

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Paint everything: image (S, S, 3) uint8 RGB and mask (S, S) uint8."""
        self._fields()
        if self.rng.random() < 0.65:
            self._water()
        self._roads()
        for _ in range(self.count(0.8 + 1.2 * self.town)):
            self._car_park()
        for _ in range(self.count(12 + 36 * self.town)):
            self._building()
        for road in self.roads:
            self._traffic(road)
        self._trees()
        shade = cv2.GaussianBlur(self.shade, (0, 0), 0.8)[..., None]
        dark = np.array([0.42, 0.45, 0.53]) * self.rng.uniform(0.85, 1.25)
        self.image *= 1 - shade * (1 - dark).astype(np.float32)
        for paint in self.upright:
            paint()
        return self._photograph(), self.mask

    # Ground

    def _fields(self) -> None:
        """A patchwork of parcels, each with its own colour and rows."""
        rng = self.rng
        along, across = self.axes(rng.uniform(0, np.pi))
        bent = along + 10 * self.noise(90)
        counts, extent = rng.integers(6, 13, 2), (-self.size, 1.5 * self.size)
        cuts = [np.sort(rng.uniform(*extent, count)).astype(np.float32) for count in counts]
        columns, rows = (np.searchsorted(cut, axis) for cut, axis in zip(cuts, (bent, across), strict=True))
        parcel = columns * 16 + rows
        season = np.stack([self.pick(_SOILS, 6) for _ in range(4)])
        colours = season[rng.integers(4, size=256)] * rng.uniform(0.86, 1.14, (256, 1))
        pitch = rng.uniform(0.6, 1.5, 256)[parcel].astype(np.float32)
        turned = np.where((rng.random(256) < 0.5)[parcel], bent, across)
        depth = (rng.uniform(0, 15, 256) * (rng.random(256) < 0.75 - 0.4 * self.town))[parcel].astype(np.float32)
        light = depth * np.sin(turned * pitch) + 5 * (self.noise(30) + self.noise(5))
        self.image[:] = colours.astype(np.float32)[parcel] + light[..., None]
        ridges = cv2.Laplacian(parcel.astype(np.float32), cv2.CV_32F) != 0
        self.image[ridges] *= 0.85

    def _water(self) -> None:
        """A lake or a river with ripples and a shore."""
        rng = self.rng
        along, across = self.axes(rng.uniform(0, np.pi))
        if rng.random() < 0.5:
            course = across - np.median(across) + self.size * (rng.uniform(-0.3, 0.3) + 0.09 * self.noise(110))
            depth = rng.uniform(0.07, 0.16) * self.size - np.abs(course)
        else:
            x, y = rng.uniform(0.1, 0.9, 2) * self.size
            distance = np.hypot(self.x - x, (self.y - y) * rng.uniform(0.7, 1.4))
            depth = rng.uniform(0.18, 0.36) * self.size + 0.05 * self.size * self.noise(60) - distance
        wet, shore = depth > 0, (depth > -rng.uniform(2, 7)) & (depth <= 0)
        self.image[shore] = self.image[shore] * 0.5 + self.pick(_SHORES) * 0.5
        wave = np.sin((along + 6 * self.noise(24)) * rng.uniform(0.5, 1.0)) * self.noise(20)
        light = 4 * wave + 2.5 * self.noise(4) + np.minimum(depth, 30) * rng.uniform(-0.7, 0.1)
        self.image[wet] = self.pick(_WATERS) + light[wet][:, None]
        self.mask[wet] = WATER
        self.taken[cv2.dilate(wet.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0] = 1

    def _roads(self) -> None:
        """One road or a crossing; asphalt, concrete or dirt; with lanes unless it is dirt."""
        rng = self.rng
        angle = rng.uniform(0, np.pi)
        turns = [0.0, rng.normal(np.pi / 2, 0.2)][: 1 + (rng.random() < 0.35 + 0.4 * self.town)]
        if self.size > 320:  # more ground, more roads
            turns += [turns[0]]
        for turn in turns:
            offset = rng.uniform(-0.33, 0.33) * self.size
            self.roads.append(_Road(self.size, angle + turn, offset, int(rng.integers(20, 34)), rng))
        paving = self.pick(_PAVINGS, 4)
        surface = np.zeros_like(self.mask)
        for road in self.roads:
            road.draw(surface, road.width)
        verge = cv2.dilate(surface, np.ones((5, 5), np.uint8)) > 0
        self.image[verge] = self.image[verge] * 0.6 + self.pick(_SOILS) * 0.4
        self._pave(surface, paving)
        if paving[0] - paving[2] < 24:
            self._lanes(paving)

    def _pave(self, surface: np.ndarray, colour: np.ndarray) -> None:
        where = surface > 0
        texture = 5 * self.noise(40) + 3 * self.noise(2.5)
        self.image[where] = colour + texture[where][:, None]
        self.mask[where] = ROAD
        self.taken[where] = 1

    def _lanes(self, paving: np.ndarray) -> None:
        paint = np.clip(paving + self.rng.uniform(50, 100), 0, 240)
        marks = np.zeros_like(self.mask)
        for inset, value in ((4, 1), (6, 0)):  # a line along either side, 2 px wide
            for road in self.roads:
                road.draw(marks, road.width - inset, value)
        for road in self.roads:
            for place in range(0, len(road.points) - 3, 6):
                line(marks, np.trunc(road.points[[place, place + 3]]), 1)
        where = (marks > 0) & (self.mask == ROAD)
        self.image[where] = self.image[where] * 0.35 + paint * 0.65

    # What stands on the ground

    def _beside(self, road: _Road, gap: float, depth: float) -> tuple[np.ndarray, float] | None:
        """A random point beside a road inside the scene, at `gap` plus half of `depth`, and the road's direction."""
        inside = np.flatnonzero(((road.points > 0) & (road.points < self.size)).all(axis=1))
        if not len(inside):
            return None
        place = int(self.rng.choice(inside))
        side = self.rng.choice((-1, 1))
        return road.points[place] + side * road.normals[place] * (road.width / 2 + gap + depth / 2), road.angle(place)

    def _any_road(self) -> _Road:
        return self.roads[self.rng.integers(len(self.roads))]

    def _car_park(self) -> None:
        """A paved rectangle beside a road with two rows of bays."""
        bays, length, bay = int(self.rng.integers(4, 8)), 20, 12
        width, depth = bays * bay + 6, 2 * length + 24
        place = self._beside(self._any_road(), 1, depth)
        if place is None or not self.claim(corners := box(place[0], width, depth, place[1]), 0):
            return
        centre, angle = place
        surface, marks = np.zeros_like(self.mask), np.zeros_like(self.mask)
        fill(surface, corners, 1)
        self._pave(surface, self.pick(_PAVINGS, 4))
        axis = np.array([np.cos(angle), np.sin(angle)])
        across, busy = np.array([-axis[1], axis[0]]), self.rng.uniform(0.4, 0.95)
        for side in (-1, 1):
            for number in range(bays + 1):
                at = centre + axis * (number - bays / 2) * bay + side * across * (depth / 2 - 1)
                line(marks, np.stack([at, at - side * across * length]), 1)
                if number < bays and self.rng.random() < busy:
                    self._car(at + axis * bay / 2 - side * across * length / 2, angle + np.pi / 2)
        self.image[(marks > 0) & (surface > 0)] += self.rng.uniform(40, 80)

    def _building(self) -> None:
        rng = self.rng
        width, depth = rng.uniform(26, 66), rng.uniform(24, 46)
        place: tuple[np.ndarray, float] | None
        if rng.random() < 0.8:
            place = self._beside(self._any_road(), rng.uniform(4, 26), depth)
        else:
            place = rng.uniform(0, self.size, 2), rng.uniform(0, np.pi)
        if place is not None and self.claim(corners := box(place[0], width, depth, place[1]), 5):
            self.cast(corners, rng.uniform(9, 26))
            self.upright.append(partial(self._roof, corners, place[1]))

    def _roof(self, corners: np.ndarray, angle: float) -> None:
        """Flat with a parapet and boxes, gabled or hipped; sides towards the sun are brighter."""
        colour = self.pick(_ROOFS)
        fill(self.mask, corners, BUILDING)
        kind = self.rng.random()
        if kind < 0.35:
            self._flat_roof(corners, angle, colour)
        else:
            self._ridged_roof(corners, 0.0 if kind < 0.7 else 0.3, colour)

    def _flat_roof(self, corners: np.ndarray, angle: float, colour: np.ndarray) -> None:
        rng, centre = self.rng, corners.mean(axis=0)
        fill(self.image, corners, colour * 1.12)
        fill(self.image, centre + (corners - centre) * 0.88, colour)
        for _ in range(rng.integers(1, 5)):
            spot = centre + (corners - centre).T @ rng.dirichlet(np.ones(4)) * 0.9
            chimney = box(spot, rng.uniform(3, 8), rng.uniform(3, 6), angle)
            fill(self.image, chimney + self.shadow * 2, colour * 0.6)
            fill(self.image, chimney, self.pick(_ROOFS))

    def _ridged_roof(self, corners: np.ndarray, inset: float, colour: np.ndarray) -> None:
        """The ridge joins the middles of the first and the third side, `inset` from there (corners run round)."""
        centre, (first, second, third, fourth) = corners.mean(axis=0), corners
        middles = (corners + np.roll(corners, -1, axis=0)) / 2
        start, end = (middles[side] + (centre - middles[side]) * inset * 2 for side in (3, 1))
        faces = ([first, second, end, start], [second, third, end], [third, fourth, start, end], [fourth, first, start])
        for middle, face in zip(middles, faces, strict=True):
            out = middle - centre
            lit = 1 - 0.24 * float(out @ self.shadow / np.linalg.norm(out) / np.linalg.norm(self.shadow))
            fill(self.image, np.array(face), colour * lit)
            for row in np.arange(0.12, 1, 0.16) if len(face) == 4 else ():  # courses of tiles, parallel to the eaves
                ends = [face[0] + (face[-1] - face[0]) * row, face[1] + (face[-2] - face[1]) * row]
                line(self.image, np.array(ends), colour * lit * 0.92)
        line(self.image, np.array([start, end]), colour * 1.25)

    def _traffic(self, road: _Road) -> None:
        busy = self.rng.uniform(0.25, 0.75)
        for side in (-1, 1):
            place = int(self.rng.integers(8))
            while place < len(road.points):
                spot = road.points[place] + side * road.normals[place] * road.width * 0.24
                if ((spot > -8) & (spot < self.size + 8)).all() and self.rng.random() < busy:
                    self._car(spot, road.angle(place))
                place += int(self.rng.integers(7, 14))

    def _car(self, centre: np.ndarray, angle: float) -> None:
        if any(np.hypot(*(centre - other)) < 11 for other in self.cars):
            return
        self.cars.append(centre)
        length, width = self.rng.uniform(14, 18), self.rng.uniform(7, 8.5)
        if self.rng.random() < 0.06:
            length *= 1.9
        self.cast(box(centre, length, width, angle), 3.5)
        self.upright.append(partial(self._paint_car, centre, angle, length, width))

    def _paint_car(self, centre: np.ndarray, angle: float, length: float, width: float) -> None:
        colour, axis = self.pick(_PAINTS, 5), np.array([np.cos(angle), np.sin(angle)])
        body = box(centre, length, width, angle)
        fill(self.mask, body, CAR)
        fill(self.image, body, colour * 0.82)
        fill(self.image, box(centre, length - 2, width - 2, angle), colour)
        for at, deep in ((0.2, 3), (-0.28, 2)):
            fill(self.image, box(centre + axis * length * at, deep, width - 2.5, angle), _GLASS)

    def _trees(self) -> None:
        """Woods, and single trees anywhere but on roads, cars and buildings."""
        rng = self.rng
        spots = [rng.uniform(0, self.size, 2) for _ in range(self.count(12))]
        for _ in range(self.count(3.2 - 1.4 * self.town)):
            centre, spread = rng.uniform(0, self.size, 2), rng.uniform(14, 40)
            spots += list(centre + rng.normal(0, spread, (int(rng.integers(8, 34)), 2)))
        for road in self.roads:
            if rng.random() < 0.4:
                side = rng.choice((-1, 1)) * (road.width / 2 + rng.uniform(8, 14))
                spots += list((road.points + side * road.normals)[:: int(rng.integers(5, 10))])
        leaves = self.pick(_LEAVES, 5)
        for spot in spots:
            x, y = (int(value) for value in spot)
            if 0 <= x < self.size and 0 <= y < self.size and not self.taken[y, x]:
                radius = rng.uniform(6, 14)
                angles = np.arange(0, 2 * np.pi, 0.45)
                reach = radius * rng.uniform(0.78, 1.15, len(angles))
                crown = spot + np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
                self.cast(crown, radius * 0.9)
                self.upright.append(partial(self._crown, crown, leaves * rng.uniform(0.85, 1.2)))

    def _crown(self, crown: np.ndarray, colour: np.ndarray) -> None:
        middle = crown.mean(axis=0)
        fill(self.mask, crown, TREE)
        for share, light in ((1.0, 0.66), (0.8, 0.92), (0.5, 1.16), (0.25, 1.38)):
            lit = middle + (crown - middle) * share - self.shadow * (1 - share) * 5
            fill(self.image, lit, colour * light)

    def _photograph(self) -> np.ndarray:
        """Leaf and roof texture, uneven light, the camera's colours, blur and noise."""
        rng = self.rng
        texture = np.array([2.0, 1.0, 5.0, 13.0, 1.0, 1.0], dtype=np.float32)[self.mask]
        self.image += (texture * self.noise(2.2))[..., None]
        along, _ = self.axes(rng.uniform(0, 2 * np.pi))
        light = 1 + rng.uniform(0, 0.16) * (along / self.size - 0.5) + rng.uniform(0, 0.07) * self.noise(120)
        cast = rng.uniform(0.88, 1.35) * rng.normal(1, 0.055, 3)
        image = self.image * (light[..., None] * cast.astype(np.float32)) + rng.uniform(-12, 22)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.45, 0.85))
        image += rng.uniform(2, 6) * rng.standard_normal(image.shape, dtype=np.float32)
        return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)
