"""Several ranks do what one does: the same curve, the same images, each counted once."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import (
    REPOSITORY,
    SMALL,
    assert_same_weights,
    dist_train,
    free_port,
    metrics,
    run,
    summary,
    torchrun,
)

# Float sums come in another order on another world size. BatchNorm and max-pooling amplify that
# from step to step, so its rate is small: what is to be seen is that each step computes the same.
SLOW_MUON = [
    *("--optim.learning_rate", "0.01", "--optim.bias_learning_rate", "0.01"),
    *("--optim.muon_learning_rate", "0.0001"),
    *("--data.resolutions", "24", "--data.resolution_until", "0.5"),
]
WHITENED = [*SLOW_MUON, "--model.widths", "8,8,8"]
CURVES = {
    "without_norm": ["cnn3", "--optim.learning_rate", "0.02"],
    "grouped_norm": [
        *("resnet18", "--model.widths", "4,8,8,8", "--model.batch_norm_group", "16"),
        *("--optim.learning_rate", "0.0001"),
    ],
    "resnet18_95": [
        *("resnet18_95", *SLOW_MUON, "--model.widths", "4,8,8,8"),
        *("--model.batch_norm_group", "16", "--optim.learning_rate", "0.0001"),
        *("--optim.bias_learning_rate", "0.0001"),
    ],
    "cutmix_and_dropout": [
        *("cnn2", "--data.cutmix", "1.0", "--model.dropout", "0.5"),
        *("--optim.learning_rate", "0.02"),
    ],
    "cifar10_94": ["cifar10_94", *WHITENED, "--model.batch_norm_group", "16"],
    "muon_on_the_hardest": [
        *("cifar10_96", *WHITENED, "--data.drop_last", "true", "--model.batch_norm_group", "8"),
        *("--train.select_group", "16", "--train.proxy_widths", "4,8,8"),
    ],
}


@pytest.mark.parametrize("curve", CURVES)
def test_the_curve_does_not_depend_on_the_world_size(
    curve: str, tmp_path: Path, cache: Path
) -> None:
    recipe, *own = CURVES[curve]
    flags = [
        *(recipe, *SMALL, "--data.cache", str(cache), "--optim.warmup", "0"),
        *("--train.max_steps", "10", "--train.log_every", "1", "--data.drop_last", "false", *own),
    ]
    four = dict.fromkeys(("cifar10_94", "resnet18_95", "muon_on_the_hardest"), (1, 2, 4))
    worlds = {"grouped_norm": (1, 2, 3), **four}.get(curve, (1, 2))
    runs = [tmp_path / "runs" / f"world{world}" for world in worlds]
    for world, run_folder in zip(worlds, runs, strict=True):
        done = torchrun(world, "train", *flags, "--name", run_folder.name, cwd=tmp_path)
        assert done.returncode == 0
        assert summary(run_folder)["world_size"] == world
    one = runs[0]
    for other in runs[1:]:
        for a, b in zip(metrics(one), metrics(other), strict=True):
            assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5), other
            assert b["train/accuracy"] == pytest.approx(a["train/accuracy"], abs=0.02), other
        # Running statistics are part of what must not differ.
        assert summary(other)["test_loss"] == pytest.approx(summary(one)["test_loss"], abs=1e-4)
        again = summary(one)["test_accuracy_tta"]
        if again is not None:  # of 100 images
            assert summary(other)["test_accuracy_tta"] == pytest.approx(again, abs=0.011)


def test_ranks_that_meet_after_each_step_draw_the_curve_of_shared_gradients(
    tmp_path: Path, cache: Path
) -> None:
    # The mean of the weights is as good as the mean of the gradients while ranks meet in each
    # step, which they do for an evaluation: here after each epoch, of one step.
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--data.batch_size", "500"),
        *("--train.epochs", "5", "--train.log_every", "1", "--optim.learning_rate", "0.02"),
    ]
    for name, more in {"shared": [], "local": ["--train.local_steps", "100"]}.items():
        done = torchrun(2, "train", *flags, "--name", name, *more, cwd=tmp_path)
        assert done.returncode == 0
    shared, local = (metrics(tmp_path / "runs" / name) for name in ("shared", "local"))
    for a, b in zip(shared, local, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5)
        assert b["test/loss"] == pytest.approx(a["test/loss"], rel=1e-5)
    # Without meetings they see their own samples only.
    flags += ["--train.eval_every", "0", "--optim.learning_rate", "0.3"]
    losses_of = {}
    for steps in ("1", "100"):
        more = ["--name", f"each-{steps}", "--train.local_steps", steps]
        assert torchrun(2, "train", *flags, *more, cwd=tmp_path).returncode == 0
        losses_of[steps] = metrics(tmp_path / "runs" / f"each-{steps}")[-1]["train/loss"]
    assert losses_of["100"] != pytest.approx(losses_of["1"], rel=1e-3)


def test_compressed_gradients_are_the_same_but_for_rounding(tmp_path: Path, cache: Path) -> None:
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--train.max_steps", "8"),
        *("--train.log_every", "1", "--optim.learning_rate", "0.02", "--optim.warmup", "0"),
    ]
    curves = {}
    for kind in ("none", "bf16"):
        more = ["--name", f"to-{kind}", "--runtime.gradient_compression", kind]
        assert torchrun(2, "train", *flags, *more, cwd=tmp_path).returncode == 0
        curves[kind] = [line["train/loss"] for line in metrics(tmp_path / "runs" / f"to-{kind}")]
    exact, rounded = curves["none"], curves["bf16"]
    assert rounded[0] == exact[0]
    assert rounded[1:] != exact[1:]
    assert rounded == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("average", ["ema", "average_tail"])
def test_ranks_on_their_own_are_judged_by_one_average(
    average: str, tmp_path: Path, cache: Path
) -> None:
    flags = [
        *("cnn2", *SMALL, "--data.cache", str(cache), "--train.epochs", "2", "--name", "own"),
        *("--train.local_steps", "100", f"--train.{average}", "0.5"),
    ]
    assert torchrun(2, "train", *flags, cwd=tmp_path).returncode == 0
    done = dist_train("eval", "runs/own", "--json", cwd=tmp_path)
    assert done.returncode == 0
    loss = json.loads(done.stdout.splitlines()[-1])["test_loss"]
    assert loss == pytest.approx(summary(tmp_path / "runs" / "own")["test_loss"], rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch_runs_the_main_job(processes: int, tmp_path: Path, cache: Path) -> None:
    config_file = "one_process.yaml" if processes == 1 else "cpu.yaml"
    done = run(
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(REPOSITORY / "launch" / config_file),
        ),
        *("--num_processes", str(processes), str(REPOSITORY / "dist_train" / "main.py")),
        *("cnn2", *SMALL, "--data.cache", str(cache), "--name", "run", "--train.max_steps", "4"),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    result = summary(tmp_path / "runs" / "run")
    assert result["world_size"] == processes
    assert result["steps"] == 4
    assert done.stdout.count("runs/run: cnn2 on shapes") == 1
    evaluated = dist_train("eval", "runs/run", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["test_accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_test_image_is_counted_once(processes: int, tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--data.cache", str(cache), "--name", "run", "--train.max_steps", "2"]
    assert dist_train("train", *flags, cwd=tmp_path).returncode == 0
    done = torchrun(processes, "eval", "runs/run", "--json", cwd=tmp_path)
    assert done.returncode == 0
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["world_size"] == processes
    assert result["samples"] == 100
    expected = summary(tmp_path / "runs" / "run")
    assert result["test_accuracy"] == expected["test_accuracy"]
    assert result["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-6)


def test_three_ranks_go_on_to_the_same_bits(tmp_path: Path, cache: Path) -> None:
    """Two numbers have one sum, of three it depends on the order; DDP changes its own once."""
    flags = ["cnn3", *SMALL, "--data.cache", str(cache), "--train.max_steps", "6"]
    whole, parts = tmp_path / "runs" / "whole", tmp_path / "runs" / "parts"
    assert torchrun(3, "train", *flags, "--name", "whole", cwd=tmp_path).returncode == 0
    parts.mkdir()
    (parts / "STOP").touch()
    torchrun(3, "train", *flags, "--name", "parts", cwd=tmp_path)
    (parts / "STOP").unlink()
    assert torchrun(3, "train", *flags, "--name", "parts", cwd=tmp_path).returncode == 0
    assert summary(parts)["resumed_from_step"] == [2]
    assert_same_weights(whole, parts)


@pytest.mark.parametrize(
    ("flag", "values", "error"),
    [
        ("data.train_samples", ("400", "500"), "different data: checksums "),
        ("runtime.precision", ("fp32", "bf16"), "fp32, eager on rank 0, bf16, eager on rank 1"),
        ("data.cache", ("cache", "file/cache"), "cannot write"),
    ],
)
def test_what_one_rank_finds_ends_all_in_a_line(
    flag: str, values: tuple[str, str], error: str, tmp_path: Path
) -> None:
    """Nodes may differ: no rank waits for one that gave up, or trains on something else."""
    (tmp_path / "file").touch()
    done = run(
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_port", str(free_port()), "--no-python", "bash", "-c"),
        f'of_rank=({" ".join(values)}); exec "$@" --{flag} "${{of_rank[$RANK]}}"',
        *("bash", sys.executable, "-m", "dist_train", "train", "cnn2", *SMALL),
        *("--name", "run", "--train.max_steps", "2", "--runtime.timeout_seconds", "60"),
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert done.stderr.count("dist-train: error: ") >= 1
    assert error in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert "dist_train/train.py" not in done.stderr  # a traceback
    assert not (tmp_path / "runs" / "run" / "config.json").exists()
