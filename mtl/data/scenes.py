"""Small rendered rooms with exact segmentation, depth, normals and edges: dense tasks without files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from mtl import metrics
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require

CLASSES = ("floor", "wall", "ceiling", "sphere", "box", "cylinder")
MEAN, STD = 0.4, 0.2  # pixel statistics
FAR = 1e9
COLUMNS, ROWS = 3, 2  # of the grid on the floor that holds the objects
PLANES = 6  # sides of the room
UP = np.array([0, 1, 0], np.float32)[:, None]

Array = NDArray[np.float32]


class Scenes:
    """Rooms with spheres, boxes and cylinders, rendered by casting one ray per pixel from a pinhole camera.

    A room has walls, a checkered floor, a lamp and up to two objects of each shape, with random sizes, colours and
    positions. Scene i of a split depends on ``seed``, the split and i alone, and is rendered when it is read. There are
    ``size`` scenes for training, and a fifth of that for each of validation and test.

    Inputs: ``[B, 3, image_size, image_size]``. Targets, exact at the centre of every pixel:

    - ``segmentation`` ``[B, H, W]``: floor 0, wall 1, ceiling 2, sphere 3, box 4, cylinder 5;
    - ``depth`` ``[B, 1, H, W]``: along the camera's axis, in metres;
    - ``normals`` ``[B, 3, H, W]``: unit vectors in the camera's axes: x to the right, y up, z towards the viewer;
    - ``edges`` ``[B, 1, H, W]``: 1 if the next pixel to the right or below is on another surface, else 0.
    """

    targets = ("segmentation", "depth", "normals", "edges")

    def __init__(self, batch_size: int = 16, image_size: int = 64, size: int = 2000, seed: int = 0) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("image_size", image_size, 8), ("size", size, 5)):
            require(name, value, f"{least} or more", isinstance(value, int) and value >= least)
        self.batch_size = batch_size
        self.kinds = {"segmentation": "segmentation", "depth": "depth", "normals": "normals", "edges": "mask"}
        self.class_names, self.units = {"segmentation": CLASSES}, {"depth": "m"}
        self.input_info = {"in_channels": 3, "image_size": image_size}
        self.preprocess = ImagePreprocess([image_size] * 2, fit="exact", mean=[MEAN] * 3, std=[STD] * 3)
        sizes = size, size // 5, size // 5
        self.train, self.val, self.test = (
            Rendered((seed, split), length, self.preprocess) for split, length in enumerate(sizes)
        )

    def metrics(self, target: str) -> dict[str, Metric]:
        """The usual metrics of each target; see mtl.metrics."""
        kinds = {
            "segmentation": lambda: metrics.segmentation(len(CLASSES)),
            "depth": metrics.depth,
            "normals": metrics.normals,
            "edges": metrics.edges,
        }
        return kinds[target]()


class Rendered(Dataset):
    """The scenes of one split, rendered on access."""

    def __init__(self, seed: Sequence[int], length: int, preprocess: ImagePreprocess) -> None:
        self._seed, self._length, self._preprocess = tuple(seed), length, preprocess

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return inputs[0], {name: target[0] for name, target in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scenes of ``indices``, the same in every epoch."""
        generators = [np.random.default_rng((*self._seed, index)) for index in indices]
        scenes = [draw(generator) for generator in generators]
        view = render(
            {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}, self._preprocess.size[0]
        )
        noise = np.stack([g.standard_normal(view["image"].shape[1:], np.float32) for g in generators])
        image = np.clip(view["image"] + np.float32(0.02) * noise, 0, 1)
        targets = {
            "segmentation": torch.from_numpy(_CLASS_OF[view["surface"]]),
            "depth": torch.from_numpy(view["depth"][:, None]),
            "normals": torch.from_numpy(view["normals"]),
            "edges": torch.from_numpy(borders(view["surface"])[:, None]),
        }
        return self._preprocess.finish(torch.from_numpy(image)), targets


def draw(generator: np.random.Generator) -> dict[str, Array]:
    """The parameters of one random scene. Axes: x to the right, y up from the floor; the camera looks along -z."""
    uniform = generator.uniform
    half_width, height, length = uniform(2.0, 3.5), uniform(2.4, 3.5), uniform(5.0, 8.0)
    # Objects stand in cells of a grid on the floor, so that they cannot intersect.
    cell = np.array([2 * half_width / COLUMNS, (length - 2.0) / ROWS])
    places = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)), -1).reshape(-1, 2)
    places = generator.permutation(places)
    size = uniform(0.5, 0.95, len(places)) * min(cell) / 2  # radius of the circle around the base
    centre = (places + 0.5) * cell + uniform(-1, 1, (len(places), 2)) * (cell / 2 - size[:, None])
    scene: dict[str, Any] = {
        "room": [half_width, height, length],
        "camera": [uniform(-0.6, 0.6), uniform(1.0, 1.8), -0.2],
        "turn": [uniform(-0.35, 0.35), uniform(-0.3, 0.05)],  # rotation to the left and up, in radians
        "lens": uniform(0.7, 0.9),  # the tangent of half the angle of view
        "lamp": [uniform(-0.7, 0.7) * half_width, 0.9 * height, -uniform(0.1, 0.7) * length],
        "x": centre[:, 0] - half_width,
        "z": -2.0 - centre[:, 1],
        "size": size,
        "tall": uniform(0.6, 2.6, len(places)) * size,
        "angle": uniform(0, np.pi / 2, len(places)),
        "present": generator.random(len(places)) < 0.75,
        "colours": uniform(0.2, 1.0, (3, len(places) + PLANES)),
        "tile": uniform(0.4, 1.0),
    }
    return {name: np.asarray(value, np.float32) for name, value in scene.items()}


def render(scenes: dict[str, Array], image_size: int) -> dict[str, Any]:
    """Cast the rays of a batch of scenes: the arrays of :func:`draw`, stacked along a first axis B.

    Returns ``image`` ``[B, 3, H, W]`` from 0 to 1, ``normals`` of the same shape, ``depth`` ``[B, H, W]``, and
    ``surface`` ``[B, H, W]``, the number of the visible plane or object.
    """
    # Vectors are on axis 1 and pixels on axis 2: NumPy sums over a short outer axis much faster.
    count, side = len(scenes["x"]), image_size
    axes = _axes(scenes["turn"])
    steps = scenes["lens"][:, None] * (2 * (np.arange(side, dtype=np.float32) + 0.5) / side - 1)
    flat = np.stack([np.tile(steps, side), -np.repeat(steps, side, 1), -np.ones((count, side**2), np.float32)], 1)
    # A ray has length one along the camera's axis, so its parameter at the hit is the depth.
    ray, origin = axes.transpose(0, 2, 1) @ flat, scenes["camera"][:, :, None]

    depth, normal, surface = _room(scenes, origin, ray)
    for slot in range(COLUMNS * ROWS):
        own_depth, own_normal = _OBJECTS[slot // 2](scenes, slot, origin, ray)
        nearer = (own_depth < depth) & (scenes["present"][:, slot, None] > 0)
        depth, surface = np.where(nearer, own_depth, depth), np.where(nearer, PLANES + slot, surface)
        normal = np.where(nearer[:, None], own_normal, normal)

    image = _shade(scenes, origin + depth[:, None] * ray, ray, normal, surface)
    view = {"image": image, "normals": axes @ normal, "depth": depth, "surface": surface}
    return {name: values.reshape(*values.shape[:-1], side, side) for name, values in view.items()}


def borders(surface: NDArray[np.int64]) -> Array:
    """1 where the next pixel to the right or below is on another surface, else 0: ``[B, H, W]``."""
    edges = np.zeros(surface.shape, np.float32)
    edges[:, :, :-1] += surface[:, :, 1:] != surface[:, :, :-1]
    edges[:, :-1] += surface[:, 1:] != surface[:, :-1]
    return np.minimum(edges, 1)


def _axes(turn: Array) -> Array:
    """The axes after a rotation to the left and then up by ``turn`` ``[B, 2]``, as rows ``[B, 3, 3]``."""
    (cos_left, cos_up), (sin_left, sin_up) = np.cos(turn).T, np.sin(turn).T
    zero = np.zeros_like(cos_left)
    rows = [
        [cos_left, zero, -sin_left],
        [sin_up * sin_left, cos_up, sin_up * cos_left],
        [cos_up * sin_left, -sin_up, cos_up * cos_left],
    ]
    return np.array(rows).transpose(2, 0, 1)


def _room(scenes: dict[str, Array], origin: Array, ray: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """The exit of rays from the room: depth ``[B, P]``, the inward normal, and the number of the plane."""
    half_width, height, length = scenes["room"].T
    low = np.stack([-half_width, 0 * height, -length], 1)[:, :, None]
    high = np.stack([half_width, height, 0 * length + 1], 1)[:, :, None]
    ray = _not_zero(ray)
    distance = (np.where(ray > 0, high, low) - origin) / ray
    depth = distance.min(1)
    hit = distance == depth[:, None]
    axis = hit.argmax(1)
    normal = -np.sign(ray) * (np.arange(3)[:, None] == axis[:, None])
    return depth, normal, 2 * axis + (normal.min(1) < 0)


def _sphere(scenes: dict[str, Array], slot: int, origin: Array, ray: Array) -> tuple[Array, Array]:
    radius = scenes["size"][:, slot]
    centre = np.stack([scenes["x"][:, slot], radius, scenes["z"][:, slot]], 1)[:, :, None]
    depth = _quadratic(ray, origin - centre, radius)
    return depth, (origin + depth[:, None] * ray - centre) / radius[:, None, None]


def _box(scenes: dict[str, Array], slot: int, origin: Array, ray: Array) -> tuple[Array, Array]:
    half = np.stack([0.7 * scenes["size"][:, slot], scenes["tall"][:, slot] / 2, 0.7 * scenes["size"][:, slot]], 1)
    axes = _axes(np.stack([scenes["angle"][:, slot], 0 * scenes["angle"][:, slot]], 1))
    centre = np.stack([scenes["x"][:, slot], half[:, 1], scenes["z"][:, slot]], 1)[:, :, None]
    start, ray = axes @ (origin - centre), _not_zero(axes @ ray)
    forward = np.sign(ray)
    enter = (-forward * half[:, :, None] - start) / ray
    leave = (forward * half[:, :, None] - start) / ray
    depth = enter.max(1)
    normal = axes.transpose(0, 2, 1) @ (-forward * (enter == depth[:, None]))
    return np.where((depth < leave.min(1)) & (depth > 0), depth, FAR), normal


def _cylinder(scenes: dict[str, Array], slot: int, origin: Array, ray: Array) -> tuple[Array, Array]:
    radius, tall = scenes["size"][:, slot], scenes["tall"][:, slot, None]
    foot = np.stack([scenes["x"][:, slot], 0 * radius, scenes["z"][:, slot]], 1)[:, :, None]
    side = _quadratic(ray[:, ::2], (origin - foot)[:, ::2], radius)
    height = origin[:, 1] + side * ray[:, 1]
    side = np.where((height >= 0) & (height <= tall), side, FAR)
    top = (tall - origin[:, 1]) / _not_zero(ray[:, 1])
    over = np.square((origin + top[:, None] * ray - foot)[:, ::2]).sum(1) <= radius[:, None] ** 2
    top = np.where(over & (top > 0), top, FAR)
    normal = (origin + side[:, None] * ray - foot) / radius[:, None, None]
    normal[:, 1] = 0
    return np.minimum(side, top), np.where((top < side)[:, None], UP, normal)


_OBJECTS = (_sphere, _box, _cylinder)
# Surface numbers: the planes left, right, floor, ceiling, back, front; then the objects, two of each shape.
_CLASS_OF = np.array([1, 1, 0, 2, 1, 1, 3, 3, 4, 4, 5, 5])


def _quadratic(ray: Array, start: Array, radius: Array) -> Array:
    """The first positive t with ``norm(start + t * ray) = radius``; FAR without one."""
    a, b = np.square(ray).sum(1), (ray * start).sum(1)
    inside = b**2 - a * (np.square(start).sum(1) - radius[:, None] ** 2)
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (t > 0), t, FAR)


def _not_zero(values: Array) -> Array:
    return np.where(np.abs(values) < 1e-6, np.float32(1e-6), values)


def _shade(scenes: dict[str, Array], where: Array, ray: Array, normal: Array, surface: NDArray[np.int64]) -> Array:
    """Colours ``[B, 3, P]`` by Lambert's law, with a lamp that fades with distance and a checkered floor."""
    colour = np.take_along_axis(scenes["colours"], surface[:, None], 2)
    odd = np.floor(where[:, ::2] / scenes["tile"][:, None, None]).sum(1) % 2
    colour = colour * np.where((surface == 2) & (odd > 0), np.float32(0.55), np.float32(1))[:, None]
    to_lamp = scenes["lamp"][:, :, None] - where
    distance = np.sqrt(np.square(to_lamp).sum(1))
    lamp = np.maximum((normal * to_lamp).sum(1) / distance, 0) * 4 / (4 + np.square(distance))
    camera = np.maximum(-(normal * ray).sum(1) / np.sqrt(np.square(ray).sum(1)), 0)  # a weak light at the camera
    return np.clip(colour * (0.25 + 0.9 * lamp + 0.4 * camera)[:, None], 0, 1)
