"""The built-in data set: ten kinds of shapes, drawn without a file or a network.

Hard for a linear model (about 12 % right), easy for a small convolutional one (above 95 %).
Shapes are fields of signed distance, negative inside; u and v are in units of the shape's radius.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def _box(u: FloatArray, v: FloatArray, half_width: float, half_height: float) -> FloatArray:
    distance: FloatArray = np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)
    return distance


def _star(u: FloatArray, v: FloatArray) -> FloatArray:
    distance: FloatArray = np.hypot(u, v) - 0.62 - 0.33 * np.cos(5 * np.arctan2(v, u))
    return distance


_DISTANCES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.85,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.2,
    "square": lambda u, v: _box(u, v, 0.75, 0.75),
    "frame": lambda u, v: np.abs(_box(u, v, 0.65, 0.65)) - 0.17,
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.5,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.95, 0.25), _box(u, v, 0.25, 0.95)),
    "star": _star,
    "bars": lambda u, v: _box(np.abs(u) - 0.55, v, 0.23, 0.85),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.9, 0.75 - np.hypot(u - 0.5, v)),
    "tee": lambda u, v: np.minimum(_box(u, v + 0.65, 0.9, 0.25), _box(u, v - 0.15, 0.25, 0.8)),
}
SHAPES = tuple(_DISTANCES)
_PER_CHUNK = 100  # part of what the images are: another size draws others


def draw_shapes(
    split: int, num_images: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Drawings of which image i is a function of (split, i, size) alone; its class is i % 10.

    Args:
        split: 0 for training, 1 for test images.
        size: side in pixels.

    Returns:
        uint8 (num_images, size, size, 3) and int64 (num_images,).
    """
    images = np.empty((num_images, size, size, 3), np.uint8)
    for start in range(0, num_images, _PER_CHUNK):
        generator = np.random.Generator(np.random.Philox(key=[split, start]))
        images[start : start + _PER_CHUNK] = _draw(generator, size)[: num_images - start]
    return images, np.arange(num_images, dtype=np.int64) % len(SHAPES)


def _draw(generator: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A chunk of drawings, (100, size, size, 3)."""
    n = _PER_CHUNK

    def uniform(low: float, high: float, *shape: int) -> FloatArray:
        return low + (high - low) * generator.random((n, *shape), dtype=np.float32)

    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1

    def offsets(centre: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Pixels' distances to a centre, (n, 1, size) across and (n, size, 1) down."""
        delta = axis - centre[:, :, None]
        return delta[:, 0, None, :], delta[:, 1, :, None]

    def coverage(distance: FloatArray) -> FloatArray:
        """(n, size, size, 1): share of each pixel inside, from distances in half image sides."""
        share: FloatArray = np.clip(0.5 - distance * (size / 2), 0, 1)
        return share[..., None]

    # Each channel of the shape is at least 80 away from the ground's, lighter as often as darker:
    # brightness and colour tell nothing about the class.
    ground = uniform(0, 256, 3)
    ink = (ground + uniform(80, 176, 3)) % 256
    radius = uniform(0.35, 0.65, 1, 1)
    angle = uniform(0, 2 * np.pi, 1, 1)
    x, y = offsets(uniform(-0.35, 0.35, 2))
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    distance = np.empty((n, size, size), np.float32)
    for label, function in enumerate(_DISTANCES.values()):
        every = slice(label, None, len(SHAPES))
        distance[every] = function(u[every], v[every])

    slope = uniform(-40, 40, 2)
    shade = slope[:, 0, None, None] * axis + slope[:, 1, None, None] * axis[:, None]
    image = coverage(distance * radius) * (ink - ground)[:, None, None]
    image += ground[:, None, None]
    image += shade[..., None]
    for _ in range(2):  # Spots that belong to no class.
        x, y = offsets(uniform(-1, 1, 2))
        spot = coverage(np.hypot(x, y) - uniform(0.06, 0.14, 1, 1))
        image += spot * (uniform(0, 256, 3)[:, None, None] - image)
    image += generator.integers(-32, 33, image.shape, np.int8)
    return np.clip(image, 0, 255).astype(np.uint8)
