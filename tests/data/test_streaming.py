"""Both loaders give the images asked for, and the streaming one never hangs, leaks or crashes."""

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dist_train.config import Storage
from dist_train.data import beton, prepare
from dist_train.data.resident import ResidentLoader
from dist_train.data.streaming import StreamLoader, is_available
from dist_train.errors import UserError

needs_ffcv = pytest.mark.skipif(not is_available(), reason="FFCV is not installed")

CPU = torch.device("cpu")
SAMPLES, BATCH_SIZE = 1000, 32
CORES = os.cpu_count() or 1


def write(folder: Path, channels: int, storage: Storage = "raw") -> Path:
    """A file of 1000 smooth images; for three channels its raw pages are three."""
    generator = np.random.default_rng(channels)
    corners = generator.integers(0, 256, (SAMPLES, 2, 2, channels), np.uint8)
    images = corners.repeat(20, 1).repeat(22, 2)
    split = SimpleNamespace(images=images, labels=np.arange(SAMPLES))
    dataset = SimpleNamespace(name="smooth", train=split, test=split, classes=("a",))
    return prepare.prepare(lambda: dataset, folder, storage=storage).train


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "rgb": write(folder / "rgb", 3),
        "grey": write(folder / "grey", 1),
        "jpeg": write(folder / "jpeg", 3, "jpeg"),
    }


@pytest.fixture(scope="module")
def rgb_loader(files: dict[str, Path]) -> Iterator[StreamLoader]:
    """A loader that tests share: whatever one did to it, the next finds it in order."""
    loader = StreamLoader(files["rgb"], batch_size=BATCH_SIZE, device=CPU)
    yield loader
    loader.close()


def orders() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "all": generator.permutation(SAMPLES),
        "repeated": generator.integers(0, SAMPLES, 500),
        "int32": np.arange(64, dtype=np.int32)[::-1],
        "one": np.array([SAMPLES - 1]),
        "none": np.array([], np.int64),
    }


def assert_same_batches(streamed: StreamLoader, resident: ResidentLoader, images: Any) -> None:
    for ids in orders().values():
        start = 0
        for batch, expected in zip(streamed.epoch(ids), resident.epoch(ids), strict=True):
            end = min(start + BATCH_SIZE, len(ids))
            np.testing.assert_array_equal(batch.cpu().numpy(), images[ids[start:end]])
            assert torch.equal(batch, expected)
            assert batch.is_contiguous()
            assert batch.dtype == torch.uint8
            start = end
        assert start == len(ids)


@needs_ffcv
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("name", "threads"), [("rgb", 1), ("rgb", min(2, CORES)), ("grey", 1)])
def test_loaders_agree(files: dict[str, Path], name: str, threads: int, background: bool) -> None:
    images = beton.read_images(files[name])
    resident = ResidentLoader(images, batch_size=BATCH_SIZE, device=CPU)
    streamed = StreamLoader(
        files[name], batch_size=BATCH_SIZE, device=CPU, threads=threads, background=background
    )
    assert_same_batches(streamed, resident, images)
    streamed.close()
    resident.close()


@needs_ffcv
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loaders_agree_on_the_gpu(files: dict[str, Path]) -> None:
    """The host runs ahead of a busy device; no batch is overwritten before it is used."""
    images = beton.read_images(files["rgb"])
    device = torch.device("cuda")
    resident = ResidentLoader(images, batch_size=BATCH_SIZE, device=device)
    streamed = StreamLoader(files["rgb"], batch_size=BATCH_SIZE, device=device)
    assert_same_batches(streamed, resident, images)
    busy = torch.randn(4096, 4096, device=device)
    ids = np.random.default_rng(1).permutation(SAMPLES)
    for _ in range(3):
        copies = []
        for batch in streamed.epoch(ids):
            busy = (busy @ busy).tanh()
            copies.append(batch + 0)
        np.testing.assert_array_equal(torch.cat(copies).cpu().numpy(), images[ids])
    streamed.close()


@needs_ffcv
def test_jpeg(files: dict[str, Path]) -> None:
    pixels = beton.read_images(files["rgb"]).astype(np.int16)
    loader = StreamLoader(files["jpeg"], batch_size=SAMPLES, device=CPU)
    (decoded,) = loader.epoch(np.arange(SAMPLES))
    difference = np.abs(decoded.numpy() - pixels)
    assert difference.mean() < 2
    assert difference.max() < 32  # FFCV decodes with libjpeg-turbo's fast, inexact transform
    loader.close()


@needs_ffcv
def test_batch_stays_until_the_next_is_asked_for(rgb_loader: StreamLoader) -> None:
    for batch in rgb_loader.epoch(np.arange(400)):
        before = batch.clone()
        time.sleep(0.01)  # time for the thread to run ahead, around the ring
        assert torch.equal(batch, before)


@needs_ffcv
@pytest.mark.parametrize("ids", [[0, SAMPLES], [-1]])
def test_ids_outside_the_file(rgb_loader: StreamLoader, ids: list[int]) -> None:
    resident = ResidentLoader(np.zeros((SAMPLES, 1, 1, 3), np.uint8), batch_size=2, device=CPU)
    for loader in (rgb_loader, resident):
        with pytest.raises(IndexError, match=r"0\.\.999"):
            loader.epoch(np.array(ids))


@needs_ffcv
@pytest.mark.parametrize("error", [OSError("disk gone"), SystemExit(3), MemoryError()])
def test_dead_reader_raises(
    rgb_loader: StreamLoader, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls = iter(range(1000))

    def decode(*arguments: Any, decode: Any = rgb_loader._decode) -> torch.Tensor:
        if next(calls) == 7:
            raise error
        return decode(*arguments)  # type: ignore[no-any-return]

    ids = np.arange(SAMPLES)
    with monkeypatch.context() as patch:
        patch.setattr(rgb_loader, "_decode", decode)
        batches = rgb_loader.epoch(ids)
        for _ in range(7):
            next(batches)
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=r"train\.beton: reading failed") as raised:
            next(batches)
    assert time.monotonic() - began < 1
    assert raised.value.__cause__ is error
    assert sum(len(batch) for batch in rgb_loader.epoch(ids)) == SAMPLES


@needs_ffcv
def test_early_exit_leaves_no_thread(files: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    loader = StreamLoader(files["rgb"], batch_size=BATCH_SIZE, device=CPU)
    ids = np.arange(SAMPLES)
    for batch in loader.epoch(ids):
        assert len(batch) == BATCH_SIZE
        break
    closed = loader.epoch(ids)
    next(closed)
    closed.close()
    assert not loader._pending
    held = loader.epoch(ids)
    next(held)
    loader.close()
    loader.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="ended this one"):
        next(held)
    with pytest.raises(RuntimeError):
        next(loader.epoch(ids))


@needs_ffcv
def test_forgotten_loader_ends_its_thread(files: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    loader = StreamLoader(files["rgb"], batch_size=BATCH_SIZE, device=CPU)
    next(loader.epoch(np.arange(SAMPLES)))
    del loader
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) == before


@needs_ffcv
def test_newer_epoch_ends_the_one_before(rgb_loader: StreamLoader) -> None:
    first, second = rgb_loader.epoch(np.arange(500)), rgb_loader.epoch(np.arange(500))
    next(first)
    expected = next(second).clone()
    with pytest.raises(RuntimeError, match="a newer epoch"):
        next(first)
    assert torch.equal(expected, next(rgb_loader.epoch(np.arange(500))))


# Leaves by an exception in mid-epoch, with the iterator held and nothing closed.
LEAVES = """
import sys
from pathlib import Path
import numpy as np
import torch
from dist_train.data.streaming import StreamLoader

torch.set_num_threads(3)
np.random.seed(0)
state = np.random.get_state()[1].copy()
loader = StreamLoader(Path(sys.argv[1]), batch_size=8, device=torch.device("cpu"))
batches = loader.epoch(np.arange(1000))
for _ in range(20):
    next(batches)
assert torch.get_num_threads() == 3
assert np.array_equal(state, np.random.get_state()[1])
sys.exit(7)
"""


@needs_ffcv
def test_interpreter_exits_cleanly(files: dict[str, Path]) -> None:
    """Also: torch's thread count and NumPy's generator are left alone, FFCV's import included."""
    command = [sys.executable, "-W", "error", "-c", LEAVES, str(files["rgb"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def truncate(data: bytearray) -> bytearray:
    return data[:-1]


def cut_pixels(data: bytearray) -> bytearray:
    return data[: 3 << 20]


def cut_header(data: bytearray) -> bytearray:
    return data[:10]


def flip_pointer(data: bytearray) -> bytearray:
    data[24 + 2 * 1041 + 5 + 2] ^= 1  # in the first record, behind mode, width and height
    return data


@needs_ffcv
@pytest.mark.parametrize("damage", [truncate, cut_pixels, cut_header, flip_pointer])
def test_damaged_file(files: dict[str, Path], tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "damaged.beton"
    path.write_bytes(damage(bytearray(files["rgb"].read_bytes())))
    with pytest.raises(UserError, match=r"damaged\.beton: damaged, expected a whole"):
        StreamLoader(path, batch_size=8, device=CPU)


@needs_ffcv
def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.beton: No such file"):
        StreamLoader(tmp_path / "none.beton", batch_size=8, device=CPU)


@needs_ffcv
@pytest.mark.parametrize("threads", [0, 100_000])
def test_too_many_threads(files: dict[str, Path], threads: int) -> None:
    with pytest.raises(UserError, match=f"--data.threads {threads}: expected"):
        StreamLoader(files["rgb"], batch_size=8, device=CPU, threads=threads)


def test_without_ffcv(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ffcv"] + ["ffcv"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert not is_available()
    with pytest.raises(UserError, match=r"needs FFCV .*launch/setup\.sh.*--data\.loader resident"):
        StreamLoader(files["rgb"], batch_size=8, device=CPU)


def test_resident_takes_arrays_it_may_not_write() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = ResidentLoader(images, batch_size=2, device=CPU)
    (batch,) = loader.epoch(np.array([1, 0]))
    np.testing.assert_array_equal(batch.numpy(), images[::-1])
