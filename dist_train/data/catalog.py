"""The data sets: cifar10 cifar100 mnist fashion_mnist folder shapes; name -> verified arrays."""

import hashlib
import io
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from dist_train.data.download import SOURCES, Source, download
from dist_train.data.shapes import SHAPES, draw_shapes
from dist_train.errors import UserError

ROOT_VARIABLE = "DIST_TRAIN_DATA"
DOWNLOAD_ROOT = Path("data")

SPLITS = ("train", "test", "val")
"""Subfolders of a `folder` set; one of the last two is enough."""


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their labels, in a fixed order."""

    images: NDArray[np.uint8]
    """(N, H, W, C), C-contiguous; C is 1 or 3."""
    labels: NDArray[np.int64]
    """(N,), indices into the data set's classes."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A whole data set in memory."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]


def load(
    name: str, *, root: str | None, image_size: int | None = None, train_samples: int = 20_000
) -> Dataset:
    """Read (and if need be download), verify and decode a data set.

    Args:
        name: a published set (a key of SOURCES), `folder` or `shapes`.
        root: see `find`.
        image_size: side in pixels of `folder` (64 if None) and `shapes` (32 if None) images.
        train_samples: training images of `shapes`; its test set has a fifth as many.

    Raises:
        UserError: data missing, damaged or unreadable, or an argument out of range.
    """
    if image_size is not None and name in SOURCES:
        raise UserError(f"--data.image_size {image_size} is for folder and shapes: not {name}")
    if image_size is not None and image_size < 8:
        raise UserError(f"--data.image_size {image_size}: expected 8 or more pixels")
    if name == "shapes":
        if train_samples < 5:
            raise UserError(f"--data.train_samples {train_samples}: expected 5 or more")
        size = image_size or 32
        train = Split(*draw_shapes(0, train_samples, size))
        return Dataset(name, train, Split(*draw_shapes(1, train_samples // 5, size)), SHAPES)
    folder = locate(name, root=root)
    if name == "folder":
        return _read_class_folders(folder, image_size or 64)
    train, test, classes = _READERS[name](SOURCES[name], folder)
    return Dataset(name, train, test, classes)


def locate(name: str, *, root: str | None) -> Path:
    """The folder that holds a data set's files; see `find`. A published set is downloaded.

    Raises:
        UserError: the name is unknown, the set is not there, or the download failed.
    """
    if found := find(name, root=root):
        return found
    destination = DOWNLOAD_ROOT / name / SOURCES[name].folder
    download(SOURCES[name], destination)
    return destination


def find(name: str, *, root: str | None) -> Path | None:
    """The folder that holds a data set's files; None: a published set that is not here yet.

    An explicit root must hold the set. Without one, $DIST_TRAIN_DATA and ./data are looked at,
    and then a published set is to be downloaded into ./data.

    Raises:
        UserError: the name is unknown, or the set is not where it has to be.
    """
    if name != "folder" and name not in SOURCES:
        raise UserError(
            f"--data.dataset {name} has no files: expected one of folder, {', '.join(SOURCES)}"
        )
    if root is not None:
        if found := _find(name, Path(root)):
            return found
        raise UserError(
            f"--data.root {root} does not hold {name}: expected {_expected(name, Path(root))}; "
            "put them there, correct the path, or use --data.dataset shapes"
        )
    environment = os.environ.get(ROOT_VARIABLE)
    for path in (Path(environment), DOWNLOAD_ROOT) if environment else (DOWNLOAD_ROOT,):
        if found := _find(name, path):
            return found
    if name == "folder":
        expected = _expected(name, Path("<root>"))
        raise UserError(f"--data.dataset folder needs images: set --data.root; expected {expected}")
    return None


def _expected(name: str, root: Path) -> str:
    if name == "folder":
        return f"images in {root}/train/<class>/ and in {root}/test/<class>/ or {root}/val/<class>/"
    return f"{', '.join(SOURCES[name].files)} in {root / name / SOURCES[name].folder}"


def _find(name: str, root: Path) -> Path | None:
    """The first of the usual places under `root` in which every file of the set is."""
    if name == "folder":
        has_train, has_test, has_val = (_exists(root / split) for split in SPLITS)
        return root if has_train and (has_test or has_val) else None
    source = SOURCES[name]
    places = [root / name / source.folder, root / source.folder, root / name, root / "raw", root]
    return next((p for p in places if all(_exists(p / f) for f in source.files)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # Not even to be looked at.
        return False


def _read_verified(path: Path, md5: str | None) -> bytes:
    """The bytes of a file, hashed once and from memory: what was checked is what gets used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); make it readable") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise _damaged(path, f"md5 {found} ({len(data)} bytes)", f"md5 {md5}")
    # Fashion-MNIST's files have MNIST's names and structure.
    if md5 is None and any(found in source.files.values() for source in SOURCES.values()):
        raise _damaged(path, "a file of MNIST", "one of Fashion-MNIST")
    return data


def _damaged(path: Path, found: str, expected: str) -> UserError:
    return UserError(
        f"{path}: found {found}, expected {expected}; "
        "delete the file and get the official one (without --data.root it is downloaded)"
    )


# CIFAR: pickles.


def _numpy_dtype(code: Any, align: int, copy: int) -> np.dtype[Any]:
    # CIFAR's pickles say 0 and 1 where NumPy 2.4 and later insist on booleans.
    dtype: np.dtype[Any] = np.dtype(code, bool(align), bool(copy))
    return dtype


_PICKLE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _numpy_dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds containers, numbers, bytes and arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in an image file")
        return _PICKLE_GLOBALS[module, name]


def _unpickle(path: Path, md5: str | None) -> dict[bytes, Any]:
    data = _read_verified(path, md5)
    content: dict[bytes, Any] = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    return content


def _read_cifar(source: Source, folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    def batch(file: str) -> Split:
        content = _unpickle(folder / file, source.files[file])
        # Rows are planes of red, green, blue; stacking three planes copies faster than transpose.
        planes = np.split(content[b"data"], 3, axis=1)
        labels = content[b"labels"] if b"labels" in content else content[b"fine_labels"]
        return Split(
            np.stack(planes, axis=-1).reshape(-1, 32, 32, 3), np.array(labels, dtype=np.int64)
        )

    *batch_files, meta_file = source.files
    with ThreadPoolExecutor(len(batch_files)) as pool:
        *train, test = pool.map(batch, batch_files)
    meta = _unpickle(folder / meta_file, source.files[meta_file])
    names = meta[b"label_names"] if b"label_names" in meta else meta[b"fine_label_names"]
    images = train[0].images if len(train) == 1 else np.concatenate([s.images for s in train])
    labels = np.concatenate([s.labels for s in train])
    return Split(images, labels), test, tuple(name.decode() for name in names)


# MNIST and its kin: idx files.


def _read_idx_sets(source: Source, folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    arrays = [_read_idx(folder / file, md5) for file, md5 in source.files.items()]
    train, test = (
        Split(images[..., None], labels.astype(np.int64))
        for images, labels in (arrays[:2], arrays[2:])
    )
    for split, file in zip((train, test), list(source.files)[1::2], strict=True):
        if len(split.images) != len(split.labels) or split.labels.max() >= len(source.classes):
            raise _damaged(
                folder / file,
                f"{len(split.labels)} labels up to {split.labels.max()}",
                f"{len(split.images)} labels below {len(source.classes)}",
            )
    return train, test, source.classes


def _read_idx(path: Path, md5: str | None) -> NDArray[np.uint8]:
    """An idx file of uint8: two zero bytes, type 8, dimensions; big-endian sizes; values."""
    data = _read_verified(path, md5)
    num_dims = 3 if "images" in path.name else 1
    header = 4 + 4 * num_dims
    if data[:4] != bytes((0, 0, 8, num_dims)) or len(data) <= header:
        raise _damaged(path, f"header {data[:4].hex()}", f"0000080{num_dims} and data")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", num_dims, offset=4))
    if len(data) - header != int(np.prod(shape)) or shape[1:] not in ((), (28, 28)):
        raise _damaged(path, f"{len(data)} bytes for shape {shape}", "(N,) or (N, 28, 28)")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


_READERS = {
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "mnist": _read_idx_sets,
    "fashion_mnist": _read_idx_sets,
}


# A folder of images.


def _read_class_folders(root: Path, size: int) -> Dataset:
    test_folder = root / "test" if (root / "test").is_dir() else root / "val"
    classes = _class_names(root / "train")
    test_classes = _class_names(test_folder)
    if not classes or classes != test_classes:
        different = sorted(set(classes) ^ set(test_classes))
        raise UserError(
            f"{root / 'train'} and {test_folder} must have the same class folders, at least one: "
            f"found {len(classes)} and {len(test_classes)}, different: {different[:5]}"
        )
    train = _read_images(root / "train", classes, size)
    return Dataset("folder", train, _read_images(test_folder, classes, size), classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )


def _read_images(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    from PIL import Image
    from tqdm import tqdm

    from dist_train.data.images import IMAGE_SUFFIXES, WHITE, read_image

    Image.init()  # Left to the threads, two that meet in it may not know a WebP when they see one.
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            p
            for p in (folder / name).iterdir()
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        if not files:
            raise UserError(
                f"{folder / name} has no images ({' '.join(sorted(IMAGE_SUFFIXES))}): add some, "
                "or remove the folder from training and test set"
            )
        paths += files
        labels += [label] * len(files)
    needed, free = len(paths) * size * size * 3, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{folder}: {len(paths)} images of {size}x{size} are {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; lower --data.image_size"
        )
    images = np.empty((len(paths), size, size, 3), np.uint8)
    read = partial(read_image, image_shape=(size, size, 3), background=WHITE)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(read, paths)
        bar = tqdm(decoded, folder.name, len(paths), unit="image", disable=not sys.stderr.isatty())
        for index, image in enumerate(bar):
            images[index] = image
    return Split(images, np.array(labels, dtype=np.int64))
