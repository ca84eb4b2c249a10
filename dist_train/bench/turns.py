"""Who has a turn in `bench speed`: our run of a seed, or another program; and what it took."""

import json
import math
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train import runs
from dist_train.bench.timing import note
from dist_train.errors import UserError
from dist_train.tracking import json_lines

ON_THE_CLOCK = ("initialise", "train", "evaluate")


@dataclass
class Run:
    """One training, ours or the rival's."""

    who: str
    """`seed0`, or `rival`."""
    accuracy: float | None
    """On the test set, with test-time augmentation where there is one."""
    seconds: float
    """By the clock."""
    parts: dict[str, float]
    """Seconds of each phase; of a rival only the whole program's."""
    ended: float
    """When it was done, Unix seconds."""

    def said(self) -> str:
        """For people."""
        accuracy = "no accuracy" if self.accuracy is None else f"{self.accuracy:.2%}"
        return f"{accuracy} in {self.seconds:.2f} s"


def of_summary(summary: dict[str, Any], folder: Path) -> Run:
    """What a run's summary.json and its last line of metrics say."""
    parts = summary["seconds"]
    last_line = json_lines.read(folder / "metrics.jsonl")[-1]
    with_tta = summary["test_accuracy_tta"]
    return Run(
        f"seed{summary['seed']}",
        summary["test_accuracy"] if with_tta is None else with_tta,
        sum(parts[phase] for phase in ON_THE_CLOCK),
        parts,
        last_line["time"],
    )


class Rival:
    """Another program to time.

    Args:
        command: what starts it.
        kept: it starts now, gets ready (compiles, for example) while we do, stays, and does a run
            for each line that it is given.

    Raises:
        UserError: there is no program to keep.
    """

    def __init__(self, command: str, *, kept: bool) -> None:
        self.command = command
        self._program: subprocess.Popen[str] | None = None
        if kept:
            pipe = subprocess.PIPE
            try:
                self._program = subprocess.Popen(
                    shlex.split(command), stdin=pipe, stdout=pipe, text=True
                )
            except (OSError, ValueError) as error:
                raise UserError(f"--rival {command}: {error}") from error

    def run(self) -> Run:
        """Has it do a run, and reads its clock.

        Raises:
            UserError: there is no such program, it failed, or it stays and said nothing.
        """
        start = time.perf_counter()
        try:
            line = self._last_line() if self._program is None else self._next_result(self._program)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise UserError(f"--rival {self.command}: {error}") from error
        whole = time.perf_counter() - start
        accuracy, seconds = rivals_clock(line) or (None, whole)
        return Run("rival", accuracy, seconds, {"total": whole}, time.time())

    def _last_line(self) -> str:
        """Of all that it prints until it ends."""
        words = shlex.split(self.command)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        last = done.stdout.strip().rpartition("\n")[2]
        if rivals_clock(last) is None:
            note("the rival's last line is no JSON object with `seconds`: its whole run counts")
        return last

    @staticmethod
    def _next_result(program: subprocess.Popen[str]) -> str:
        """Asks the program that stays for a run."""
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("\n")
        program.stdin.flush()
        for line in program.stdout:
            if rivals_clock(line):
                return line
        raise ValueError("expected a JSON object with `seconds` for a line of input, and it ended")

    def close(self) -> None:
        """Ends a program that stays."""
        if self._program is not None:
            self._program.kill()
            self._program.communicate()


def rivals_turn(rival: Rival, place: Path) -> Run:
    """The rival's run before one of ours; not again if an interrupted measurement goes on."""
    if place.exists():
        before = runs.read_json(place)
        if before["command"] == rival.command:
            return Run(**before["run"])
    found = rival.run()
    runs.write_json(place, {"command": rival.command, "run": vars(found)})
    return found


def rivals_clock(line: str) -> tuple[float | None, float] | None:
    """Accuracy, if it says so, and seconds; None if the line is no such JSON object."""
    try:
        said = json.loads(line)
        accuracy, seconds = said.get("accuracy"), float(said["seconds"])
        if not 0 < seconds < math.inf:
            return None
        return None if accuracy is None else float(accuracy), seconds
    except (KeyError, AttributeError, TypeError, ValueError):
        return None


def in_turn(own: Sequence[Run], rivals: Sequence[Run]) -> bool:
    """Whether each of our runs came after the rival's: else the ratio compares other hours."""
    turns = [run.ended for pair in zip(rivals, own, strict=True) for run in pair]
    return turns == sorted(turns)
