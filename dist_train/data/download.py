"""The published data sets: where they come from, and how to get them.

A download ends in checked, unpacked files, or in none; one that is killed leaves a `.download-`
folder beside them, which counts for nothing.
"""

import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import UserError

MIRROR_VARIABLE = "DIST_TRAIN_MIRROR"
ATTEMPTS = 3
BACKOFF_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Where a published data set comes from, and how to know that it is the real one."""

    folder: str
    """The folder of its files, as the archives or torchvision name it."""
    url: str
    """The archives' URL without the file name; $DIST_TRAIN_MIRROR overrides it."""
    archives: dict[str, str]
    """Archive (.tar.gz, or .gz of one file) -> md5."""
    files: dict[str, str | None]
    """File -> md5, None where none is published; the training set's, the test set's, others."""
    classes: tuple[str, ...] = ()
    """The classes' names, unless a file tells them."""


# The facts are torchvision's, but for the md5 of MNIST's unpacked files, taken from the real ones.
SOURCES: dict[str, Source] = {
    "cifar10": Source(
        folder="cifar-10-batches-py",
        url="https://www.cs.toronto.edu/~kriz",
        archives={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": Source(
        folder="cifar-100-python",
        url="https://www.cs.toronto.edu/~kriz",
        archives={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        files={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "mnist": Source(
        folder="MNIST/raw",
        url="https://ossci-datasets.s3.amazonaws.com/mnist",
        archives={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        files={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        classes=tuple("0123456789"),
    ),
    "fashion_mnist": Source(
        folder="FashionMNIST/raw",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        archives={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        files={
            "train-images-idx3-ubyte": None,
            "train-labels-idx1-ubyte": None,
            "t10k-images-idx3-ubyte": None,
            "t10k-labels-idx1-ubyte": None,
        },
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}


def download(source: Source, destination: Path) -> None:
    """Download a data set's archives and move the files they hold into one flat folder.

    Everything is checked and unpacked in a temporary folder next to `destination`, then renamed
    file by file, so that processes which do this at the same time do no harm to each other.

    Raises:
        UserError: no network, a wrong md5 or mirror, no space, no permission.
    """
    base_url = (os.environ.get(MIRROR_VARIABLE) or source.url).rstrip("/")
    remedy = (
        f"put the unpacked files of {', '.join(source.archives)} into {destination.absolute()}, "
        "or use --data.dataset shapes, which needs no network"
    )
    if "://" not in base_url:
        raise UserError(
            f"${MIRROR_VARIABLE} {base_url}: expected a URL such as https://host/folder"
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as temporary:
            unpacked = Path(temporary, "unpacked")
            unpacked.mkdir()
            for archive, md5 in source.archives.items():
                path = Path(temporary, archive)
                url = f"{base_url}/{archive}"
                found = _fetch_with_retries(url, path)
                if found != md5:
                    raise UserError(f"{url}: md5 is {found}, expected {md5}; {remedy}")
                _unpack(path, unpacked)
            destination.mkdir(exist_ok=True)
            for path in unpacked.iterdir():
                path.replace(destination / path.name)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download from {base_url} ({error}); {remedy}") from error


def _fetch_with_retries(url: str, path: Path) -> str:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch(url, path)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code < 500:  # That there is no such file is an answer, not an accident.
                    raise
            if attempt == ATTEMPTS:
                raise
            print(f"{url}: {error}; trying again", file=sys.stderr)
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _fetch(url: str, path: Path) -> str:
    """Write the body of `url` to `path`; the md5 of its bytes."""
    from tqdm import tqdm

    digest = hashlib.md5(usedforsecurity=False)
    on_terminal = sys.stderr.isatty()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        num_bytes = int(response.headers.get("Content-Length", 0)) or None
        if not on_terminal:
            print(f"downloading {url} ({(num_bytes or 0) / 1e6:.0f} MB)", file=sys.stderr)
        with tqdm(
            total=num_bytes, unit="B", unit_scale=True, desc=path.name, disable=not on_terminal
        ) as bar:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        if num_bytes is not None and file.tell() != num_bytes:
            raise ConnectionError(f"connection closed after {file.tell()} of {num_bytes} bytes")
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Put the archive's files, and nothing else it may hold, into one flat folder."""
    if archive.name.endswith(".tar.gz"):
        # Without `extractall`, which has no filters yet in Python 3.11.2, that of Debian 12.
        with tarfile.open(archive) as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                content = tar.extractfile(member)
                assert content is not None  # as it is for what is no file
                with (folder / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    else:
        with gzip.open(archive) as source, (folder / archive.stem).open("wb") as file:
            shutil.copyfileobj(source, file)
