"""Each mistake gets one line that names the value and the remedy, and exit code 2."""

import os
import shutil
import socket
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import SMALL, dist_train, real_data, torchrun

CIFAR = ["lenet", "--train.max_steps", "1", "--tracking.wandb", "off"]


def assert_refused(done: CompletedProcess[str], *expected: str) -> None:
    """Exit code 2 and one line on stderr that holds what is expected."""
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("preparing ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dist-train: error: ")
    for part in expected:
        assert part in lines[0], part


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("quickstrat", ["unknown recipe quickstrat", "quickstart"]),
        ("lenet --train.epoch 3", ["--train.epoch:", "--train.epochs"]),
        ("lenet --train.epochs many", ["--train.epochs many", "a number"]),
        ("lenet --train.epochs inf --train.max_steps 9", ["--train.epochs inf", "above 0"]),
        ("lenet --train.profile 5", ["--train.profile 5", "START:STOP"]),
        ("lenet --train.profile 0:5", ["--train.profile 0:5", "1 <= START < STOP"]),
        ("lenet --train.profile 7:7", ["--train.profile 7:7", "1 <= START < STOP"]),
        ("lenet --data.batch_size 1.5", ["--data.batch_size 1.5", "whole number"]),
        ("lenet --data.flip randm", ["--data.flip randm", "random"]),
        ("lenet --runtime.compile perhaps", ["perhaps", "true or false"]),
        ("lenet --data.batch_size 0", ["--data.batch_size 0", "1 or more"]),
        (f"lenet --seed {10**20}", [f"--seed {10**20}", "expected"]),
        (f"lenet --runtime.timeout_seconds {10**14}", [f"--runtime.timeout_seconds {10**14}"]),
        ("lenet --data.train_samples 500", ["--data.train_samples 500", "shapes", "cifar10"]),
        (
            "lenet --data.batch_size 500 --model.batch_norm_group 64",
            ["--data.batch_size 500", "multiple", "--model.batch_norm_group 64"],
        ),
        ("lenet --data.mixup 1 --data.cutmix 1", ["--data.mixup", "--data.cutmix"]),
        ("lenet --train.ema 0.9 --train.average_tail 0.5", ["--train.ema", "--train.average_tail"]),
        (
            "resnet9 --data.resolutions 24 --data.resolution_until 12",
            ["--data.resolution_until 12", "0 to 1"],
        ),
        ("lenet --optim.milestones 30,40", ["--optim.milestones 30", "0 to 1"]),
        ("lenet --optim.gradient_clip=-1", ["--optim.gradient_clip -1", "0 or more"]),
        ("lenet --train.tta_share 0", ["--train.tta_share 0", "above 0"]),
        (
            "cifar10_96 --train.select_group 300",
            ["--train.select 0.5", "multiple", "--train.select_group (300)"],
        ),
        (
            "resnet9 --model.sync_batch_norm true",
            ["--model.sync_batch_norm", "--runtime.compile false"],
        ),
        ("quickstart --optim.momentum 0", ["--optim.nesterov", "--optim.momentum"]),
        ("vit --optim.momentum 1", ["--optim.momentum 1", "adamw"]),
        (
            "cifar10_96 --model.target a.py:net",
            ["--train.select 0.5", "narrower", "--model.target"],
        ),
        (
            "cifar10_96 --train.select 0.0005",
            ["--train.select 0.0005", "keeps 1 of 256", "--model.batch_norm_group 128"],
        ),
        (
            "resnet9 --model.sync_batch_norm true --runtime.compile false --train.accumulate 2",
            ["--train.accumulate 2", "--model.sync_batch_norm true"],
        ),
        ("lenet --model.widths 6,-16", ["--model.widths -16", "1 or more"]),
        ("lenet --optim.bias_learning_rate=-1", ["--optim.bias_learning_rate -1", "0 or more"]),
        ("cnn2 --model.target a:net --model.hidden 8", ["--model.hidden 8", "a:net has its own"]),
        ("quickstart --model.target a:net", ["a:net has its own", "add --model.widths none"]),
        ("quickstart --model.name resnet18 --model.cell gru", ["--model.cell gru", "rnn"]),
        (
            "quickstart --model.name cnn2 --model.widths none",
            ["--data.resolutions 24,28", "--data.resolutions none --data.resolution_until none"],
        ),
        (
            "quickstart --train.local_steps 8 --runtime.gradient_compression bf16",
            ["--runtime.gradient_compression bf16", "--train.local_steps 8"],
        ),
        ("cifar10_96 --train.local_steps 4", ["--train.local_steps 4", "--train.select 0.5"]),
    ],
)
def test_a_wrong_command_line(arguments: str, expected: list[str], tmp_path: Path) -> None:
    assert_refused(dist_train("train", *arguments.split(), cwd=tmp_path), *expected)
    assert not list(tmp_path.iterdir())


def test_padding_larger_than_the_image(tmp_path: Path) -> None:
    done = dist_train("train", "cnn2", *SMALL, "--data.crop_padding", "32", cwd=tmp_path)
    assert_refused(done, "--data.crop_padding 32", "--data.crop_mode zero")


def test_missing_data(tmp_path: Path) -> None:
    done = dist_train("train", *CIFAR, "--data.root", "nowhere", cwd=tmp_path)
    assert_refused(done, "--data.root nowhere", "data_batch_1", "--data.dataset shapes")


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_pickle(damage: str, tmp_path: Path) -> None:
    source = real_data("cifar10") / "cifar10"
    shutil.copytree(source, tmp_path / "data" / "cifar10")
    path = tmp_path / "data" / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    path.chmod(0o644)
    with path.open("r+b") as file:
        if damage == "truncated":
            file.truncate(1_000_000)
        else:
            file.seek(1_000_000)
            file.write(b"\0\1\2\3")
    done = dist_train("train", *CIFAR, "--data.root", "data", cwd=tmp_path)
    assert_refused(done, "data_batch_3", "md5")


def test_a_truncated_beton_is_made_again(tmp_path: Path) -> None:
    flags = ["cnn2", *SMALL, "--train.max_steps", "1"]
    assert dist_train("prepare", *flags, cwd=tmp_path).returncode == 0
    (path,) = (tmp_path / "data" / "prepared").glob("*/train.beton")
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(whole) // 2)
    done = dist_train("train", *flags, "--name", "run", cwd=tmp_path)
    assert done.returncode == 0
    assert "train.beton has the wrong size; preparing it again" in done.stderr
    assert path.read_bytes() == whole


@pytest.mark.parametrize("flag", ["--output", "--data.cache"])
def test_an_unwritable_folder(flag: str, tmp_path: Path, cache: Path) -> None:
    # Below a file nobody can make a folder, not even root.
    (tmp_path / "file").touch()
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), flag, "file/folder"]
    assert_refused(dist_train("train", *flags, cwd=tmp_path), "file/folder")


def test_a_read_only_data_folder_is_enough(tmp_path: Path) -> None:
    root = real_data("mnist")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    flags = ["--data.dataset", "mnist", "--data.root", str(root), "--data.cache", "prepared"]
    assert dist_train("prepare", "lenet", *flags, cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_port_that_is_taken(tmp_path: Path, cache: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = dist_train(
            *("train", "cnn2", *SMALL, "--data.cache", str(cache)),
            cwd=tmp_path,
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr.splitlines()[-1]
    assert "--main_process_port" in done.stderr.splitlines()[-1]


def test_a_missing_gpu(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--runtime.device", "cuda"]
    done = dist_train("train", *flags, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert_refused(done, "--runtime.device cuda", "--runtime.device cpu")


def test_missing_ffcv(tmp_path: Path, cache: Path) -> None:
    # A package of that name that cannot be imported stands in front of the real one.
    (tmp_path / "site" / "ffcv").mkdir(parents=True)
    broken = tmp_path / "site" / "ffcv" / "__init__.py"
    broken.write_text("raise ImportError('libopencv_core.so: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--train.max_steps", "1"]
    stream, auto = ["--data.loader", "stream"], ["--data.loader", "auto"]
    done = dist_train("train", *flags, *stream, cwd=tmp_path, PYTHONPATH=path)
    assert_refused(done, "stream needs FFCV", "launch/setup.sh", "--data.loader resident")
    shutil.rmtree(tmp_path / "site")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.modules['ffcv'] = None")
    done = dist_train("train", *flags, *auto, "--name", "run", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0
    assert "resident loader" in done.stdout


def test_a_run_that_is_no_run(tmp_path: Path) -> None:
    assert_refused(dist_train("eval", "nothing", cwd=tmp_path), "nothing", "config.json")


def test_too_few_samples_for_a_batch(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--data.batch_size", "1000"]
    done = dist_train("train", *flags, cwd=tmp_path)
    assert_refused(done, "--data.batch_size 1000", "500 training images")


@pytest.mark.parametrize(
    ("group", "remedy"),
    [
        (["--model.batch_norm_group", "64"], "or a smaller --model.batch_norm_group"),
        (["--train.select", "0.5", "--train.select_group", "64"], "smaller --train.select_group"),
    ],
)
def test_more_processes_than_groups(
    group: list[str], remedy: str, tmp_path: Path, cache: Path
) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--data.drop_last", "true", *group]
    done = torchrun(2, "train", *flags, cwd=tmp_path)
    assert done.returncode != 0
    expected = "--data.batch_size 64: expected at least 64 for each of 2 processes"
    said = [line for line in done.stderr.splitlines() if expected in line]
    assert said, done.stderr
    assert remedy in said[0]
