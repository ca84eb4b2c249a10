"""`dist-train sweep`: a grid of runs, each an ordinary run directory, and what came of it."""

from collections.abc import Sequence

from dist_train.files import write_atomically
from dist_train.runs import check_same, read_json, write_json
from dist_train.sweep.execute import require_finished, run_here, submit
from dist_train.sweep.plan import Run, Sweep, plan
from dist_train.sweep.study import plot, results, table


def sweep(
    arguments: Sequence[str], *, seeds: int, sample: int | None, parallel: int, slurm: bool
) -> None:
    """Runs what is not finished, then writes `table.md`, `results.json` and `plot.png`.

    Raises:
        UserError: a setting is wrong, or runs did not finish.
    """
    planned = plan(arguments, seeds=seeds, sample=sample)
    check_settings(planned)
    unfinished: list[Run] = []
    if not all(run.is_finished for run in planned.runs):
        if slurm:
            print(submit(planned))
            print("when it is done, the same command makes the table and the plot")
            return
        unfinished = run_here(planned, parallel=parallel)
    rows, varied = results(planned), list(planned.runs[0].varied)
    if any(row["n"] for row in rows):
        text = table(rows, varied)
        write_atomically(planned.folder / "table.md", text.encode())
        write_json(planned.folder / "results.json", rows)
        plot(rows, varied, planned.folder / "plot.png")
        print(f"{text}\n{planned.folder / 'plot.png'}")
    require_finished(planned, unfinished)


def check_settings(sweep: Sweep) -> None:
    """Raises UserError when a run of that name was made with other settings."""
    for run in sweep.runs:
        path = run.folder / "config.json"
        if path.exists():
            check_same(read_json(path), run.config, run.folder)
