"""Generated road scenes of 24 x 32 pixels with a class for every pixel: highway, urban, ambiguous.

Two contexts that share sky, road, lane markings, vegetation and cars. Guardrails and trucks are
seen on highways alone; buildings, sidewalks and pedestrians in towns alone. Ambiguous scenes, for
tests, put them together as neither context has them: pedestrians on rural verges, trucks in town.

A scene is painted from far to near in perspective. A row y at or below the horizon has nearness
t = (y - horizon + 1) / (24 - horizon), from just above 0 to 1, and there the road's middle is at
v + (16 - v) t, v being the column in which it vanishes.
"""
from typing import NamedTuple

import numpy as np

HEIGHT, WIDTH = 24, 32
CLASSES = ("sky", "road", "lane marking", "vegetation", "car", "guardrail", "truck", "building",
           "sidewalk", "pedestrian")
SKY, ROAD, LANE, VEGETATION, CAR, GUARDRAIL, TRUCK, BUILDING, SIDEWALK, PEDESTRIAN = range(10)
ON_HIGHWAYS_ALONE, IN_TOWNS_ALONE = (GUARDRAIL, TRUCK), (BUILDING, SIDEWALK, PEDESTRIAN)
CARS = np.array([(.8, .1, .1), (.1, .2, .8), (.9, .9, .95), (.15, .15, .15)])
WALLS = np.array([(.60, .35, .28), (.70, .62, .50), (.50, .48, .46)])
CLOTHES = np.array([(.75, .30, .55), (.25, .60, .65), (.85, .50, .15)])


class Scenes(NamedTuple):
    image: np.ndarray   # [N, 24, 32, 3]    in [0, 1]
    label: np.ndarray   # [N, 24, 32] int


class _Canvas(NamedTuple):
    image: np.ndarray   # [24, 32, 3]
    label: np.ndarray   # [24, 32] int
    horizon: int        # the first row below the sky
    vanishing: int      # the column in which the road vanishes


def scenes(rng, paint, n):
    """``n`` scenes by ``highway``, ``urban`` or ``ambiguous``. -> Scenes

    Each is lighter or darker as a whole, by a factor from 0.85 to 1.15, and has noise of 0.04 on
    every pixel and channel.
    """
    images, labels = [], []
    for _ in range(n):
        canvas = _sky(rng)
        paint(rng, canvas)
        image = canvas.image * rng.uniform(.85, 1.15) + rng.normal(0, .04, canvas.image.shape)
        images.append(image.clip(0, 1))
        labels.append(canvas.label)
    return Scenes(np.stack(images), np.stack(labels))


def flipped(scenes, flip):
    """Scenes mirrored left to right where ``flip`` is True, images and labels alike. [N] bool"""
    return Scenes(np.where(flip[:, None, None, None], scenes.image[:, :, ::-1], scenes.image),
                  np.where(flip[:, None, None], scenes.label[:, :, ::-1], scenes.label))


# -- The three contexts --------------------------------------------------------------------------

def highway(rng, canvas):
    """Verges, a wide road of three lanes, a guardrail, one or two cars, often a truck."""
    _verges(rng, canvas)
    _road(canvas, 15, np.array([.38, .38, .40]) + rng.normal(0, .02), (-.98, -.33, .33, .98))
    _guardrail(rng, canvas)
    _cars(rng, canvas, spread=9)
    if rng.random() < .7:
        _truck(rng, canvas, bottom=.1)


def urban(rng, canvas):
    """A row of houses, a narrow road between sidewalks, now and then a tree; cars, pedestrians."""
    _houses(rng, canvas)
    _town_road(canvas, rng)
    _town_life(rng, canvas)


def ambiguous(rng, canvas):
    """Urban, but in half of the scenes on a rural verge, and in half of them with a truck."""
    if rng.random() < .5:
        _verges(rng, canvas)
    else:
        _houses(rng, canvas)
    _town_road(canvas, rng)
    if rng.random() < .5:
        _truck(rng, canvas, bottom=None)
    _town_life(rng, canvas)


def _town_road(canvas, rng):
    _road(canvas, 10, np.array([.30, .30, .32]) + rng.normal(0, .02), (0,))


def _town_life(rng, canvas):
    if rng.random() < .3:
        _tree(rng, canvas)
    _cars(rng, canvas, spread=6)
    for _ in range(rng.integers(1, 4)):
        _pedestrian(rng, canvas)


# -- Painting ------------------------------------------------------------------------------------

def _paint(canvas, class_, colour, top, bottom, left, right):
    """A rectangle, its bottom and right edges exclusive, cut off at the image's."""
    rows, columns = (slice(max(int(a), 0), max(int(b), 0))
                     for a, b in ((top, bottom), (left, right)))
    canvas.label[rows, columns] = class_
    canvas.image[rows, columns] = colour


def _jittered(rng, colour, deviation):
    return np.asarray(colour) + rng.normal(0, deviation, 3)


def _nearness(canvas):
    """Of every row from the horizon on. -> rows, t"""
    rows = np.arange(canvas.horizon, HEIGHT)
    return rows, (rows - canvas.horizon + 1) / (HEIGHT - canvas.horizon)


def _middle(canvas, t):
    return canvas.vanishing + (WIDTH // 2 - canvas.vanishing) * t


def _foot(canvas, t):
    """The row, exclusive, on which something at this nearness stands."""
    return int(canvas.horizon + t * (HEIGHT - canvas.horizon)) + 1


def _sky(rng):
    """An empty scene."""
    horizon, vanishing = int(rng.integers(8, 12)), int(rng.integers(12, 21))
    canvas = _Canvas(np.zeros((HEIGHT, WIDTH, 3)), np.zeros((HEIGHT, WIDTH), int),
                     horizon, vanishing)
    ramp = np.linspace(-.05, .10, horizon)[:, None, None]
    canvas.image[:horizon] = _jittered(rng, (.55, .70, .90), .05) + ramp
    return canvas


def _verges(rng, canvas):
    """Vegetation from the horizon down, and up to three pixels above it."""
    green = _jittered(rng, (.20, .45, .18), .04)
    _paint(canvas, VEGETATION, green, canvas.horizon, HEIGHT, 0, WIDTH)
    for column, height in enumerate(rng.integers(0, 4, WIDTH)):
        _paint(canvas, VEGETATION, .7 * green, canvas.horizon - height, canvas.horizon,
               column, column + 1)


def _road(canvas, half, colour, offsets):
    """The road, and lane markings at ``offsets`` of its half width: dashed, at the edges solid."""
    rows, t = (a[:, None] for a in _nearness(canvas))
    x = np.arange(WIDTH)
    width = np.maximum(1, half * t)
    road = abs(x - _middle(canvas, t)) <= width                        # [rows, 32]
    lane = np.zeros_like(road)
    for offset in offsets:
        line = abs(x - (_middle(canvas, t) + offset * width)) <= (.5 + .9 * t) / 2 + .3
        drawn = (rows - canvas.horizon) // 2 % 2 == 0
        lane |= line & (drawn | (abs(offset) > .95))
    below = canvas.image[canvas.horizon:], canvas.label[canvas.horizon:]
    for mask, colour, class_ in ((road, colour, ROAD), (road & lane, (.95, .95, .90), LANE)):
        below[0][mask], below[1][mask] = colour, class_


def _guardrail(rng, canvas):
    """On one side of the road, in every row but the horizon's."""
    side = rng.choice((-1, 1))
    for row, t in list(zip(*_nearness(canvas)))[1:]:
        start, n = round(_middle(canvas, t) + side * (15 * t + 1.5)), 1 + int(2 * t)
        left = start if side > 0 else start - n + 1
        colour = np.array([.70, .72, .74]) * (1 if row % 2 else .75)
        _paint(canvas, GUARDRAIL, colour, row, row + 1, left, left + n)


def _cars(rng, canvas, spread):
    for _ in range(rng.integers(1, 3)):
        t = rng.uniform(.25, .9)
        bottom, height, width = _foot(canvas, t), max(2, round(6 * t)), max(3, round(8 * t))
        left = round(_middle(canvas, t) + rng.uniform(-spread, spread) * t - width / 2)
        top, right = bottom - height, left + width
        _paint(canvas, CAR, _jittered(rng, rng.choice(CARS), .03), top, bottom, left, right)
        if height >= 3:
            _paint(canvas, CAR, (.3, .4, .5), top, top + max(1, height // 3), left + 1, right - 1)


def _truck(rng, canvas, bottom):
    """Its lowest row is ``bottom`` dark, or as the rest where that is None."""
    t = rng.uniform(.4, .9)
    foot, height, width = _foot(canvas, t), max(4, int(11 * t)), max(4, int(9 * t))
    left = int(np.floor(16 + rng.uniform(-11, 4) * t))
    colour = _jittered(rng, (.92, .78, .25), .04)
    _paint(canvas, TRUCK, colour, foot - height, foot, left, left + width)
    if bottom is not None:
        _paint(canvas, TRUCK, bottom, foot - 1, foot, left, left + width)


def _houses(rng, canvas):
    """Houses from left to right, some with a gap after them, and the sidewalk at their feet."""
    h = canvas.horizon
    _paint(canvas, SIDEWALK, .6, h, h + 2, 0, WIDTH)                   # seen in the gaps
    left = 0
    while left < WIDTH:
        right, top = left + rng.integers(4, 9), h - rng.integers(4, h)
        _paint(canvas, BUILDING, _jittered(rng, rng.choice(WALLS), .03), top, h + 2, left, right)
        canvas.image[top + 1:h + 1:3, left + 1:right - 1:3] = (.15, .18, .25)      # windows
        left = right + (rng.integers(1, 4) if rng.random() < .25 else 0)
    _paint(canvas, SIDEWALK, np.array([.62, .60, .57]) + rng.normal(0, .02), h + 2, HEIGHT,
           0, WIDTH)
    rows, columns = np.indices((HEIGHT, WIDTH))
    canvas.image[(rows >= h + 2) & ((rows + columns) % 4 == 0)] *= .88


def _tree(rng, canvas):
    foot, left = canvas.horizon + 2, rng.integers(0, 29)
    _paint(canvas, VEGETATION, _jittered(rng, (.18, .42, .16), .03),
           foot - rng.integers(4, 8), foot, left, left + 3)


def _pedestrian(rng, canvas):
    t = rng.uniform(.3, .95)
    foot, height, width = _foot(canvas, t), max(4, int(8 * t)), 2 if t < .6 else 3
    left, top = rng.integers(0, 29), foot - height
    _paint(canvas, PEDESTRIAN, _jittered(rng, rng.choice(CLOTHES), .04), top, foot,
           left, left + width)
    _paint(canvas, PEDESTRIAN, (.85, .65, .50), top, top + 1, left, left + width)
    _paint(canvas, PEDESTRIAN, (.12, .12, .25), foot - height // 2, foot, left, left + width)
