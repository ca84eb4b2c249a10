"""slurm/cifar.sh on a real cluster: jobs end, are stopped, lose nodes, and go on."""

import os
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, assert_same_weights, metrics, stopped_after, summary, until
from tests.slurm.conftest import TINY, Job, Lab

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

TWO_NODES = ("--nodes=2", "--gpus-per-node=1")
N0 = ("--nodes=1", "--gpus-per-node=0", "--nodelist=n0")
RUN = [*TINY, "--train.epochs", "40"]  # 280 steps
ENDLESS = [*TINY, "--train.epochs", "100000", "--checkpoint.every_steps", "20"]


@pytest.fixture(scope="module")
def uninterrupted(cluster: Lab) -> Job:
    """A run of two nodes that nothing happens to."""
    job = cluster.submit(*RUN, options=TWO_NODES, name="uninterrupted")
    job.wait("COMPLETED")
    return job


def assert_same_end(job: Job, expected: Job) -> None:
    assert_same_weights(job.run_folder, expected.run_folder)
    steps = [line["step"] for line in metrics(job.run_folder)]
    assert steps == [line["step"] for line in metrics(expected.run_folder)]


def test_two_nodes(uninterrupted: Job) -> None:
    log = uninterrupted.log.read_text()
    assert summary(uninterrupted.run_folder)["world_size"] == 2
    assert "2 nodes x 1 processes, meeting at n0:" in log
    assert "uninterrupted is finished" in log


def test_usr1_saves_requeues_and_goes_on(lab: Lab, uninterrupted: Job) -> None:
    # What SLURM sends before a time limit and a preemption.
    job = lab.submit(*RUN, options=TWO_NODES, name="usr1")
    job.wait_for_steps(40)
    lab("scancel", "--signal=USR1", "--batch", job.number)
    job.wait_for_requeue()
    assert not (job.run_folder / "summary.json").exists()
    job.wait("COMPLETED")
    (resumed_from,) = summary(job.run_folder)["resumed_from_step"]
    assert resumed_from >= 40
    assert_same_end(job, uninterrupted)


def test_a_wrong_flag_ends_the_job(lab: Lab) -> None:
    job = lab.submit("cnn2", "--train.epoch", "3", name="wrong")
    job.wait("FAILED")
    assert job.field("ExitCode") == "2:0"
    assert "did you mean --train.epochs?" in job.log.read_text()
    assert job.field("Restarts") == "0"
    assert not job.run_folder.exists()


@pytest.mark.slow
def test_prepared_data_are_not_taken_from_somebody_else(lab: Lab, tmp_path: Path) -> None:
    theirs = tmp_path / f"dist_train-{os.getuid()}"
    theirs.mkdir()
    try:
        os.chown(theirs, 12345, -1)
    except PermissionError:
        pytest.skip("only root can make a folder somebody else's")
    job = lab.submit(*TINY, options=N0, name="theirs", TMPDIR=str(tmp_path))
    job.wait("FAILED")
    assert f"{theirs} on n0 cannot be made or is not ours" in job.log.read_text()
    assert not list(theirs.iterdir())


@pytest.mark.slow
def test_two_processes_a_node(lab: Lab) -> None:
    flags = [*TINY, "--train.epochs", "2"]
    job = lab.submit(*flags, options=("--nodes=2", "--gpus-per-node=2"), name="four")
    job.wait("COMPLETED")
    assert summary(job.run_folder)["world_size"] == 4


@pytest.mark.slow
def test_the_defaults_on_one_node(lab: Lab) -> None:
    # The #SBATCH lines as they are: log, name, CPUs and GPUs.
    flags = [*TINY, "--train.epochs", "2", "--output", str(lab.folder / "runs")]
    number = lab("sbatch", "--parsable", "slurm/cifar.sh", *flags)
    name = f"cifar-{number}"
    log = REPOSITORY / "slurm" / "logs" / f"{name}.out"
    job = Job(lab, number, lab.folder / "runs" / name, log)
    job.wait("COMPLETED")
    assert summary(job.run_folder)["world_size"] == 1
    assert f"{name} is finished" in log.read_text()
    log.unlink()


@pytest.mark.slow
def test_the_time_limit(lab: Lab) -> None:
    # SLURM looks at limits every 30 s.
    options = (*TWO_NODES, "--time=1", "--signal=B:USR1@30")
    job = lab.submit(*ENDLESS, options=options, name="limit", STOP_SECONDS="25")
    job.wait_for_requeue(1, seconds=120)
    lab("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    steps = [line["step"] for line in metrics(job.run_folder)]
    assert steps == list(range(1, len(steps) + 1))
    assert f"stopped after step {len(steps)}" in job.log.read_text()
    job.wait_for_steps(len(steps) + 20)
    assert f"going on after step {len(steps)}" in job.log.read_text()


@pytest.mark.slow
def test_preemption(lab: Lab) -> None:
    flags = [*ENDLESS, "--tracking.wandb", "offline"]
    job = lab.submit(*flags, options=TWO_NODES, name="preempted")
    job.wait_for_steps(40)
    more_important = lab(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap", "sleep 1"),
    )
    job.wait_for_requeue()
    stopped = stopped_after(job.log.read_text())
    until(
        lambda: "JobState=COMPLETED" in lab("scontrol", "show", "job", more_important),
        "the more important job is done",
    )
    job.wait_for_steps(stopped + 20)
    assert job.log.read_text().count("going on after step") == 1
    (run_id,) = {
        path.name.rpartition("-")[2] for path in job.run_folder.glob("wandb/offline-run-*")
    }
    assert run_id == (job.run_folder / "wandb-id").read_text()


@pytest.mark.slow
def test_scancel_saves_and_stays_cancelled(lab: Lab, uninterrupted: Job) -> None:
    job = lab.submit(*RUN, options=TWO_NODES, name="cancelled")
    job.wait_for_steps(40)
    lab("scancel", job.number)
    job.wait("CANCELLED")
    assert job.field("Restarts") == "0"
    until(lambda: len(lab.idle_nodes()) == 2, "the job has left its nodes")
    latest = (job.run_folder / "checkpoints" / "latest").readlink().name
    stopped = int(latest.removeprefix("step-").removesuffix(".pt"))
    # A line less, if the evaluation at that step was given up.
    assert len(metrics(job.run_folder)) in (stopped, stopped - 1), job.story()
    # The same run, by name, in another job.
    again = lab.submit(*RUN, options=TWO_NODES, name="cancelled")
    again.wait("COMPLETED")
    assert summary(again.run_folder)["resumed_from_step"] == [stopped]
    assert_same_end(again, uninterrupted)


@pytest.mark.slow
def test_requeues_are_bounded(lab: Lab) -> None:
    job = lab.submit(*ENDLESS, options=N0, name="bounded", MAX_REQUEUES="0")
    job.wait_for_steps(20)
    lab("scancel", "--signal=USR1", "--batch", job.number)
    job.wait("FAILED")
    assert job.field("ExitCode") == "75:0"
    assert "submit again with --name bounded" in job.log.read_text()


@pytest.mark.slow
def test_a_stop_file_ends_the_job(lab: Lab) -> None:
    job = lab.submit(*ENDLESS, options=N0, name="stopped")
    job.wait_for_steps(20)
    (job.run_folder / "STOP").touch()
    job.wait("FAILED")
    assert job.field("ExitCode") == "75:0"
    assert "submit again with --name stopped" in job.log.read_text()


@pytest.mark.slow
def test_a_crash_is_requeued_if_the_run_got_further(lab: Lab, uninterrupted: Job) -> None:
    # Also what a lost node looks like to the others, until SLURM knows of it.
    job = lab.submit(*RUN, "--checkpoint.every_steps", "20", options=TWO_NODES, name="crashed")
    job.wait_for_steps(60)
    lab("scancel", "--signal=KILL", f"{job.number}.0")
    job.wait_for_requeue()
    assert "but further than it was before; requeueing" in job.log.read_text()
    job.wait("COMPLETED")
    assert_same_end(job, uninterrupted)


@pytest.mark.slow
def test_what_fails_at_once_is_not_requeued(lab: Lab) -> None:
    flags = ["cnn2", "--data.root", str(lab.folder / "no such folder"), "--tracking.wandb", "off"]
    job = lab.submit(*flags, options=N0, name="broken")
    job.wait("FAILED")
    assert "got no further: not requeued" in job.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "node"), [("kill", "n0"), ("crash", "n1"), ("part", "n1")])
def test_a_lost_node(lab: Lab, uninterrupted: Job, damage: str, node: str) -> None:
    # n0 runs the batch script and rank 0. Nobody gets a signal: the last checkpoint has to do.
    often = ("--checkpoint.every_steps", "20", "--runtime.timeout_seconds", "15")
    job = lab.submit(*RUN, *often, options=TWO_NODES, name=f"{damage}-{node}")
    job.wait_for_steps(60)
    lab.node(damage, node)
    job.wait_for_requeue()
    lab.node("heal" if damage == "part" else "up", node)
    job.wait("COMPLETED")
    resumed_from = summary(job.run_folder)["resumed_from_step"]
    assert resumed_from
    assert resumed_from[0] % 20 == 0
    assert_same_end(job, uninterrupted)


@pytest.mark.slow
def test_a_sweep(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "sweep.txt"
    file.write_text("# three seeds\ncnn2 --seed 1\n\ncnn2 --seed 2\n  cnn2 --seed 3\n")
    flags = [*TINY[1:], "--train.epochs", "2", "--output", str(tmp_path / "runs")]
    number = lab(
        *("sbatch", "--parsable", "--array=1-4", "--cpus-per-task=1", "--gpus-per-node=0"),
        *(f"--output={tmp_path}/%A_%a.out", "slurm/sweep.sh", str(file), *flags),
    )
    runs = [tmp_path / "runs" / f"sweep-{number}_{task}" for task in (1, 2, 3)]

    def ended() -> bool:
        return not lab("squeue", "-h", "-j", number)

    until(ended, "the sweep has ended", 120)
    assert [summary(run)["seed"] for run in runs] == [1, 2, 3]
    assert "no configuration 4" in (tmp_path / f"{number}_4.out").read_text()


@pytest.mark.slow
def test_two_jobs_on_a_node_without_gpus(lab: Lab) -> None:
    flags = [*TINY, "--train.epochs", "2"]
    jobs = [
        lab.submit(*flags, options=N0, name=f"port-{number}", PROCESSES_PER_NODE="2")
        for number in (1, 2)
    ]
    for job in jobs:
        job.wait("COMPLETED")
        assert summary(job.run_folder)["world_size"] == 2
    assert port(jobs[0]) != port(jobs[1])


@pytest.mark.slow
def test_a_port_in_use_is_passed_over(lab: Lab) -> None:
    number = lab("sbatch", "--parsable", "--output=/dev/null", "--wrap", "true")
    expected = 10000 + int(number) + 1
    listener = f"import socket, time; s = socket.create_server(('', {expected})); time.sleep(60)"
    lab("bash", "-c", f'setsid python3 -c "{listener}" >/dev/null 2>&1 &', node="n0")
    listens = f"until (: </dev/tcp/127.0.0.1/{expected}) 2>/dev/null; do sleep 0.1; done"
    lab("bash", "-c", listens, node="n0")
    job = lab.submit(*TINY, options=N0, name="port-3")
    until(lambda: "meeting at" in job.story(), "the job has chosen a port")
    assert port(job) == expected + 1


def port(job: Job) -> int:
    found = re.search(r"meeting at n0:(\d+)", job.log.read_text())
    assert found
    return int(found[1])
