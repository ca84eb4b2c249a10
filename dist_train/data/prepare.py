"""A data set, converted once, atomically, under a lock: `.beton` files and a manifest."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from dist_train.config import DataConfig, Storage
from dist_train.data import catalog
from dist_train.data.beton import (
    channel_statistics,
    check,
    sync,
    write,
)
from dist_train.errors import UserError

log = logging.getLogger("dist_train")

_HASHED_UP_TO = 4 << 30


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One `.beton` file: its name in the folder, its images, its length and its checksum."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a prepared folder holds; `mean` and `std` per channel of the training split, in 0..1."""

    dataset: str
    storage: Storage
    key: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: SplitFile
    test: SplitFile


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder whose files have been verified."""

    folder: Path
    manifest: Manifest

    @property
    def train(self) -> Path:
        return self.folder / self.manifest.train.file

    @property
    def test(self) -> Path:
        return self.folder / self.manifest.test.file


def prepare_dataset(data: DataConfig) -> Prepared:
    """Finds or downloads a data set and converts it, unless that has been done before.

    Raises:
        UserError: the data is not to be had, or the cache cannot be written.
    """
    load = partial(
        catalog.load,
        data.dataset,
        root=data.root,
        image_size=data.image_size,
        train_samples=data.train_samples,
    )
    folder, key = _place(data)
    return prepare(load, folder, storage=data.storage, key=key)


def find_prepared(data: DataConfig) -> tuple[Prepared | None, str]:
    """What `prepare_dataset` would find done already, or what is wrong with it ("": nothing there).

    Raises:
        UserError: `folder` images are not to be found.
    """
    folder, key = _place(data)
    return _inspect(folder, data.storage, key)


def _place(data: DataConfig) -> tuple[Path, str]:
    """The folder of a prepared data set, and the settings it depends on."""
    made_from: dict[str, str | int | None] = {"image_size": data.image_size}
    if data.dataset == "shapes":
        made_from["train_samples"] = data.train_samples
    if data.dataset == "folder":
        root = catalog.locate("folder", root=data.root).resolve()
        # A folder's time changes with everything that is added, removed or renamed in it.
        patterns = [f"{split}/{of}" for split in catalog.SPLITS for of in ("", "*/")]
        folders = [folder for pattern in patterns for folder in root.glob(pattern)]
        made_from["changed"] = sum(folder.stat().st_mtime_ns for folder in folders)
        made_from["root"] = str(root)
    key = json.dumps(made_from, sort_keys=True)
    return folder_of(Path(data.cache), data.dataset, key, data.storage), key


def folder_of(cache: Path, dataset: str, key: str, storage: str) -> Path:
    """Where a data set is prepared; the arguments after the first are in its manifest too."""
    digest = hashlib.sha256(f"{key}{storage}".encode()).hexdigest()
    return cache / f"{dataset}-{digest[:8]}"


def prepare(
    load: Callable[[], catalog.Dataset], folder: Path, *, storage: Storage = "raw", key: str = ""
) -> Prepared:
    """Return the data set in `folder`, converting what `load` returns if it is not there yet.

    `key` names the settings that `load` depends on: a folder made with another key or storage is
    made anew. What is found is verified by size and SHA-256, files above 4 GiB by size and header
    only. Any number of processes may call this at once: one converts, the others wait for it. A
    process killed at any point leaves nothing that a later call takes for complete.

    Raises UserError when the folder cannot be written and holds no good conversion.
    """
    prepared, _ = _inspect(folder, storage, key)
    if prepared:
        return prepared
    lock = FileLock(folder / ".lock")
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        prepared, fault = _inspect(folder, storage, key)
        if prepared:
            return prepared
        if fault:
            log.warning("%s: %s; preparing it again", folder, fault)
        dataset = load()
        with _write_errors(folder):
            return _convert(dataset, folder, storage, key)
    finally:
        lock.release()


def parse_manifest(text: str) -> Manifest:
    """A manifest from its JSON. Raises ValueError, TypeError or KeyError when it is none."""
    values = json.loads(text)
    for name in ("image_shape", "classes", "mean", "std"):
        values[name] = tuple(values[name])
    for name in ("train", "test"):
        values[name] = SplitFile(**values[name])
    return Manifest(**values)


def _inspect(folder: Path, storage: Storage, key: str) -> tuple[Prepared | None, str]:
    """The good conversion in `folder`, or else what is wrong with it ("": there is none)."""
    try:
        manifest = parse_manifest((folder / "manifest.json").read_text())
    except OSError:
        return None, ""
    except (ValueError, TypeError, KeyError):
        return None, "manifest.json is damaged"
    if (manifest.storage, manifest.key) != (storage, key):
        return None, "made with other settings"
    for split in (manifest.train, manifest.test):
        path = folder / split.file
        try:
            if path.stat().st_size != split.bytes:
                return None, f"{split.file} has the wrong size"
            if split.bytes > _HASHED_UP_TO:
                check(path)
            elif _sha256(path) != split.sha256:
                return None, f"{split.file} fails its checksum"
        except (OSError, UserError):
            return None, f"{split.file} is missing or damaged"
    return Prepared(folder, manifest), ""


def _convert(dataset: catalog.Dataset, folder: Path, storage: Storage, key: str) -> Prepared:
    """Write both files, then the manifest that makes them count."""
    # Large files are not hashed later on: no old manifest may vouch for new files.
    (folder / "manifest.json").unlink(missing_ok=True)
    _remove_unfinished(folder)
    images = dataset.train.images
    log.info("preparing %s (%d images) in %s", dataset.name, len(images), folder)
    files = {}
    try:
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            path = folder / f"{name}.beton"
            unfinished = folder / f"{name}.tmp"
            write(unfinished, split.images, split.labels, storage)
            size, digest = unfinished.stat().st_size, _sha256(unfinished)
            files[name] = SplitFile(path.name, len(split.images), size, digest)
            unfinished.replace(path)
        mean, std = channel_statistics(images)
        height, width, channels = images.shape[1:]
        manifest = Manifest(
            dataset=dataset.name,
            storage=storage,
            key=key,
            image_shape=(height, width, channels),
            classes=tuple(dataset.classes),
            mean=mean,
            std=std,
            **files,
        )
        unfinished = folder / "manifest.tmp"
        with unfinished.open("w") as file:
            json.dump(asdict(manifest), file, indent=1)
            sync(file)
        unfinished.replace(folder / "manifest.json")
    finally:
        _remove_unfinished(folder)
    return Prepared(folder, manifest)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("*.tmp"):
        path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the prepared data ({error.strerror or error}); expected a "
            "writable folder with free space: name one with --data.cache DIR"
        ) from error
