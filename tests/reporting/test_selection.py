from __future__ import annotations

from pathlib import Path

import yaml
from run_folders import make_run

from pfseg.reporting.runs import find_runs, read_runs
from pfseg.reporting.selection import group_seeds


def test_a_seed_that_is_no_number_groups_no_runs(tmp_path: Path):
    settings = make_run(tmp_path / "run") / "resolved.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"seed": [1, 2]}))
    runs = read_runs(find_runs([str(tmp_path)]))
    assert runs[0].settings["seed"] == [1, 2] and runs[0].best
    assert group_seeds(runs) == []
