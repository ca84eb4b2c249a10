"""W&B's real offline files, read back with its own reader; and servers that do not serve."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import torch
import wandb

from dist_train.config import TrackingConfig
from dist_train.tracking import STOPPED, Tracker, Trackers
from dist_train.tracking.answers import Subject
from dist_train.tracking.background import Background
from dist_train.tracking.wandb import WandB
from dist_train.tracking.wandb_setup import choose_mode
from tests.conftest import SMALL, dist_train, free_port, metrics, summary, until

CLASSES = ("cat", "dog", "newt")


def inspect(folder: Path, *flags: str) -> str:
    """What W&B's own reader finds in offline files, as JSON."""
    command = (sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(folder))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def records(run_folder: Path) -> list[dict[str, Any]]:
    """All records of a run's offline files, the oldest first."""
    folders = sorted(run_folder.glob("wandb/offline-run-*"))
    return [json.loads(line) for folder in folders for line in inspect(folder).splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of whoever runs the tests, and no service of the test before."""
    import os

    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    yield
    wandb.teardown()


def images(rows: Any) -> Any:
    """Three tiny pictures, told apart by their brightness."""
    return np.stack([np.full((4, 4, 3), 40 * row, np.uint8) for row in rows])


def tracker(
    folder: Path,
    *,
    mode: Literal["online", "offline"] = "offline",
    model: torch.nn.Module | None = None,
    **settings: Any,
) -> WandB:
    """A W&B run of ten steps."""
    folder.mkdir(exist_ok=True)
    return WandB(
        folder,
        TrackingConfig(**({"artifacts": "off"} | settings)),
        mode=mode,
        config={"data": {"dataset": "pets"}},
        total_steps=10,
        subject=Subject("test", CLASSES, images),
        model=model or torch.nn.Identity(),
        log_every=1,
    )


def line(step: int) -> dict[str, float]:
    return {"step": step, "epoch": step / 5, "time": 1.0, "test/accuracy": 0.1 * step}


def test_an_offline_run_holds_what_metrics_jsonl_holds(tmp_path: Path, cache: Path) -> None:
    flags = ["cnn2", *SMALL, "--tracking.wandb", "offline", "--data.cache", str(cache)]
    flags += ["--tracking.tensorboard", "true", "--tracking.tags", "a,b"]
    flags += ["--name", "run", "--train.epochs", "2", "--train.log_every", "2"]
    done = dist_train("train", *flags, cwd=tmp_path)
    assert done.returncode == 0
    folder = tmp_path / "runs" / "run"
    assert "wandb sync" in done.stdout
    found = records(folder)
    logged = [record["item"] for record in of_type(found, "history")]
    expected = metrics(folder)
    assert [line["train/step"] for line in logged] == [line["step"] for line in expected]
    assert [line["_step"] for line in logged] == [line["step"] for line in expected]
    for ours, theirs in zip(expected, logged, strict=True):
        for name in ours.keys() - {"step", "time"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name
    assert {"optim/lr", "optim/gradient_norm", "perf/step_seconds_p95"} <= logged[0].keys()
    assert {"perf/memory_bytes", "perf/images_per_second_per_device"} <= logged[0].keys()
    (offline,) = folder.glob("wandb/offline-run-*")
    state = json.loads(inspect(offline, "--summary"))
    assert state["run_id"] == (folder / "wandb-id").read_text()
    assert state["summary"]["test_accuracy"] == summary(folder)["test_accuracy"]
    assert state["summary"]["test/accuracy"]["max"] == max(
        line["test/accuracy"] for line in expected if "test/accuracy" in line
    )
    config = state["config"]
    assert config["data"]["dataset"] == "shapes"
    assert config["data_checksum"]
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    (run,) = of_type(found, "run")
    assert run["tags"] == ["a", "b"]
    # Of the last evaluation there are pictures, and the accuracy of each class.
    assert "test/accuracy/ring" in logged[-1]
    assert {"test/mistakes.path", "test/confusion_table.path"} <= logged[-1].keys()
    # The final weights stay where they are.
    (model,) = [a for a in of_type(found, "artifact") if a["type"] == "model"]
    (content,) = model["manifest"]["contents"]
    assert content["ref"] == (folder / "model.safetensors").resolve().as_uri()
    assert "latest" in model["aliases"]
    assert_same_in_tensorboard(folder, expected)


def assert_same_in_tensorboard(folder: Path, expected: list[dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "test/accuracy"):
        there = {event.step: event.value for event in events.Scalars(name)}
        assert there == pytest.approx({x["step"]: x[name] for x in expected if name in x})
    assert "test/mistakes" in events.Tags()["images"]


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = tracker(folder)
    for step in (2, 4, 6):
        first.log(line(step))
    first.warn(STOPPED, "somebody wanted it")
    first.finish({})
    second = tracker(folder)  # from the checkpoint of step 4
    for step in (6, 8):
        second.log(line(step))
    second.rewind(6)
    for step in (8, 10):
        second.log(line(step))
    second.finish({"steps": 10, "test_accuracy": 1.0, "best_test_accuracy": 1.0})
    found = records(folder)
    assert [x["item"]["train/step"] for x in of_type(found, "history")] == [2, 4, 6, 8, 10]
    assert len({run["run_id"] for run in of_type(found, "run")}) == 1
    assert [alert["title"] for alert in of_type(found, "alert")] == [STOPPED]
    assert [x["exit_code"] for x in of_type(found, "exit")] == [75, 0]
    assert of_type(found, "preempting")


def test_a_disk_that_is_full_for_a_moment_does_not_end_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = tracker(folder)
    run.log(line(1))
    (folder / "wandb-step").unlink()
    (folder / "wandb-step").mkdir()  # stands for it: nothing can be written there
    run.log(line(2))
    (folder / "wandb-step").rmdir()
    run.log(line(3))
    run.finish({"test_accuracy": 0.3})
    assert [r["item"]["train/step"] for r in of_type(records(folder), "history")] == [1, 2, 3]
    assert (folder / "wandb-step").read_text() == "3"


def test_lines_wait_while_a_tracker_starts() -> None:
    told = []

    class Slow(Tracker):
        def log(self, metrics: Mapping[str, float]) -> None:
            told.append(metrics["step"])

    def make() -> Tracker:
        time.sleep(1)
        return Slow()

    background = Background("slow", make)
    for step in range(5000):
        background.log({"step": step})
    background.finish({"test_accuracy": 1.0})
    assert told == list(range(5000))


def test_a_run_that_its_sweep_has_stopped_is_not_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")  # as `wandb agent` does
    run = tracker(tmp_path / "run")
    run.warn(STOPPED, "the agent wanted it")
    run.finish({})
    found = records(tmp_path / "run")
    assert [x["exit_code"] for x in of_type(found, "exit")] == [75]
    assert not of_type(found, "preempting")


def test_histograms_of_gradients_where_they_are_asked_for(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    run = tracker(tmp_path / "run", model=model, watch="gradients")
    model(torch.ones(1, 2)).sum().backward()
    run.log(line(1))
    run.finish({})
    items = [x["item"] for x in of_type(records(tmp_path / "run"), "history")]
    assert any(name.startswith("gradients/weight") for item in items for name in item)


def test_pictures_of_the_surest_mistakes(tmp_path: Path) -> None:
    run = tracker(tmp_path / "run")
    shares = np.array([[0.9, 0.1, 0], [0, 1, 0], [0.1, 0.2, 0.7]])
    run.evaluated(5, shares, np.array([0, 1, 1]))  # too early for pictures
    run.log(line(5))
    run.evaluated(10, shares, np.array([1, 1, 1]))
    run.log(line(10))
    run.finish({})
    early, last = [x["item"] for x in of_type(records(tmp_path / "run"), "history")]
    assert (early["test/accuracy/cat"], early["test/accuracy/dog"]) == (1.0, 0.5)
    assert "test/accuracy/newt" not in early  # there is no picture of one
    assert "test/mistakes.path" not in early
    (files,) = (tmp_path / "run").glob("wandb/offline-run-*/files")
    table = json.loads((files / last["test/mistakes.path"]).read_text())
    assert [row[1:3] for row in table["data"]] == [["dog", "cat"], ["dog", "newt"]]
    tables = of_type(records(tmp_path / "run"), "artifact")
    pictures = [x["path"] for table in tables for x in table["manifest"]["contents"]]
    assert sum(path.startswith("media/images/") for path in pictures) == 2
    confusion = json.loads((files / last["test/confusion_table.path"]).read_text())
    counts = {(actual, guess): count for actual, guess, count in confusion["data"] if count}
    assert counts == {("dog", "cat"): 1, ("dog", "dog"): 1, ("dog", "newt"): 1}


def test_checkpoints_become_artifacts(tmp_path: Path) -> None:
    run = tracker(tmp_path / "run", artifacts="files")
    path = tmp_path / "step-000000005.pt"
    threading.Timer(0.3, path.write_bytes, [b"weights"]).start()  # written while we wait for it
    run.checkpointed(5, path, best=True)
    run.finish({})
    (artifact,) = of_type(records(tmp_path / "run"), "artifact")
    assert artifact["type"] == "checkpoint"
    assert set(artifact["aliases"]) == {"latest", "best", "step-5"}


def test_flags_win_over_variables_and_variables_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROJECT", "RUN_GROUP", "NOTES", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{name}", f"variable-{name.lower()}")
    monkeypatch.setenv("WANDB_RUN_ID", "asked-for")
    settings = {"project": "flag-project", "notes": "flag-notes", "tags": ("x",)}
    tracker(tmp_path / "run", **settings).finish({})
    (run,) = of_type(records(tmp_path / "run"), "run")
    assert (run["project"], run["notes"]) == ("flag-project", "flag-notes")
    assert (run["run_group"], run["job_type"]) == ("variable-run_group", "variable-job_type")
    assert (run["run_id"], run["display_name"], run["tags"]) == ("asked-for", "run", ["x"])


@pytest.fixture(params=["refuses", "drops", "delays", "fails"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A W&B server that is of no use."""
    port = free_port()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    if request.param == "refuses":
        yield
        return
    let_go = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if request.param == "delays":
                let_go.wait(20)
            if request.param == "fails":
                self.send_error(503)
            self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    with closing(ThreadingHTTPServer(("127.0.0.1", port), Handler)) as http:
        http.close = http.server_close  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield
        let_go.set()
        http.shutdown()
        thread.join()


@pytest.mark.usefixtures("server")
def test_a_useless_server_neither_stops_nor_slows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    start = time.monotonic()
    trackers = Trackers([Background("W&B", lambda: tracker(tmp_path / "run", mode="online"))])
    for step in (2, 4, 6, 8, 10):
        trackers.log(line(step))
    assert time.monotonic() - start < 1
    trackers.finish({"steps": 10, "test_accuracy": 1.0})
    (message,) = ours(caplog)
    assert message.startswith("W&B cannot be reached, this run is logged offline")
    steps = [x["item"]["train/step"] for x in of_type(records(tmp_path / "run"), "history")]
    assert steps == [2, 4, 6, 8, 10]


def test_a_service_that_dies_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {child.pid for child in psutil.Process().children()}
    background = Background("W&B", lambda: tracker(tmp_path / "run"))
    trackers = Trackers([background])
    trackers.log(line(2))
    noted = tmp_path / "run" / "wandb-step"
    until(lambda: noted.exists() and noted.read_text() == "2", f"{noted} says 2", 20)
    for child in psutil.Process().children():
        if child.pid not in before:
            child.kill()
            child.wait()
    for step in range(4, 60):
        trackers.log(line(step))
        time.sleep(0.02)
    trackers.finish({"steps": 10})
    (message,) = ours(caplog)
    assert message.startswith("W&B failed and is left out")


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user was told by us."""
    return [record.getMessage() for record in caplog.records if record.name == "dist_train"]


@pytest.mark.parametrize(
    ("environment", "mode", "expected"),
    [
        ({}, "auto", "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "auto", "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "auto", "off"),
        ({"WANDB_MODE": "online"}, "off", "off"),
    ],
)
def test_without_a_login_runs_are_offline(
    environment: dict[str, str], mode: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choose_mode(mode) == expected
