"""Builds the W&B workspace of a project, and a report that compares its runs.

    python launch/wandb_dashboard.py --entity TEAM [--project dist_train]
    python launch/wandb_dashboard.py --dry_run          print what would be built, as JSON

Needs wandb-workspaces, which `make setup` installs, and, unless --dry_run, a W&B login.
"""

import argparse
import json
import sys
from typing import Any

STEP, EPOCH, SECONDS = "train/step", "epoch", "perf/train_seconds"
RUNTIME = "RelativeTime(Process)"  # of what W&B measures itself

# Sections of the workspace: the title of each chart, its curves, and what they are drawn against.
# A curve that ends in * is every metric that begins like that.
CHARTS = {
    "Accuracy": {
        "Test accuracy": (["test/accuracy"], EPOCH),
        "Held-out accuracy": (["validation/accuracy"], EPOCH),
        "Training accuracy": (["train/accuracy"], EPOCH),
        "Test loss": (["test/loss"], EPOCH),
        "Training loss": (["train/loss"], STEP),
        "Accuracy of each class": (["test/accuracy/*"], EPOCH),
    },
    "Time to accuracy": {
        "Test accuracy by seconds of training": (["test/accuracy"], SECONDS),
        "Training loss by seconds of training": (["train/loss"], SECONDS),
    },
    "Throughput": {
        "Images a second": (["perf/images_per_second"], STEP),
        "Images a second and device": (["perf/images_per_second_per_device"], STEP),
        "Share of the time spent waiting for data": (["perf/data_wait"], STEP),
        "Seconds a step": (
            ["perf/step_seconds_p50", "perf/step_seconds_p95", "perf/step_seconds_max"],
            STEP,
        ),
        "Model FLOP utilisation": (["perf/mfu"], STEP),
        "Memory": (["perf/memory_bytes"], STEP),
    },
    "Ranks": {
        "Images a second of each rank": (["rank/*"], STEP),
        "Slowest rank": (["perf/slowest_rank"], STEP),
    },
    "Optimizer": {
        "Learning rates": (["optim/lr*"], STEP),
        "Gradient norm": (["optim/gradient_norm"], STEP),
    },
    "System": {
        "GPU utilisation": (["system/gpu.0.gpu"], RUNTIME),
        "GPU memory": (["system/gpu.0.memoryAllocatedBytes"], RUNTIME),
        "CPU": (["system/cpu"], RUNTIME),
        "Memory of the process": (["system/proc.memory.rssMB"], RUNTIME),
    },
}


def main() -> int:
    """Builds, or prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", default="", help="W&B user or team; unset: one's own")
    parser.add_argument("--project", default="dist_train", help="W&B project")
    parser.add_argument("--dry_run", action="store_true", help="print the specification")
    given = parser.parse_args()
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        message = "wandb-workspaces is not installed: run launch/setup.sh"
        print(f"wandb_dashboard: error: {message}", file=sys.stderr)
        return 2
    entity = given.entity
    if given.dry_run:
        entity = ""  # with one, the server would be asked for the project's number
    elif not entity:
        import wandb

        entity = wandb.Api().default_entity
    workspace, report = build_workspace(entity, given.project), build_report(entity, given.project)
    if given.dry_run:
        found = {"workspace": specification(workspace), "report": specification(report)}
        print(json.dumps(found, indent=2))
        return 0
    for built in (workspace, report):
        built.save()
        print(built.url)
    return 0


def build_workspace(entity: str, project: str) -> Any:
    """A workspace with a section for each entry of CHARTS."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=panels(name), is_open=name in ("Accuracy", "Throughput"))
        for name in CHARTS
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="dist_train",
        sections=sections,
        auto_generate_panels=False,
    )


def build_report(entity: str, project: str) -> Any:
    """A report that compares the runs of a project: curves, final figures, settings."""
    import wandb_workspaces.reports.v2 as wr

    runs = wr.Runset(entity=entity, project=project, name="Runs")
    seeds = wr.Runset(entity=entity, project=project, name="Recipes", groupby=["recipe"])
    results = [
        wr.BarPlot(title="Best test accuracy", metrics=["best_test_accuracy"]),
        wr.BarPlot(title="Images a second", metrics=["images_per_second"]),
        wr.RunComparer(diff_only=True),
    ]
    pictures = [wr.MediaBrowser(title="Surest mistakes", media_keys=["test/mistakes"])]
    return wr.Report(
        entity=entity,
        project=project,
        title="Runs compared",
        description="Accuracy, time to accuracy and throughput of all runs of this project.",
        blocks=[
            wr.H1("Results"),
            wr.PanelGrid(runsets=[runs], panels=results),
            wr.H1("Accuracy, mean and range over the seeds of a recipe"),
            wr.PanelGrid(runsets=[seeds], panels=panels("Accuracy")),
            wr.H1("Time to accuracy"),
            wr.PanelGrid(runsets=[runs], panels=panels("Time to accuracy")),
            wr.H1("Throughput"),
            wr.PanelGrid(runsets=[runs], panels=panels("Throughput")),
            wr.H1("Mistakes"),
            wr.PanelGrid(runsets=[runs], panels=pictures),
        ],
    )


def panels(section: str) -> list[Any]:
    """The charts of a section, two in a row."""
    import wandb_workspaces.reports.v2 as wr

    found = []
    for number, (title, (curves, against)) in enumerate(CHARTS[section].items()):
        row, column = divmod(number, 2)
        place = wr.Layout(x=12 * column, y=8 * row, w=12, h=8)
        options: dict[str, Any] = {"y": curves}
        if curves[0].endswith("*"):
            options = {"metric_regex": f"^{curves[0].removesuffix('*')}.*"}
        found.append(wr.LinePlot(title=title, x=against, layout=place, **options))
    return found


def specification(built: Any) -> Any:
    """What would be sent to W&B, as plain values."""
    return json.loads(built._to_model().model_dump_json(by_alias=True, exclude_none=True))


if __name__ == "__main__":
    sys.exit(main())
