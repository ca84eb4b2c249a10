"""`dist-train bench`: one JSON object with figures that can be; never whether they are good."""

import json
import math
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.bench import TARGETS
from dist_train.bench.intervals import p_value, ratio, spread
from dist_train.bench.timing import Measurements, alternate
from dist_train.bench.turns import rivals_clock
from dist_train.bench.work import training_flops
from dist_train.build import image_sizes
from dist_train.config import Config, DataConfig, ModelConfig, RuntimeConfig, TrainConfig
from dist_train.data.prepare import prepare_dataset
from dist_train.data.streaming import is_available
from dist_train.runtime import start_runtime
from tests.conftest import SMALL, dist_train, real_data, summary

RATIOS = {
    "loader": {
        "stream_vs_ffcv_raw",
        "stream_vs_torchvision",
        "uint8_vs_torchvision_uint8",
        "stream_vs_torchvision_eager",
        "augmented_vs_ffcv_augmented",
        "augmented_vs_ffcv_augmented_eager",
        "first_batch_seconds",
    },
    "overhead": {"loop_vs_bare_resnet9", "loop_vs_bare_lenet"},
    "scaling": {
        "ranks_2_vs_1_resnet9",
        "ranks_4_vs_1_resnet9",
        "all_reduce_share_2_ranks",
        "all_reduce_share_4_ranks",
    },
    "tracking": {"trackers_vs_json_lines"},
}

needs_ffcv = pytest.mark.skipif(not is_available(), reason="FFCV is not installed")


def bench(subject: str, cache: Path) -> dict[str, Any]:
    """The report of the shortest run there is."""
    done = dist_train(
        *("bench", subject, "--json", "--seconds", "0.01", "--repeats", "1"),
        *("--data.root", str(real_data("cifar10")), "--data.cache", str(cache)),
        cwd=cache,
    )
    assert done.returncode == 0
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def assert_sound(report: dict[str, Any], subject: str) -> None:
    """All keys are there, with figures that can be, however the machine's speed changed."""
    assert set(report) == {"ratios", "measured", "hardware", "versions", "git_commit"}
    assert set(report["ratios"]) == RATIOS[subject]
    for name, figure in report["measured"].items():
        assert name.startswith(("images_per_second_", "seconds_"))
        assert figure["what"]
        assert figure["min"] <= figure["median"] <= figure["max"]
    figures = [value for figure in report["measured"].values() for value in figure["repeats"]]
    for value in (*report["ratios"].values(), *figures):
        assert isinstance(value, float)
        assert math.isfinite(value)
    assert all(value > 0 for value in figures)
    for name, value in report["ratios"].items():
        # A share is one less a ratio of two speeds: on a machine that got faster, less than -1.
        assert value < 1 if "share" in name else value > 0
    machine = {"cpu", "cpu_mhz", "cores", "torch_threads", "gpu", "gpu_clocks", "load_before"}
    assert machine == set(report["hardware"])
    assert report["versions"]["torch"]


@needs_ffcv
def test_we_and_ffcv_deliver_batches(cache: Path) -> None:
    from dist_train.bench.loader import augmenters, decoders

    data = DataConfig(dataset="shapes", train_samples=1100, cache=str(cache))
    settings = RuntimeConfig(device="cpu", threads=1)
    with start_runtime(settings) as runtime, ExitStack() as resources:
        prepared = prepare_dataset(data)
        contestants = decoders(data, prepared, runtime, resources)
        contestants |= augmenters(data, prepared, runtime, resources)
        for name in ("stream", "ffcv_raw", "stream_crop_flip_eager", "stream_augmented_eager"):
            what, rate = contestants[name]
            assert what
            assert 0 < rate(0.01) < math.inf


@pytest.mark.slow  # FFCV compiles its augmentation for ten seconds
@needs_ffcv
def test_loader(cache: Path) -> None:
    report = bench("loader", cache)
    assert_sound(report, "loader")
    assert {"images_per_second_stream", "images_per_second_ffcv_raw"} <= set(report["measured"])


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["overhead", "scaling", "tracking"])
def test_training(subject: str, cache: Path) -> None:
    assert_sound(bench(subject, cache), subject)


def test_targets_are_for_what_is_measured() -> None:
    assert set(TARGETS) <= set.union(*RATIOS.values())


def test_rivals_take_turns_and_are_compared_within_a_round() -> None:
    turns = []

    def contestant(name: str, values: list[float]) -> float:
        turns.append(name)
        return values[turns.count(name) - 1]

    # The machine gets ten times as fast; the ratio does not change.
    results = alternate(
        {
            "a": lambda: contestant("a", [2.0, 20.0, 30.0]),
            "b": lambda: contestant("b", [1.0, 10.0, 10.0]),
        },
        rounds=3,
    )
    assert turns == ["a", "b"] * 3
    found = Measurements()
    for name, values in results.items():
        found.add(name, "a test", values)
    assert found.paired("a", over="b") == 2.0
    assert found.measured["a"]["median"] == 20.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lader"], "lader"),
        (["loader", "--seconds", "0"], "--seconds 0"),
        (["loader", "--repeats", "0"], "--repeats 0"),
        (["loader", "--data.batch_size", "4"], "--data.batch_size"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = dist_train("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"seconds": 2}', (None, 2.0)),
        ('{"seconds": "2.5", "accuracy": "0.94"}', (0.94, 2.5)),
        ('{"seconds": 0, "accuracy": 0.94}', None),
        ('{"seconds": Infinity}', None),
        ('{"seconds": NaN}', None),
        ('{"seconds": 2, "accuracy": "much"}', None),
        ('{"accuracy": 0.94}', None),
        ("2", None),
    ],
)
def test_what_a_rival_says_of_itself(
    line: str, expected: tuple[float | None, float] | None
) -> None:
    assert rivals_clock(line) == expected


def test_speed_over_seeds_and_against_a_rival(cache: Path, tmp_path: Path) -> None:
    rival = tmp_path / "rival.py"
    # It notes how many of our seeds are done when its turn comes.
    count = (
        "import glob; open('turns', 'a').write(str(len(glob.glob('runs/*/seed*/summary.json'))))"
    )
    rival.write_text(f'{count}; print(\'{{"seconds": 1e-3, "accuracy": 0.25}}\')')
    command = [
        *("bench", "speed", "cnn2", *SMALL, "--data.cache", str(cache), "--train.max_steps", "2"),
        *("--runs", "3", "--target", "0.01", "--rival", f"{sys.executable} {rival}"),
    ]
    done = dist_train(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    folder = tmp_path / "runs" / "speed-cnn2"
    assert json.loads((folder / "speed.json").read_text()) == report
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 6
    assert report["n"] == report["rival_statistics"]["n"] == 3
    assert report["rival_statistics"]["accuracy"]["mean"] == 0.25
    assert report["rival_statistics"]["seconds"]["mean"] == pytest.approx(1e-3)
    seeds = [summary(folder / f"seed{seed}") for seed in range(3)]
    for run, of_run in zip(report["runs"], seeds, strict=True):
        assert run["accuracy"] == of_run["test_accuracy"]
        parts = of_run["seconds"]
        clock = parts["initialise"] + parts["train"] + parts["evaluate"]
        assert run["seconds"] == pytest.approx(clock)
    seconds = [run["seconds"] for run in report["runs"]]
    assert report["seconds"]["mean"] == pytest.approx(sum(seconds) / 3)
    low, high = report["seconds"]["interval"]
    assert low < report["seconds"]["mean"] < high
    assert report["seconds_over_rivals"]["mean"] == pytest.approx(
        math.prod(value / 1e-3 for value in seconds) ** (1 / 3)
    )
    accuracies = [run["accuracy"] for run in report["runs"]]
    assert report["accuracy"] == spread(accuracies)
    assert report["p_value"] == p_value(accuracies, 0.01)
    assert report["p_value"] < 0.5 < 1 - report["p_value"]
    assert report["in_turn"]
    assert {"cpu", "cpu_mhz", "cores", "gpu_clocks"} <= set(report["hardware"])
    assert report["versions"]["torch"]
    assert report["git_commit"]
    work = report["work"]
    assert work["mfu"] == pytest.approx(work["flops_per_second"] / work["matmul_flops_per_second"])

    # Finished runs are not run again; people get a table.
    again = dist_train(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "turns").read_text() == "012"
    assert "n = 3" in again.stdout
    assert [summary(folder / f"seed{seed}") for seed in range(3)] == seeds

    # Turns that a rival had at another time are told from those in one sitting.
    later = dist_train(*command[:-1], f"{sys.executable} {rival} later", "--json", cwd=tmp_path)
    assert not json.loads(later.stdout)["in_turn"]

    # A rival that stays does a run for each line, and prints what it likes between.
    stays = tmp_path / "stays.py"
    stays.write_text(
        "import sys\n"
        "for run, _ in enumerate(sys.stdin, 1):\n"
        "    print('working'); print(f'{{\"seconds\": {run}}}', flush=True)\n"
    )
    kept = dist_train(
        *command[:-1], f"{sys.executable} {stays}", "--keep_rival", "--json", cwd=tmp_path
    )
    assert [run["seconds"] for run in json.loads(kept.stdout)["rival_runs"]] == [1, 2, 3]
    for ends in ("true", "absent", "sh -c 'unclosed"):
        silent = dist_train(*command[:-1], ends, "--keep_rival", cwd=tmp_path)
        assert silent.returncode == 2
        assert silent.stderr.splitlines()[-1].startswith(f"dist-train: error: --rival {ends}: ")

    empty = dist_train(*command[:-1], " ", cwd=tmp_path)
    assert empty.returncode == 2
    assert empty.stderr.splitlines()[-1].startswith("dist-train: error: --rival ' ': expected")
    none = dist_train(*command[:-2], "--keep_rival", cwd=tmp_path)
    assert none.returncode == 2
    assert none.stderr.splitlines()[-1].startswith("dist-train: error: --keep_rival: ")

    failing = dist_train(*command[:-1], f"{sys.executable} absent.py", cwd=tmp_path)
    assert failing.returncode == 2
    assert failing.stderr.splitlines()[-1].startswith("dist-train: error: --rival")


def test_intervals_are_students() -> None:
    found = spread([1.0, 2.0, 3.0])
    # t(0.975, 2 degrees of freedom) = 4.3027, over the square root of 3.
    assert (found["mean"], found["std"]) == (2.0, 1.0)
    assert found["interval"] == pytest.approx([2 - 2.4842, 2 + 2.4842], abs=1e-4)
    assert spread([1.0]) == {"mean": 1.0, "std": None, "interval": None}
    # t = sqrt(3): half of what lies beyond it on both sides, 0.2254.
    assert p_value([1.0, 2.0, 3.0], target=1.0) == pytest.approx(0.1127, abs=1e-4)
    assert p_value([1.0, 2.0, 3.0], target=3.0) == pytest.approx(1 - 0.1127, abs=1e-4)
    assert p_value([1.0, 2.0], target=None) is None
    # Of pairs, not of means: 2 and 2 are no spread at all.
    assert ratio([2.0, 20.0], [1.0, 10.0])["mean"] == pytest.approx(2)
    low, high = ratio([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])["interval"]
    assert low * high == pytest.approx(4)  # its middle, as logarithms go, is the mean, 2
    assert high == pytest.approx(2 * math.exp(4.3027 * math.log(2) / math.sqrt(3)), rel=1e-4)


def test_operations_of_training(cache: Path) -> None:
    """A proxy looks at all samples and learns from every other batch; half of them are kept."""
    data = DataConfig(
        dataset="shapes", train_samples=64, cache=str(cache), batch_size=16, drop_last=True
    )
    network = ModelConfig(name="whitened", widths=(8, 16, 16))
    narrow = replace(network, widths=(4, 8, 8))

    def operations(model: ModelConfig, **train: Any) -> int:
        return training_flops(Config(data=data, model=model, train=TrainConfig(**train)), steps=4)

    plain, of_proxy = operations(network), operations(narrow)
    selected = operations(
        network, select=0.5, select_group=8, proxy_widths=(4, 8, 8), proxy_every=2
    )
    # Of four steps two are forward and backward, three times forward, and two are forward only.
    assert selected == plain // 2 + of_proxy * (3 + 3 + 1 + 1) // (4 * 3)
    smaller = replace(data, resolutions=(16, 24), resolution_until=(0.24, 0.5))
    assert image_sizes(smaller, 32, 4) == [16, 24, 32, 32]
    assert image_sizes(smaller, 32, 1) == [32]
    mixed = training_flops(Config(data=smaller, model=network), steps=4)
    assert plain // 2 < mixed < plain * 0.9


def test_speed_of_runs_at_the_same_time(cache: Path, tmp_path: Path) -> None:
    command = ["bench", "speed", "cnn2", *SMALL, "--data.cache", str(cache), "--runs", "2"]
    limit = ["--train.max_steps", "2", "--parallel", "2"]
    done = dist_train(*command, *limit, "--json", cwd=tmp_path)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert [run["who"] for run in report["runs"]] == ["seed0", "seed1"]
    assert report["rival_statistics"] is None

    refused = dist_train(*command, *limit, "--rival", "true", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--parallel 2 and --rival" in refused.stderr.splitlines()[-1]
