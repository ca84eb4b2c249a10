"""Pages, pictures, lists and comparisons from run directories, real and damaged ones."""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dist_train.data import beton
from dist_train.data.order import split
from dist_train.errors import UserError
from dist_train.report.answers import answers, judged_images
from dist_train.report.groups import Group, curve, grouped
from dist_train.report.page import write_report
from dist_train.report.plots import draw_curves, plot_runs
from dist_train.report.reading import Run, read_run
from tests.conftest import SMALL, dist_train, metrics, summary


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which runs/a and runs/b have been trained, under two seeds."""
    folder = tmp_path_factory.mktemp("report")
    for name, more in (("a", ["--train.profile", "3:6"]), ("b", ["--seed", "1"])):
        done = dist_train(
            *("train", "cnn2", "--name", name, "--train.epochs", "2", "--train.log_every", "2"),
            *("--data.cache", str(folder / "prepared"), *SMALL, *more),
            cwd=folder,
        )
        assert done.returncode == 0
        (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    return folder


def make_run(folder: Path, steps: int) -> Path:
    folder.mkdir()
    lines = [
        {"step": s, "epoch": s / 10, "train/accuracy": s / 100, "train/loss": 1 - s / 100}
        | ({"test/accuracy": s / 120, "test/loss": 1.1 - s / 100} if s % 10 == 0 else {})
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def page_of(folders: Sequence[Path], path: Path) -> str:
    """The page without its drawings' shapes: texts remain."""
    write_report(folders, path)
    return path.read_text()


def test_runs_are_drawn_into_one_picture(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "first", 50), make_run(tmp_path / "half", 7)]
    plot_runs(runs, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for expected in ("first, test", "first, train", "half, train", "epoch"):
        assert f"<!-- {expected} -->" in text
    assert "half, test" not in text
    plot_runs(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_metrics_and_a_wrong_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no metrics yet"):
        plot_runs([tmp_path / "nothing"], tmp_path / "plot.png")
    with pytest.raises(UserError, match=r"plot\.xyz.*--out"):
        plot_runs([make_run(tmp_path / "run", 10)], tmp_path / "plot.xyz")


def test_a_page_shows_everything_and_needs_nothing(real: Path) -> None:
    done = dist_train("report", "runs/a", "runs/b", "--out", "out/page.html", cwd=real)
    assert (done.returncode, done.stdout) == (0, "out/page.html\n")
    page = (real / "out" / "page.html").read_text()
    titles = ["Accuracy", "Loss", "Speed and learning rate", "Where the time went", "Results"]
    titles += ["What was taken for what: cnn2 (2 runs)", "Worst mistakes: cnn2 (2 runs)"]
    for title in [*titles, "Settings that differ"]:
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 6
    assert "What is missing" not in page
    for text in ("seconds of training", "waiting for data", "cnn2 (2 runs), train"):
        assert f">{text}</text>" in page
    # Nothing is fetched: all addresses are names of XML, parts of the page, or pictures in it.
    addresses = re.findall(r"""(?:src|href|url|@import)[=( ]*["']?([^"')> ]+)""", page)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert set(re.findall(r"https?://[^\"'< ]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    # Both themes name every colour that the drawings ask for, and no drawing has its own ink.
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in page.split("@media")[:2])
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert used <= light
    assert used <= dark
    assert "#1d2430" not in page.split("</style>")[1]

    markdown = (real / "out" / "page.md").read_text()
    for name in ("a", "b"):
        accuracy = summary(real / "runs" / name)["test_accuracy"]
        assert re.search(rf"\| {name} \| finished \| cnn2 \|.*\| {accuracy:.2%} \|", markdown)
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(pictures) == 6
    for picture in pictures:
        assert (real / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_the_seed_only_are_averaged(real: Path) -> None:
    runs = [read_run(real / "runs" / name) for name in "ab"]
    (group,) = grouped(runs)
    found = curve(group, "test/accuracy", "step")
    assert found is not None
    values = np.array([[v for _, v in run.series("test/accuracy")] for run in runs])
    np.testing.assert_allclose(found.mean, values.mean(0))
    np.testing.assert_allclose([found.low, found.high], [values.min(0), values.max(0)])
    # Seconds of training are those of the clock, which goes on behind the last line.
    last = metrics(real / "runs" / "b")[-1]["perf/train_seconds"]
    assert runs[1].training_seconds[-1] == last
    assert 0 < last <= summary(real / "runs" / "b")["seconds"]["train"] + 0.001

    def sizes_with(manifest: Mapping[str, Any], **changed: object) -> list[int]:
        config = {**runs[0].config, **changed}
        third = Run(runs[0].folder, config, [], {"x": 1}, manifest)
        return [len(group.runs) for group in grouped([*runs, third])]

    manifest = runs[0].manifest
    assert sizes_with(manifest, **{"optim.momentum": 0.5}) == [2, 1]
    # Threads make no other experiment; a precision does, and so do other images.
    assert sizes_with(manifest, **{"runtime.threads": "x"}) == [3]
    assert sizes_with(manifest, **{"runtime.precision": "x"}) == [2, 1]
    assert sizes_with({**manifest, "train": {**manifest["train"], "sha256": "x"}}) == [2, 1]


def test_the_confusion_matrix_and_the_mistakes_are_the_final_answers(real: Path) -> None:
    run = read_run(real / "runs" / "a")
    found = answers(Group("a", [run]))
    assert found is not None
    right = found.confusion.trace() / found.confusion.sum()
    assert right == pytest.approx(summary(real / "runs" / "a")["test_accuracy"])
    assert found.confusion.sum() == 100
    worst = found.worst(5)
    said = found.probabilities[worst].argmax(1)
    assert (said != found.labels[worst]).all()
    assert (np.diff(found.probabilities[worst].max(1)) <= 0).all()
    (data,) = (real / "prepared").iterdir()
    images = beton.read_images(data / "test.beton")
    np.testing.assert_array_equal(judged_images(run, worst), images[worst])
    held_out = Run(run.folder, {**run.config, "data.validation": 50}, [], {}, run.manifest)
    ids = split(run.manifest["train"]["samples"], 50)[1]
    images = beton.read_images(data / "train.beton")
    np.testing.assert_array_equal(judged_images(held_out, worst % 50), images[ids[worst % 50]])


def test_a_run_without_a_mistake_makes_a_page(real: Path, tmp_path: Path) -> None:
    shutil.copytree(real / "runs" / "a", tmp_path / "a")
    path = tmp_path / "a" / "predictions.safetensors"
    labels = load_file(path)["labels"]
    save_file({"logits": 9 * torch.eye(10)[labels], "labels": labels}, path)
    page = page_of([tmp_path / "a"], tmp_path / "page.html")
    assert "Not one mistake." in page
    assert "Worst mistakes" not in page


def test_runs_in_any_state_make_a_page_that_says_what_is_missing(
    real: Path, tmp_path: Path
) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(real / "runs" / "a", tmp_path / name))

    begun = copied("begun")
    for path in begun.glob("*.safetensors"):
        path.unlink()
    (begun / "summary.json").unlink()
    (begun / "metrics.jsonl").unlink()
    half = copied("half")
    (half / "summary.json").unlink()
    lines = (half / "metrics.jsonl").read_text()
    (half / "metrics.jsonl").write_text(lines[: len(lines) // 2] + '{"step": 9')
    cut = copied("cut")
    for name in ("config.json", "manifest.json", "predictions.safetensors"):
        (cut / name).write_bytes((cut / name).read_bytes()[:99])
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": null}\n\x00\n')
    moved = copied("moved")
    config = (moved / "config.json").read_text()
    (moved / "config.json").write_text(config.replace(str(real / "prepared"), "gone"))
    folders = [begun, half, cut, moved]
    page = page_of(folders, tmp_path / "page.html")
    for note in (
        "begun: running before its first line of metrics",
        "half: running after step",
        "cut: config.json cannot be read",
        "cut: manifest.json cannot be read",
        "cut: metrics.jsonl: 3 damaged lines are left out",
        "cut: predictions.safetensors cannot be read",
        "moved: no pictures of the worst mistakes: gone/",
    ):
        assert note in page
    assert "<h2>What was taken for what: moved</h2>" in page
    page_of([begun], tmp_path / "begun.html")  # not one curve
    assert "<svg" not in (tmp_path / "begun.html").read_text()


def test_what_is_no_run_and_what_cannot_be_written_is_refused(real: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        write_report([tmp_path], tmp_path / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        write_report([real / "runs" / "a"], tmp_path / "file" / "page.html")


def test_a_name_that_begins_with_an_underscore_has_its_curves(tmp_path: Path) -> None:
    group = Group("_debug", [read_run(make_run(tmp_path / "_debug", steps=20))])
    figure = draw_curves([group], "accuracy", ["epoch"])
    assert figure is not None
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [
        "_debug, train",
        "_debug, test",
    ]


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>x & y", 10)
    assert "<b>x" not in page_of([run], tmp_path / "page.html")


def test_the_state_of_a_run(real: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(real / "runs" / "a", tmp_path / "run"))
    assert read_run(run).state == "finished"
    (run / "summary.json").unlink()
    assert read_run(run).state == "running"
    hours_ago = time.time() - 7200
    for path in [*run.rglob("*"), run]:
        os.utime(path, (hours_ago, hours_ago), follow_symlinks=False)
    assert read_run(run).state == "stopped"  # its last checkpoint is as new as its last line
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("")  # it was stopped before the first one
    os.utime(run / "metrics.jsonl", (hours_ago, hours_ago))
    assert read_run(run).state == "stopped"
    (run / "metrics.jsonl").write_text(lines)
    os.utime(run / "metrics.jsonl", (hours_ago, hours_ago))
    for path in (run / "checkpoints").glob("step-*"):
        path.unlink()
    os.utime(run / "checkpoints", (hours_ago, hours_ago))
    assert read_run(run).state == "failed"


def test_runs_lists_them(real: Path, tmp_path: Path) -> None:
    done = dist_train("runs", cwd=real)
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["run", "state", "recipe", "epochs", "accuracy", "images/s", "when"]
    accuracy = summary(real / "runs" / "a")["test_accuracy"]
    assert rows[0].split()[:5] == ["a", "finished", "cnn2", "2", f"{accuracy:.2%}"]
    records = json.loads(dist_train("runs", "runs", "--json", cwd=real).stdout)
    assert [record["run"] for record in records] == ["runs/a", "runs/b"]
    assert records[0]["test_accuracy"] == accuracy
    done = dist_train("runs", str(tmp_path), cwd=real)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_compare_tells_what_differs(real: Path) -> None:
    done = dist_train("compare", "runs/a", "runs/b", "--json", cwd=real)
    found = json.loads(done.stdout)
    assert found["settings"] == {"seed": [0, 1], "train.profile": ["3:6", None]}
    first, second = (summary(real / "runs" / name) for name in "ab")
    assert found["results"]["test_loss"] == [first["test_loss"], second["test_loss"]]
    assert "parameters" not in found["results"]
    text = dist_train("compare", "runs/a", "runs/b", cwd=real).stdout
    assert re.search(r"^seed +0 +1$", text, re.MULTILINE)
    assert re.search(r"^test_loss .* x$", text, re.MULTILINE)


def test_a_profile_is_a_trace_and_the_seconds_of_a_step(real: Path) -> None:
    run = real / "runs" / "a"
    trace = json.loads((run / "profile" / "steps-3-6.pt.trace.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    for part in ("forward", "backward", "optimizer"):
        assert names.count(part) == 3
    assert "aten::convolution" in names
    seconds = summary(run)["step_seconds"]
    parts = [seconds[name] for name in ("data", "forward", "backward", "optimizer")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= seconds["step"]
    assert seconds["steps"] == 3
    assert seconds["all_reduce"] == 0  # one process
    assert "convolution_backward" in (real / "a.log").read_text()
    assert summary(real / "runs" / "b")["step_seconds"] is None
    assert not (real / "runs" / "b" / "profile").exists()
    assert len(metrics(run)) == len(metrics(real / "runs" / "b"))
