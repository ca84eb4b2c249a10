"""The catalogue of data sets: what it reads, what it refuses, what it draws and downloads."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from dist_train.config import DataConfig
from dist_train.data import catalog, download
from dist_train.data.download import SOURCES
from dist_train.data.prepare import prepare_dataset
from dist_train.errors import UserError
from tests.conftest import REPOSITORY, real_data


def real(name: str) -> Path:
    """The folder of a real data set; the test is skipped where it is absent."""
    return catalog.locate(name, root=str(real_data(name)))


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder, with none of the user's environment."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("DIST_TRAIN_DATA", raising=False)
    monkeypatch.delenv("DIST_TRAIN_MIRROR", raising=False)
    return place


# Real data.


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_real_sets_equal_torchvision(name: str) -> None:
    folder = real(name)
    datasets = pytest.importorskip("torchvision.datasets")
    theirs_class = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
    }[name]
    theirs_root = folder.parents[len(Path(SOURCES[name].folder).parts) - 1]
    ours = catalog.load(name, root=str(real_data(name)))
    for split, is_train in ((ours.train, True), (ours.test, False)):
        theirs = theirs_class(theirs_root, train=is_train)
        images = np.asarray(theirs.data)
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
        assert split.labels.dtype == np.int64
        assert np.array_equal(split.images, images.reshape(split.images.shape))
        np.testing.assert_array_equal(split.labels, np.asarray(theirs.targets))
        assert split.images.shape[0] == len(theirs)
    if name.startswith("cifar"):
        assert list(ours.classes) == theirs.classes


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_root_may_be_any_usual_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, where = real(name), real_data(name)
    for root in (where, where / name, folder):
        assert catalog.locate(name, root=str(root)) == folder
    monkeypatch.setenv("DIST_TRAIN_DATA", str(where))
    assert catalog.locate(name, root=None) == folder


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_truncated_pickle(file: str, tmp_path: Path) -> None:
    folder = real("cifar10")
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes((folder / file).read_bytes()[:-10])
    expected = SOURCES["cifar10"].files[file]
    with pytest.raises(UserError, match=rf"{file}: found md5 .* expected md5 {expected}; delete"):
        catalog.load("cifar10", root=str(tmp_path))


# A small CIFAR and a small Fashion-MNIST of our own.


def cifar_files() -> dict[str, bytes]:
    """The files of a CIFAR-10 of 6 batches of 4 random images, pickled as the real ones are."""
    generator = np.random.default_rng(0)
    contents: dict[str, dict[bytes, Any]] = {
        file: {
            b"data": generator.integers(0, 256, (4, 3072), np.uint8),
            b"labels": generator.integers(0, 10, 4).tolist(),
        }
        for file in list(SOURCES["cifar10"].files)[:-1]
    }
    contents["batches.meta"] = {b"label_names": [f"class{i}".encode() for i in range(10)]}
    return {
        file: pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")
        for file, content in contents.items()
    }


def targz(folder: str, files: dict[str, bytes]) -> bytes:
    """An archive whose names climb out of the folder it is unpacked in, with a link out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"../../{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(f"{folder}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The served files (an archive) of a small CIFAR-10 that the catalogue takes for the real."""
    files = cifar_files()
    source = SOURCES["cifar10"]
    archive = targz(source.folder, files)
    small = replace(
        source,
        archives={"cifar-10-python.tar.gz": md5(archive)},
        files={name: md5(data) for name, data in files.items()},
    )
    monkeypatch.setitem(SOURCES, "cifar10", small)
    return {"cifar-10-python.tar.gz": archive}


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_planes_become_pixels(small_cifar: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "root" / "cifar10", cifar_files())
    dataset = catalog.load("cifar10", root=str(tmp_path / "root"))
    assert dataset.train.images.shape == (20, 32, 32, 3)
    assert dataset.test.images.shape == (4, 32, 32, 3)
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    expected = rows.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.train.images[:4], expected)
    assert dataset.classes == tuple(f"class{i}" for i in range(10))


class Bomb:
    """Leaves a file behind when it is unpickled by the ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("md5_is_known", [False, True])
def test_pickle_never_runs_code(
    md5_is_known: bool,
    small_cifar: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = pickle.dumps({b"data": Bomb(tmp_path / "exploded")}, protocol=2)
    pickle.loads(bomb)
    (tmp_path / "exploded").rmdir()  # The bomb works.
    write(tmp_path / "root", cifar_files() | {"data_batch_2": bomb})
    if md5_is_known:
        source = SOURCES["cifar10"]
        files = source.files | {"data_batch_2": md5(bomb)}
        monkeypatch.setitem(SOURCES, "cifar10", replace(source, files=files))
    with pytest.raises(pickle.UnpicklingError if md5_is_known else UserError):
        catalog.load("cifar10", root=str(tmp_path / "root"))
    assert not (tmp_path / "exploded").exists()


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def fashion_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {}
    for split, num_images in (("train", 20), ("t10k", 10)):
        images = generator.integers(0, 256, (num_images, 28, 28), np.uint8)
        files[f"{split}-images-idx3-ubyte"] = idx(images)
        files[f"{split}-labels-idx1-ubyte"] = idx(np.arange(num_images, dtype=np.uint8) % 10)
    return files


def test_idx_files(tmp_path: Path) -> None:
    write(tmp_path / "fashion_mnist" / "FashionMNIST" / "raw", fashion_files())
    dataset = catalog.load("fashion_mnist", root=str(tmp_path))
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    np.testing.assert_array_equal(dataset.train.images, expected[..., None])
    np.testing.assert_array_equal(dataset.test.labels, np.arange(10))
    assert dataset.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-1], r"for shape \(20, 28, 28\)"),
        ("train-images-idx3-ubyte", lambda data: b"", "header"),
        ("train-images-idx3-ubyte", lambda data: b"\x1f\x8b" + data[2:], "header 1f8b0803"),
        ("t10k-images-idx3-ubyte", lambda data: idx(np.zeros((49, 8, 20), np.uint8)), "shape"),
        ("t10k-labels-idx1-ubyte", lambda data: idx(np.arange(9, dtype=np.uint8)), "9 labels"),
        ("t10k-labels-idx1-ubyte", lambda data: idx(np.full(10, 10, np.uint8)), "labels up to 10"),
    ],
)
def test_damaged_idx_files(
    file: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    files = fashion_files()
    write(tmp_path, files | {file: damage(files[file])})
    with pytest.raises(UserError, match=rf"{file}: found .*{message}.*expected.*; delete"):
        catalog.load("fashion_mnist", root=str(tmp_path))


def test_mnist_is_not_taken_for_fashion_mnist() -> None:
    with pytest.raises(UserError, match="a file of MNIST"):
        catalog.load("fashion_mnist", root=str(real("mnist")))


# What is missing, and where it is looked for.


def test_missing_data_names_path_expectation_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        catalog.load("cifar10", root=str(tmp_path))
    message = str(raised.value)
    assert f"--data.root {tmp_path} does not hold cifar10" in message
    assert "data_batch_1" in message
    assert str(tmp_path / "cifar10" / "cifar-10-batches-py") in message
    assert "--data.dataset shapes" in message
    assert "\n" not in message


def test_wrong_arguments() -> None:
    for arguments, message in (
        ({"name": "imagenet"}, "imagenet has no files: expected one of folder, cifar10"),
        ({"name": "cifar10", "image_size": 64}, "--data.image_size 64 is for folder and shapes"),
        ({"name": "shapes", "image_size": 4}, "--data.image_size 4: expected 8 or more"),
        ({"name": "shapes", "train_samples": 4}, "--data.train_samples 4: expected 5 or more"),
        ({"name": "folder"}, "set --data.root"),
    ):
        with pytest.raises(UserError, match=message):
            catalog.load(root=None, **arguments)


def test_order_of_places(
    small_cifar: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, environment, explicit = Path("data"), tmp_path / "environment", tmp_path / "explicit"
    write(here, cifar_files())
    assert catalog.locate("cifar10", root=None) == here
    monkeypatch.setenv("DIST_TRAIN_DATA", str(environment))
    assert catalog.locate("cifar10", root=None) == here
    write(environment, cifar_files())
    assert catalog.locate("cifar10", root=None) == environment
    with pytest.raises(UserError, match="explicit does not hold cifar10"):
        catalog.locate("cifar10", root=str(explicit))
    write(explicit, cifar_files())
    assert catalog.locate("cifar10", root=str(explicit)) == explicit


# Downloads, from a server on this machine.


class Server:
    """Serves `files`; `script` holds what to do to the next requests instead of answering."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.script: list[str] = []
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                action = server.script.pop(0) if server.script else "answer"
                body = files.get(self.path.removeprefix("/archives/"))
                if action == "drop":
                    return
                if action == "busy" or body is None:
                    self.send_error(503 if action == "busy" else 404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if action == "cut" else body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archives/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], Server]]:
    servers = []
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("no_proxy", "*")

    def start(files: dict[str, bytes]) -> Server:
        servers.append(Server(files))
        monkeypatch.setenv("DIST_TRAIN_MIRROR", servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Serve = Callable[[dict[str, bytes]], Server]


@pytest.mark.parametrize("script", [[], ["drop"], ["cut"], ["busy", "drop"]])
def test_download(
    script: list[str],
    small_cifar: dict[str, bytes],
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(small_cifar)
    server.script = list(script)
    dataset = catalog.load("cifar10", root=None)
    assert len(dataset.train.images) == 20
    assert server.requests == ["/archives/cifar-10-python.tar.gz"] * (len(script) + 1)
    folder = Path("data", "cifar10", "cifar-10-batches-py")
    assert {path.name for path in folder.iterdir()} == set(cifar_files())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "downloading http://127.0.0.1" in shown.err
    assert "\r" not in shown.err  # No progress bar where there is no terminal.
    catalog.load("cifar10", root=None)
    assert len(server.requests) == len(script) + 1


def test_download_of_gzipped_files(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    served = {f"{name}.gz": gzip.compress(data) for name, data in fashion_files().items()}
    archives = {name: md5(data) for name, data in served.items()}
    source = replace(SOURCES["fashion_mnist"], archives=archives)
    monkeypatch.setitem(SOURCES, "fashion_mnist", source)
    serve(served)
    assert len(catalog.load("fashion_mnist", root=None).train.images) == 20


@pytest.mark.parametrize(
    ("script", "body", "message"),
    [
        ([], b"not the archive", "md5 is .*, expected"),
        ([], None, "404"),
        (["drop"] * 3, b"", "closed connection"),
        (["cut"] * 3, b"the archive", "closed after 5 of 11 bytes"),
        (["busy"] * 3, b"", "503"),
    ],
)
def test_failed_download_says_what_to_do_and_leaves_nothing(
    script: list[str],
    body: bytes | None,
    message: str,
    small_cifar: dict[str, bytes],
    serve: Serve,
) -> None:
    files = {} if body is None else {"cifar-10-python.tar.gz": body}
    serve(files).script = list(script)
    with pytest.raises(UserError, match=message) as raised:
        catalog.load("cifar10", root=None)
    text = str(raised.value)
    assert str(Path("data/cifar10/cifar-10-batches-py").absolute()) in text
    assert "--data.dataset shapes" in text
    assert "\n" not in text
    assert list(Path("data").rglob("*")) == [Path("data/cifar10")]


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("DIST_TRAIN_MIRROR", url)
    with pytest.raises(UserError, match=rf"cannot download from {url} .*refused"):
        catalog.load("cifar10", root=None)


def test_mirror_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TRAIN_MIRROR", "mirror/files")
    with pytest.raises(UserError, match="DIST_TRAIN_MIRROR mirror/files: expected a URL"):
        catalog.load("cifar10", root=None)


def test_folder_that_cannot_be_made(small_cifar: dict[str, bytes], serve: Serve) -> None:
    serve(small_cifar)
    Path("data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot download"):
        catalog.load("cifar10", root=None)


# A folder of images.

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def image_folder(root: Path) -> None:
    """Two classes, `cat` and `dog`, with a plain image each in train and val."""
    for split in ("train", "val"):
        for name, colour in (("dog", RED), ("cat", GREEN)):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 30), colour).save(root / split / name / "plain.png")


def test_folder_reads_sizes_modes_and_formats(tmp_path: Path) -> None:
    image_folder(tmp_path)
    dog = tmp_path / "train" / "dog"
    for path in dog.iterdir():
        path.unlink()
    red = Image.new("RGB", (100, 50), RED)
    paletted = red.convert("P", palette=Image.Palette.ADAPTIVE)
    red.save(dog / "a.JPG", quality=95)
    red.convert("L").save(dog / "b.png")
    red.convert("RGBA").save(dog / "c.webp", lossless=True)
    paletted.save(dog / "d.png", transparency=bytes([0, 255]))
    red.convert("CMYK").save(dog / "e.jpeg", quality=95)
    red.resize((7, 9)).save(dog / "f.ppm")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(dog / "h.png")
    Image.new("RGB", (2000, 1500), RED).save(dog / "g.jpg", quality=95)
    (dog / "notes.txt").write_text("not an image")
    (dog / ".hidden.png").write_text("not an image either")
    dataset = catalog.load("folder", root=str(tmp_path), image_size=16)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.shape == (9, 16, 16, 3)
    assert dataset.train.images.flags.c_contiguous
    assert dataset.train.labels.tolist() == [0] + [1] * 8
    assert dataset.test.labels.tolist() == [0, 1]
    grey, white, upper_byte = (82, 82, 82), (255, 255, 255), (156, 156, 156)
    expected = np.array([GREEN, RED, grey, RED, white, RED, RED, RED, upper_byte])
    difference = dataset.train.images - expected[:, None, None].astype(np.int64)
    assert np.abs(difference).max() <= 8
    assert catalog.load("folder", root=str(tmp_path)).train.images.shape[1:] == (64, 64, 3)


def test_folder_cuts_out_the_centre_and_turns_as_the_camera_was_held(tmp_path: Path) -> None:
    image_folder(tmp_path)
    wide = Image.new("RGB", (96, 32), RED)
    wide.paste(GREEN, (32, 0, 48, 32))
    wide.paste(BLUE, (48, 0, 64, 32))
    wide.save(tmp_path / "train" / "cat" / "plain.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # To be shown turned clockwise by a quarter.
    wide.save(tmp_path / "train" / "dog" / "plain.png", exif=turned)
    wide_image, turned_image = catalog.load(
        "folder", root=str(tmp_path), image_size=32
    ).train.images
    assert (wide_image[:, :16] == GREEN).all()
    assert (wide_image[:, 16:] == BLUE).all()
    np.testing.assert_array_equal(turned_image, np.rot90(wide_image, -1))


def test_a_folder_is_prepared_anew_when_its_images_change(tmp_path: Path) -> None:
    root = tmp_path / "images"
    image_folder(root)
    data = DataConfig(dataset="folder", root=str(root), cache=str(tmp_path / "prepared"))
    cat, dog = root / "train" / "cat", root / "train" / "dog"

    def images() -> list[int]:
        return [prepare_dataset(data).manifest.train.samples, len(list(Path(data.cache).iterdir()))]

    assert images() == images() == [2, 1]
    Image.new("RGB", (8, 8), BLUE).save(cat / "new.png")
    assert images() == [3, 2]
    (cat / "new.png").rename(dog / "new.png")
    assert images() == images() == [3, 3]


def test_a_folder_beside_what_is_made_of_it_is_prepared_once(tmp_path: Path) -> None:
    image_folder(tmp_path)
    data = DataConfig(dataset="folder", root=str(tmp_path), cache=str(tmp_path / "prepared"))
    assert prepare_dataset(data).folder == prepare_dataset(data).folder
    assert len(list(Path(data.cache).iterdir())) == 1


def test_folder_names_the_unreadable_image(tmp_path: Path) -> None:
    image_folder(tmp_path)
    path = tmp_path / "val" / "dog" / "plain.png"
    good = path.read_bytes()
    for broken in (b"", b"text", good[: len(good) // 2], good[:40] + b"\0" * 40):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=f"cannot read the image {path}.*repair or remove"):
            catalog.load("folder", root=str(tmp_path))


def test_a_folder_larger_than_memory_is_noticed_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "no_image.png").touch()
    memory = psutil.virtual_memory()._replace(available=64 * 64 * 3 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"1 images of 64x64 .* lower --data.image_size"):
        catalog.load("folder", root=str(tmp_path))


def test_folder_classes_must_agree_and_hold_images(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"same class folders.*3 and 2, different: \['emu'\]"):
        catalog.load("folder", root=str(tmp_path))
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(UserError, match="emu has no images"):
        catalog.load("folder", root=str(tmp_path))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} does not hold folder: expected images in"):
        catalog.load("folder", root=str(tmp_path))


# Built-in shapes.


def test_shapes_are_deterministic_and_stable_in_their_prefix() -> None:
    few = catalog.load("shapes", root=None, train_samples=1005)
    many = catalog.load("shapes", root=None, train_samples=2500)
    assert few.train.images.shape == (1005, 32, 32, 3)
    assert few.test.images.shape == (201, 32, 32, 3)
    assert few.train.images.flags.c_contiguous
    np.testing.assert_array_equal(few.train.images, many.train.images[:1005])
    np.testing.assert_array_equal(few.test.images, many.test.images[:201])
    np.testing.assert_array_equal(few.train.labels, many.train.labels[:1005])
    assert np.bincount(many.train.labels).tolist() == [250] * 10
    assert len(few.classes) == 10
    assert not (few.train.images[:201] == few.test.images).all(axis=(1, 2, 3)).any()
    assert len(np.unique(many.train.images.reshape(2500, -1), axis=0)) == 2500


def test_shapes_of_another_size() -> None:
    dataset = catalog.load("shapes", root=None, image_size=20, train_samples=10)
    assert dataset.train.images.shape == (10, 20, 20, 3)
    assert dataset.test.images.shape == (2, 20, 20, 3)


def test_a_linear_model_cannot_tell_shapes() -> None:
    dataset = catalog.load("shapes", root=None, train_samples=6000)

    def features(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
        return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1

    train, targets = features(dataset.train.images), np.eye(10, dtype=np.float32)
    gram = train.T @ train + 300 * np.eye(train.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, train.T @ (targets[dataset.train.labels] - 0.1))
    predicted = (features(dataset.test.images) @ weights).argmax(axis=1)
    assert (predicted == dataset.test.labels).mean() < 0.4


def test_import_is_cheap() -> None:
    code = (
        "import sys, dist_train.data.catalog; "
        "sys.exit(bool({'torch', 'torchvision', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
