"""The documentation site: pages that docs/hooks.py generates, and the whole site."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pfseg.config.reference import Row

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_grouped_by_command_and_choice(hooks: ModuleType):
    rows = [
        Row("train", "", "seed", "a whole number", "0", "seed of everything random"),
        Row("train", "optimizer=sgd", "optimizer.lr", "a number above 0", "0.01", "learning rate"),
        Row("train", "loss=pfnet", "loss.edge", "bce | dice", "bce", "edge_loss <kind>"),
        Row("evaluate", "", "checkpoint", "text", "", "run folder"),
        Row("evaluate", "optimizer=sgd", "optimizer.lr", "a number above 0", "0.01", "learning rate"),
    ]
    page = hooks.settings_markdown(rows, {"train": "Train.\n\nMore.", "evaluate": "Score."})
    assert re.findall(r"^##+ (.*)$", page, re.MULTILINE) == [
        "pfseg train",
        "`optimizer=sgd` {: #train-optimizer-sgd }",
        "`loss=pfnet` {: #train-loss-pfnet }",
        "pfseg evaluate",
    ]
    assert r"| `loss.edge` | bce \| dice | <code>bce</code> | edge\_loss &lt;kind&gt; |" in page
    assert "| `checkpoint` | text | must be given | run folder |" in page
    assert "The settings of `optimizer` are those of [pfseg train](#pfseg-train)." in page
    assert page.count("`optimizer.lr`") == 1


def test_every_setting_is_documented(hooks: ModuleType):
    page = hooks.settings_page()
    for key in ("trainer.max_epochs", "loss.edge_weight", "dataset.prepare.size", "launch.timeout", "boundary"):
        assert f"| `{key}` |" in page


def test_links_of_top_files_become_links_of_the_site(hooks: ModuleType):
    text = "[a](docs/design.md#rooms) [b](CHANGELOG.md) [c](https://x.org) [d](sweep/README.md)"
    assert hooks.site_links(text) == (
        "[a](design.md#rooms) [b](changelog.md) [c](https://x.org) "
        "[d](https://github.com/pfseg/pfseg/blob/main/sweep/README.md)"
    )


def test_every_room_has_a_page(hooks: ModuleType):
    rooms = {path.parent.name for path in (ROOT / "pfseg").glob("*/__init__.py")}
    assert set(hooks.ROOMS) == rooms
    assert "::: pfseg.models.pfnet\n" in hooks.api_page("models")
    assert "::: pfseg.build\n" in hooks.api_page(None)


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assets = re.findall(
            r'<(?:script|img|link)[^>]*(?:src|href)="?(https?:[^" >]+)', page.read_text(encoding="utf-8")
        )
        assert not assets, page
