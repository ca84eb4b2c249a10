"""What is written is read back, by us and by FFCV; nothing half-written is ever taken for it."""

import logging
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_train.data import beton, prepare
from dist_train.errors import UserError


def make_dataset(channels: int = 3, samples: int = 40, side: int = 8) -> Any:
    """Random images and labels; the test split has half as many as the training split."""
    generator = np.random.default_rng([channels, samples, side])

    def split(num: int) -> SimpleNamespace:
        shape = (num, side, side + 1, channels)
        images = generator.integers(0, 256, shape, np.uint8)
        return SimpleNamespace(images=images, labels=generator.integers(0, 10, num, np.int64))

    return SimpleNamespace(
        name="noise", train=split(samples), test=split(samples // 2), classes=("a", "b")
    )


def never() -> Any:
    raise AssertionError("the data set was loaded again")


def assert_holds(prepared: prepare.Prepared, dataset: Any) -> None:
    for path, split in ((prepared.train, dataset.train), (prepared.test, dataset.test)):
        np.testing.assert_array_equal(beton.read_images(path), split.images)
        np.testing.assert_array_equal(beton.read_labels(path), split.labels)
    assert not list(prepared.folder.glob("*.tmp"))


@pytest.fixture
def ffcv() -> Iterator[Any]:
    """FFCV, or a skip; what it does to torch's thread count is undone."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("ffcv", reason="FFCV is not installed")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path: Path, channels: int) -> None:
    # Three pages of 2 MiB for three channels, with a rest at the end of each.
    dataset = make_dataset(channels, samples=1000, side=40)
    prepared = prepare.prepare(lambda: dataset, tmp_path / "a" / "b")
    assert_holds(prepared, dataset)
    manifest = prepared.manifest
    assert (manifest.dataset, manifest.storage, manifest.classes) == ("noise", "raw", ("a", "b"))
    assert manifest.image_shape == (40, 41, channels)
    assert (manifest.train.samples, manifest.test.samples) == (1000, 500)
    scaled = dataset.train.images / 255
    np.testing.assert_allclose(manifest.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, scaled.std((0, 1, 2)), rtol=1e-9)
    assert prepare.prepare(never, tmp_path / "a" / "b") == prepared


KEPT: list[Any] = []
"""FFCV's loaders: numba may raise in a finalizer when one with a process cache is collected."""


@pytest.mark.parametrize("os_cache", [True, False], ids=["os_cache", "process_cache"])
@pytest.mark.parametrize("channels", [1, 3])
def test_ffcv_reads_our_file(tmp_path: Path, ffcv: Any, channels: int, os_cache: bool) -> None:
    from ffcv.loader import Loader

    dataset = make_dataset(channels, samples=1000, side=40)
    path = prepare.prepare(lambda: dataset, tmp_path).train
    loader = Loader(str(path), 96, num_workers=1, os_cache=os_cache, drop_last=False, seed=0)
    KEPT.append(loader)
    table, page_size = loader.reader.alloc_table, loader.reader.page_size
    assert np.array_equal(
        table["ptr"] // page_size, (table["ptr"] + table["size"] - 1) // page_size
    )
    images, labels = zip(
        *((image.numpy().copy(), label.numpy().copy()) for image, label in loader), strict=True
    )
    np.testing.assert_array_equal(np.concatenate(images), dataset.train.images)
    np.testing.assert_array_equal(np.concatenate(labels)[:, 0], dataset.train.labels)


WRITE_WITH_FFCV = """
import sys
import numpy as np
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

for name in ("1", "3"):
    data = np.load(f"{sys.argv[1]}/{name}.npz")
    images, labels = data["images"], data["labels"]
    image = RGBImageField() if name == "3" else NDArrayField(np.dtype("u1"), images.shape[1:])
    fields = {"image": image, "label": IntField()}
    writer = DatasetWriter(f"{sys.argv[1]}/{name}.beton", fields, num_workers=1)
    writer.from_indexed_dataset(list(zip(images, labels)))
"""


def test_ffcv_writes_the_same_samples(tmp_path: Path, ffcv: Any) -> None:
    splits = {channels: make_dataset(channels).train for channels in (1, 3)}
    for channels, split in splits.items():
        np.savez(tmp_path / f"{channels}.npz", images=split.images, labels=split.labels)
    run_python(WRITE_WITH_FFCV, tmp_path)  # it forks, which this process, with threads, must not
    for channels, split in splits.items():
        path = tmp_path / f"{channels}.beton"
        np.testing.assert_array_equal(beton.read_images(path), split.images)
        np.testing.assert_array_equal(beton.read_labels(path), split.labels)


def test_jpeg(tmp_path: Path) -> None:
    dataset = make_dataset(samples=3000, side=31)  # noise: the JPEGs fill more than one page
    prepared = prepare.prepare(lambda: dataset, tmp_path, storage="jpeg")
    np.testing.assert_array_equal(beton.read_labels(prepared.train), dataset.train.labels)
    with pytest.raises(UserError, match="holds JPEG"):
        beton.read_images(prepared.train)
    data = prepared.train.read_bytes()
    image = Image.open(BytesIO(data[data.rindex(b"\xff\xd8\xff\xe0") :]))
    assert image.size == (32, 31)


def test_jpeg_wants_colour(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.storage jpeg: expected colour"):
        prepare.prepare(lambda: make_dataset(1), tmp_path, storage="jpeg")


def test_other_settings_are_made_anew(tmp_path: Path) -> None:
    small, large = make_dataset(samples=10), make_dataset(samples=20)
    prepare.prepare(lambda: small, tmp_path, key="10")
    assert_holds(prepare.prepare(lambda: large, tmp_path, key="20"), large)
    prepare.prepare(lambda: large, tmp_path, key="20", storage="jpeg")
    assert prepare.prepare(never, tmp_path, key="20", storage="jpeg").manifest.storage == "jpeg"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_pixel(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1 << 21] ^= 1  # the first pixel: pages are aligned to 2 MiB
    path.write_bytes(data)


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{")


DAMAGES = [
    ("train.beton", truncate, "train.beton has the wrong size"),
    ("train.beton", garble, "train.beton has the wrong size"),
    ("test.beton", Path.unlink, "test.beton is missing or damaged"),
    ("train.beton", flip_pixel, "train.beton fails its checksum"),
    ("train.beton", flip_header, "train.beton fails its checksum"),
    ("manifest.json", garble, "manifest.json is damaged"),
    ("manifest.json", truncate, "manifest.json is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "report"), DAMAGES)
def test_damage_is_noticed_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any, report: str
) -> None:
    dataset = make_dataset()
    prepare.prepare(lambda: dataset, tmp_path)
    damage(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert_holds(prepare.prepare(lambda: dataset, tmp_path), dataset)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: {report}; preparing it again"
    ]
    prepare.prepare(never, tmp_path)


@pytest.mark.parametrize("damage", [truncate, flip_header])
def test_damage_to_a_file_too_large_to_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr(prepare, "_HASHED_UP_TO", 0)
    dataset = make_dataset()
    prepare.prepare(lambda: dataset, tmp_path)
    prepare.prepare(never, tmp_path)
    damage(tmp_path / "test.beton")
    assert_holds(prepare.prepare(lambda: dataset, tmp_path), dataset)


@pytest.mark.parametrize("damage", [truncate, flip_header, garble, Path.unlink])
def test_readers_refuse_damaged_files(tmp_path: Path, damage: Any) -> None:
    path = prepare.prepare(make_dataset, tmp_path).train
    damage(path)
    for read in (beton.read_images, beton.read_labels):
        with pytest.raises(UserError, match=r"train\.beton: .*expected a") as raised:
            read(path)
        assert "\n" not in str(raised.value)


def run_python(script: str, *arguments: object) -> int:
    """Run `script` in a process of its own; its exit status (-9: killed)."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


# Loads this file's data set in another process, which is killed before the n-th of the calls that
# make something last: the end of a page, a file forced to the disk, a file renamed.
KILLED = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dist_train.data import beton, prepare
from test_beton import make_dataset

left = int(sys.argv[2])

def counted(function):
    def call(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments)
    return call

def pages(*arguments, write=beton._pages):
    for page in write(*arguments):
        yield page
        counted(lambda: None)()

beton._pages = pages
os.fsync = counted(os.fsync)
Path.replace = counted(Path.replace)
prepare.prepare(lambda: make_dataset(samples=20), Path(sys.argv[1]), key="new")
"""


@pytest.mark.parametrize("calls", range(9))
def test_killed_conversion_leaves_nothing_for_good(tmp_path: Path, calls: int) -> None:
    old, new = make_dataset(samples=10), make_dataset(samples=20)
    prepare.prepare(lambda: old, tmp_path, key="old")
    # Two pages, three files forced to the disk, three renamed: the ninth call never comes.
    killed = run_python(KILLED, tmp_path, calls) == -9
    assert killed == (calls < 8)
    assert_holds(prepare.prepare((lambda: new) if killed else never, tmp_path, key="new"), new)
    prepare.prepare(never, tmp_path, key="new")


COUNTED = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dist_train.data import beton, prepare
from test_beton import assert_holds, make_dataset

def load():
    with open(sys.argv[1] + "/loads", "a") as file:
        file.write("x")
    time.sleep(0.5)
    return make_dataset()

assert_holds(prepare.prepare(load, Path(sys.argv[1]) / "set"), make_dataset())
"""


def test_two_processes_convert_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTED, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "loads").read_text() == "x"


def assert_refused(folder: Path, load: Any) -> None:
    with pytest.raises(UserError, match=r"cannot write .*--data\.cache DIR") as raised:
        prepare.prepare(load, folder)
    assert str(raised.value).startswith(f"{folder}: ")
    assert "\n" not in str(raised.value)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file" / "set", never)


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:  # root may write anywhere, so the lock plays the read-only disk
        raise PermissionError(13, "Permission denied", str(path))

    dataset = make_dataset()
    prepare.prepare(lambda: dataset, tmp_path / "good")
    monkeypatch.setattr(
        prepare, "FileLock", lambda path: SimpleNamespace(acquire=lambda: refuse(path))
    )
    assert_holds(prepare.prepare(never, tmp_path / "good"), dataset)
    assert_refused(tmp_path / "none", never)


def test_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert_refused(tmp_path, make_dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []
    prepare.prepare(make_dataset, tmp_path)
