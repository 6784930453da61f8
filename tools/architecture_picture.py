"""The rooms of the library in their layers, with an arrow from each to those that it stands on, drawn from the imports.

Laid out after Sugiyama, Tagawa and Toda (1981): an arrow that passes a layer gets a lane in it, all arrows to one room
share their lanes, rooms and lanes are put in an order with few crossings, and places are as near as can be to what they
are joined to. Arrows bend between layers only, so none runs through a room.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from library_map import LAYER_OF, direct
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from sklearn.isotonic import isotonic_regression

from course_lib.plots.theme import CYCLE, GREY, Canvas, text_width

LANE, ROOM_HEIGHT, ROOM_PADDING, GAP, LAYER_HEIGHT = 12, 26, 8, 12, 78  # points
LEFT, RIGHT = 40, 20  # margins
TRIES, ORDERING, SETTLING = 20, 8, 4
COLOURS = CYCLE[:-1]  # without black
Place = tuple[str, int]  # a room in its own layer, or the lane of the arrows to it in another


@dataclass(frozen=True)
class Layout:
    """layers: the places of each, from the left. joins: (place, place one layer below). middle: of each, in points."""

    layers: list[list[Place]]
    joins: set[tuple[Place, Place]]
    middle: dict[Place, float] = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        return [place for layer in self.layers for place in layer]

    @cached_property
    def width(self) -> dict[Place, float]:
        return {p: text_width(p[0], bold=True) + 2 * ROOM_PADDING if is_room(p) else LANE for p in self.places}

    def joined(self, place: Place, step: int) -> list[Place]:
        """What it is joined to one layer down (step -1) or up (1)."""
        pairs = self.joins if step < 0 else {(lower, upper) for upper, lower in self.joins}
        return sorted(to for start, to in pairs if start == place)

    def crossings(self) -> int:
        ends = [(upper[1], self.middle[upper], self.middle[lower]) for upper, lower in self.joins]
        return sum((a[1] - b[1]) * (a[2] - b[2]) < 0 for n, a in enumerate(ends) for b in ends[:n] if a[0] == b[0])

    def length(self) -> float:
        return sum(abs(self.middle[upper] - self.middle[lower]) for upper, lower in self.joins)


def is_room(place: Place) -> bool:
    return LAYER_OF[place[0]] == place[1]


def lay_out(rooms: dict[str, set[str]], tries: int = TRIES) -> Layout:
    """A place for every room and lane. rooms: {room: those that it imports from}, all of lower layers."""
    joins = {
        ((room if layer == LAYER_OF[room] else other, layer), (other, layer - 1))
        for room, others in direct(rooms).items()
        for other in others
        for layer in range(LAYER_OF[room], LAYER_OF[other], -1)
    }
    places = {(room, LAYER_OF[room]) for room in rooms} | {place for join in joins for place in join}
    layers = [sorted(p for p in places if p[1] == layer) for layer in range(max(LAYER_OF.values()) + 1)]
    chance = np.random.default_rng(0)
    tried = []
    for _ in range(tries):
        tried.append(Layout([[layer[n] for n in chance.permutation(len(layer))] for layer in layers], joins))
        settle(tried[-1])
    return min(tried, key=lambda layout: (layout.crossings(), layout.length()))


def settle(layout: Layout) -> None:
    """Order each layer by the middle of what it is joined to, down and up in turn, then place it as near to that."""
    down, up = ({place: layout.joined(place, step) for place in layout.places} for step in (-1, 1))
    layout.middle.update(dict.fromkeys(layout.places, 0.0))
    for layer in layout.layers:
        _place(layout, layer, layout.middle)
    for sweep in range(ORDERING + SETTLING):
        for layer in layout.layers if sweep % 2 else layout.layers[::-1]:
            near = (down if sweep % 2 else up) if sweep < ORDERING else {p: down[p] + up[p] for p in layer}
            wish = {p: np.mean([layout.middle[q] for q in near[p] or [p]]) for p in layer}
            if sweep < ORDERING:
                layer.sort(key=wish.get)
            _place(layout, layer, wish)
    left = min(layout.middle[place] - layout.width[place] / 2 for place in layout.places)
    layout.middle.update({place: layout.middle[place] - left + LEFT for place in layout.places})


def _place(layout: Layout, layer: list[Place], wish: dict[Place, float]) -> None:
    """Side by side in this order, without overlap, with the least sum of squares from what was wished for."""
    if not layer:
        return
    apart = [(layout.width[a] + layout.width[b]) / 2 + GAP for a, b in pairwise(layer)]
    offset = np.cumsum([0.0, *apart])
    middles = isotonic_regression(np.array([wish[p] for p in layer]) - offset) + offset
    layout.middle.update(zip(layer, middles.tolist(), strict=True))


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw_architecture(rooms: dict[str, set[str]]) -> Figure:
    """The layers, from the command line down to the rooms that need no other."""
    layout = lay_out(rooms)
    wide = max(layout.middle[p] + layout.width[p] / 2 for p in layout.middle) + RIGHT
    figure = Figure(figsize=(wide / 72, LAYER_HEIGHT * len(layout.layers) / 72), facecolor="white")
    canvas = Canvas(figure)
    colours = {room: COLOURS[number % len(COLOURS)] for number, room in enumerate(rooms)}
    for layer in range(len(layout.layers)):
        y = _top(layer, layout)
        band = Rectangle((0, y - 8), wide, ROOM_HEIGHT + 16, facecolor="#F4F5F7", edgecolor="none", zorder=0)
        canvas.add(band)
        canvas.write(12, y + ROOM_HEIGHT / 2, str(layer), color=GREY)
    for upper, lower in sorted(layout.joins):
        _draw_join(canvas, layout, upper, lower, colours[lower[0]])
    for room in rooms:
        place = (room, LAYER_OF[room])
        corner = (layout.middle[place] - layout.width[place] / 2, _top(place[1], layout))
        box = FancyBboxPatch(corner, layout.width[place], ROOM_HEIGHT, boxstyle="round,pad=0,rounding_size=5", zorder=3)
        box.set(facecolor="white", edgecolor=colours[room], linewidth=1.6)
        canvas.add(box)
        canvas.write(layout.middle[place], corner[1] + ROOM_HEIGHT / 2, room, ha="center", fontweight="bold", zorder=4)
    return figure


def _top(layer: int, layout: Layout) -> float:
    return LAYER_HEIGHT * (len(layout.layers) - 1 - layer) + (LAYER_HEIGHT - ROOM_HEIGHT) / 2


def _draw_join(canvas: Canvas, layout: Layout, upper: Place, lower: Place, colour: str) -> None:
    """A curve from the foot of a room or lane to the head of the one below, with an arrowhead at a room."""
    begin, end = layout.middle[upper], layout.middle[lower]
    if is_room(upper):  # arrows leave a room side by side, in the order of where they go
        targets = sorted(layout.joined(upper, -1), key=layout.middle.get)
        begin += ((targets.index(lower) + 1) / (len(targets) + 1) - 0.5) * layout.width[upper]
    from_y, to_y = _top(upper[1], layout) + ROOM_HEIGHT, _top(lower[1], layout)
    bend = (to_y - from_y) * 0.55
    points = [(begin, from_y), (begin, from_y + bend), (end, to_y - bend), (end, to_y)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    if is_room(lower):
        points += [(end - 4, to_y - 7), (end, to_y - 1), (end + 4, to_y - 7)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO]
    else:
        points, codes = [*points, (end, to_y + ROOM_HEIGHT)], [*codes, Path.LINETO]
    canvas.add(PathPatch(Path(points, codes), facecolor="none", edgecolor=colour, linewidth=1.3, zorder=1))
