"""metrics.jsonl where the disk is full."""

import json
import resource
from pathlib import Path

from dist_train.tracking.json_lines import JsonLines


def test_lines_wait_for_room_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, resumed_step=0)
    lines.log({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        lines.log({"step": 2})
        lines.log({"step": 3})
        assert path.read_text() == json.dumps({"step": 1}) + "\n"  # no half lines
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines.finish({})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
