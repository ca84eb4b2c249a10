"""FFCV's `.beton` files: arrays to a file, and raw files back to arrays.

The writer is our own because FFCV's forks workers, waits for ever when one of them dies (a full
disk is enough), and stores images of one channel as nothing FFCV calls an image. The reader is our
own so that the resident loader needs neither FFCV nor the seconds its import takes.

The format (FFCV 1.0, version 2), little-endian: header; one descriptor a field; one metadata
record a sample; pages of sample bytes, aligned to the page size, no sample across two pages; the
allocation table, to the end of the file. Source: ffcv/writer.py, types.py, memory_allocator.py.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from dist_train.config import Storage
from dist_train.errors import UserError

UInt8 = np.ndarray[Any, np.dtype[np.uint8]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]

_FORMAT = 2  # FFCV's version of the file format
_SMALLEST_PAGE = 1 << 21
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))])
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_INT_FIELD, _IMAGE_FIELD, _ARRAY_FIELD = 1, 2, 4  # FFCV's type ids
_JPEG, _RAW = 0, 1  # FFCV's image modes
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_IMAGE_RECORD = np.dtype([("image", _IMAGE), ("label", "<i8")], align=True)
_ARRAY_RECORD = np.dtype([("data_ptr", "<u8"), ("label", "<i8")], align=True)


def read_labels(path: Path) -> Int64:
    """The labels of a `.beton` file, int64 (N,). Raises UserError when the file is damaged."""
    return np.ascontiguousarray(_read_records(path)[0]["label"], dtype=np.int64)


def read_images(path: Path) -> UInt8:
    """All images of a raw file, uint8 (N, H, W, C), in memory of their own.

    Raises UserError when the file is damaged or holds JPEG.
    """
    image, shape = _places(path)
    if _hold_jpeg(image):
        raise UserError(f"{path}: holds JPEG, expected raw pixels; use --data.loader stream")
    return _read_raw(path, image, shape)


def read_some(path: Path, ids: Int64 | slice) -> UInt8:
    """A few images of a raw or JPEG file, uint8 (n, H, W, C); of a slice, those that there are.

    Raises UserError when the file is damaged.
    """
    places, shape = _places(path)
    image = places[ids]
    if not _hold_jpeg(image):
        return _read_raw(path, image, shape)
    images = np.empty((len(image), *shape), np.uint8)
    with path.open("rb") as file:
        for pixels, start in zip(images, image["data_ptr"], strict=True):
            file.seek(int(start))
            pixels[:] = np.asarray(Image.open(BytesIO(file.read(2 * pixels.nbytes))))
    return images


def _read_raw(path: Path, image: np.ndarray[Any, Any], shape: tuple[int, ...]) -> UInt8:
    images = np.empty((len(image), *shape), np.uint8)
    if not len(image):
        return images
    size = prod(shape)
    # A run of neighbours in the file is read at once: a page, in files of ours.
    starts = [0, *(np.flatnonzero(np.diff(image["data_ptr"].astype(np.int64)) != size) + 1)]
    with path.open("rb") as file:
        for start, end in zip(starts, [*starts[1:], len(image)], strict=True):
            file.seek(int(image["data_ptr"][start]))
            if file.readinto(images[start:end]) != (end - start) * size:  # type: ignore[arg-type]
                raise _damaged(path)
    return images


def _hold_jpeg(image: np.ndarray[Any, Any]) -> bool:
    return image.dtype == _IMAGE and bool(np.any(image["mode"] != _RAW))


def _places(path: Path) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Where each image is, and the shape of all."""
    records, arguments = _read_records(path)
    if records.dtype == _IMAGE_RECORD:
        image = records["image"]
        return image, (int(image["height"][0]), int(image["width"][0]), 3)
    return records, tuple(arguments[:24].view("<u8").tolist())


def _read_records(path: Path) -> tuple[np.ndarray[Any, Any], UInt8]:
    """A record per sample, and the image field's arguments: an array's shape comes first."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, _HEADER, 1)[0]
        fields = np.fromfile(path, _FIELD, 2, offset=_HEADER.itemsize)
        samples = int(header["num_samples"])
        expected = int(header["alloc_table_ptr"]) + samples * _ALLOCATION.itemsize
        if header["version"] != _FORMAT or samples == 0 or size != expected:
            raise _damaged(path)
        records = {_IMAGE_FIELD: _IMAGE_RECORD, _ARRAY_FIELD: _ARRAY_RECORD}
        record = records[int(fields["type_id"][0])]
        start = _HEADER.itemsize + fields.nbytes
        return np.fromfile(path, record, samples, offset=start), fields[0]["arguments"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a prepared .beton file") from error
    except LookupError as error:
        raise _damaged(path) from error


def check(path: Path) -> None:
    """Compares the file's beginning with its allocation table, not the images with anything.

    Raises UserError when it is damaged or cut off.
    """
    places, _ = _places(path)
    end = path.stat().st_size - len(places) * _ALLOCATION.itemsize
    table = np.fromfile(path, _ALLOCATION, offset=end)
    inside = (table["ptr"] + table["size"]).max() <= end
    if not (inside and np.array_equal(np.sort(table["ptr"]), np.sort(places["data_ptr"]))):
        raise _damaged(path)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged, expected a whole .beton file; delete it and prepare again")


def write(path: Path, images: UInt8, labels: Int64, storage: Storage) -> None:
    """Stream `images` into a file FFCV reads, and force it to the disk."""
    samples, height, width, channels = images.shape
    if images.dtype != np.uint8 or channels not in (1, 3) or labels.shape != (samples,):
        raise ValueError(f"images {images.dtype} {images.shape}, labels {labels.shape}")
    if storage == "jpeg" and channels != 3:
        raise UserError("--data.storage jpeg: expected colour images; use --data.storage raw")
    fields = np.zeros(2, _FIELD)
    fields["name"] = b"image", b"label"
    if channels == 3:
        fields["type_id"] = _IMAGE_FIELD, _INT_FIELD
        records = np.zeros(samples, _IMAGE_RECORD)
        records["image"]["mode"] = _RAW if storage == "raw" else _JPEG
        records["image"]["height"], records["image"]["width"] = height, width
    else:
        fields["type_id"] = _ARRAY_FIELD, _INT_FIELD
        records = np.zeros(samples, _ARRAY_RECORD)
        dtype = b'[["", "|u1"]]'
        sides = np.zeros(33, "<u8")
        sides[:3], sides[32] = images.shape[1:], len(dtype)
        fields["arguments"][0, : sides.nbytes + len(dtype)] = [*sides.tobytes(), *dtype]
    records["label"] = labels
    # JPEG of noise can be larger than its pixels, hence the factor; FFCV wants a power of two.
    page_size = max(_SMALLEST_PAGE, 1 << (2 * height * width * channels).bit_length())
    start = _HEADER.itemsize + fields.nbytes + records.nbytes
    end = -(-start // page_size) * page_size
    allocations = np.zeros(samples, _ALLOCATION)
    allocations["sample_id"] = np.arange(samples)
    written = 0
    with path.open("wb") as file:
        for payload, sizes in _pages(images, storage, page_size):
            file.seek(end)
            file.write(payload)
            page = allocations[written : written + len(sizes)]
            page["size"] = sizes
            page["ptr"] = end + np.cumsum(sizes) - sizes
            written += len(sizes)
            end += page_size
        file.seek(end)
        file.write(allocations.tobytes())
        (records["image"] if channels == 3 else records)["data_ptr"] = allocations["ptr"]
        header = np.array((_FORMAT, len(fields), page_size, samples, end), _HEADER)
        file.seek(0)
        file.write(header.tobytes() + fields.tobytes() + records.tobytes())
        sync(file)


def _pages(images: UInt8, storage: Storage, page_size: int) -> Iterator[tuple[Any, Int64]]:
    """What fits into one page after the other: the bytes, and the length of each sample in them."""
    if storage == "raw":
        size = images[0].nbytes
        per_page = page_size // size
        for start in range(0, len(images), per_page):
            page = np.ascontiguousarray(images[start : start + per_page])
            yield page, np.full(len(page), size)
        return
    samples: list[bytes] = []
    total = 0
    for image in images:
        encoded = BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=95, subsampling="4:4:4")
        if total + encoded.tell() > page_size:
            yield b"".join(samples), np.array([len(sample) for sample in samples])
            samples, total = [], 0
        samples.append(encoded.getvalue())
        total += encoded.tell()
    yield b"".join(samples), np.array([len(sample) for sample in samples])


def channel_statistics(images: UInt8) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, from exact integer sums."""
    channels = images.shape[3]
    total = np.zeros((2, channels), np.int64)
    for start in range(0, len(images), 4096):
        rows = images[start : start + 4096].reshape(-1, images[0].size)
        # Sums of 4096 squares of bytes fit into 32 bits: four times faster than 64.
        for moment, values in enumerate((rows, np.square(rows, dtype=np.uint16))):
            total[moment] += values.sum(0, np.uint32).reshape(-1, channels).sum(0, np.int64)
    first, second = total / (images.size // channels) / [[255], [255**2]]
    deviation = np.sqrt(np.maximum(second - first**2, 0))
    return tuple(first.tolist()), tuple(deviation.tolist())


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
