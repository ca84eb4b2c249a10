"""A real SLURM cluster on this machine (slurm/lab), and jobs on it."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import REPOSITORY, SMALL, lines_so_far, until

LAB = REPOSITORY / "slurm" / "lab"
NODES = 2
UNFINISHED = ("PENDING", "RUNNING", "COMPLETING")

# The work of a job: seconds long on two ranks, whose sums do not depend on the machine's cores.
TINY = ["cnn2", *SMALL, "--runtime.device", "cpu", "--runtime.threads", "1"]
TINY += ["--train.log_every", "1", "--train.eval_every", "0"]


@dataclass
class Lab:
    """A running lab.

    Args:
        state: its folder.
        folder: where jobs submitted here leave runs and logs.
    """

    state: Path
    folder: Path

    def __call__(self, *command: str, node: str | None = None, **environment: str) -> str:
        """What a command prints, run on the login node or on another."""
        where = ["-n", node] if node else []
        done = subprocess.run(
            [LAB / "bin" / "lab", *where, *command],
            cwd=REPOSITORY,
            env={**os.environ, "LAB_STATE": str(self.state), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(
        self, *flags: str, options: tuple[str, ...] = (), name: str, **environment: str
    ) -> "Job":
        """`sbatch slurm/cifar.sh` with a name for the run, which is also that of its log."""
        log = self.folder / f"{name}.out"
        number = self(
            *("sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", *options),
            *("slurm/cifar.sh", *flags, "--name", name, "--output", str(self.folder / "runs")),
            **{"TMPDIR": str(self.folder), **environment},  # data is prepared there
        )
        return Job(self, number, self.folder / "runs" / name, log)

    def node(self, action: str, node: str) -> None:
        """Breaks a node, or mends it."""
        self("node", action, node)

    def mend(self) -> None:
        """Cancels all jobs and waits until every node is idle again."""
        self("scancel", "--user=root", "--quiet")
        until(lambda: len(self.idle_nodes()) == NODES, "all nodes are idle")

    def idle_nodes(self) -> list[str]:
        """The nodes that wait for work."""
        return self("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N").split()


@dataclass
class Job:
    """A submitted job."""

    lab: Lab
    number: str
    run_folder: Path
    log: Path

    def field(self, name: str) -> str:
        """A field of `scontrol show job`."""
        fields = self.lab("scontrol", "show", "job", self.number).split()
        return next(f.partition("=")[2] for f in fields if f.startswith(f"{name}="))

    def wait(self, *states: str, seconds: float = 120) -> None:
        """Returns when the job has one of the states; fails at once when it ended in another."""

        def reached() -> bool:
            state = self.field("JobState")
            assert state in (*states, *UNFINISHED), self.story()
            return state in states

        until(reached, f"job {self.number} is {' or '.join(states)}", seconds, self.story)

    def wait_for_steps(self, steps: int) -> None:
        """Returns when the run has logged so many steps."""

        def reached() -> bool:
            assert self.field("JobState") in UNFINISHED, self.story()
            return lines_so_far(self.run_folder) >= steps

        until(reached, f"{self.run_folder} has {steps} steps", 120, self.story)

    def wait_for_requeue(self, requeues: int = 1, seconds: float = 60) -> None:
        """Returns when the job has ended that often, to be started again seconds later."""

        def requeued() -> bool:
            assert self.field("JobState") in UNFINISHED, self.story()
            return int(self.field("Restarts")) >= requeues

        until(requeued, f"job {self.number} is requeued", seconds, self.story)

    def story(self) -> str:
        """What there is to know after a failure."""
        lines = self.log.read_text().splitlines() if self.log.exists() else ["(no log)"]
        return "\n".join([self.lab("scontrol", "show", "job", self.number), *lines[-60:]])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab for all tests."""
    if os.geteuid() != 0:
        pytest.skip("only root can start slurm/lab")
    folder = tmp_path_factory.mktemp("slurm")
    state = folder / "lab"
    environment = {**os.environ, "LAB_STATE": str(state), "NODES": str(NODES)}

    def script(name: str) -> None:
        done = subprocess.run(
            [LAB / name], env=environment, capture_output=True, text=True, timeout=250
        )
        if done.returncode:
            give_up(f"slurm/lab/{name}: {(done.stderr or done.stdout).strip()[-300:]}")

    script("install.sh")
    try:
        script("start.sh")
        yield Lab(state, folder)
    finally:
        script("stop.sh")


def give_up(reason: str) -> NoReturn:
    """Skips on a machine that has no SLURM; continuous integration has to have it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """The lab, without the jobs of the tests before."""
    yield cluster
    cluster.mend()
