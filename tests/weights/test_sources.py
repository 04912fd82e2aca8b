"""Checkpoints that others share, against a stand-in of the Hub over HTTP, and offline by the caches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT
from wandb_server import CONTENT as CONTENT_OF_ARTIFACT
from wandb_server import wandb_server
from weights.hub import Hub, serving

from pfseg.errors import ConfigError
from pfseg.weights.sources import fetch, push

CONTENT = {"model.safetensors": b"weights", "config.yaml": b"a: 1\n", "picture.png": b"large"}


def asked(program: str, address: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that uses the Hub at an address."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    program = f"from pathlib import Path\nfrom pfseg.weights.sources import fetch, push\n{program}"
    given = os.environ | settings | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def hub() -> Any:
    with serving() as hub:
        yield hub


def test_a_repository_is_fetched_once_and_then_offline(hub: Hub, tmp_path: Path):
    hub.files["owner/name"] = dict(CONTENT)
    show = 'folder = fetch("hf://owner/name", Path("cache"))\nprint(*sorted(p.name for p in folder.iterdir()))'
    done = asked(show, hub.address, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["config.yaml", "model.safetensors"]  # the picture is for people
    before = len(hub.requests)
    again = asked(show, hub.address, tmp_path)
    assert again.stdout == done.stdout and not [r for r in hub.requests[before:] if r.startswith("GET /owner")]
    for unreachable in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        offline = asked(show, hub.address, tmp_path, **unreachable)
        assert offline.stdout == done.stdout, offline.stderr


@pytest.mark.parametrize(
    ("source", "environment", "text"),
    [
        ("hf://owner/gone", {}, "hf://owner/gone: there is no such repository or revision, or it needs a token"),
        ("hf://owner/name@v9", {}, "there is no such repository or revision"),
        (
            "hf://owner/other",
            {"HF_HUB_OFFLINE": "1"},
            "can't be reached, and there is no copy of it: check the network",
        ),
        ("hf://owner/other", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "hf://owner/other can't be "),
    ],
)
def test_repositories_that_cannot_be_fetched(
    source: str, environment: dict[str, str], text: str, hub: Hub, tmp_path: Path
):
    hub.files["owner/name"] = dict(CONTENT)
    done = asked(f'fetch("{source}", Path("cache"))', hub.address, tmp_path, **environment)
    assert f"CheckpointError: checkpoint={source.partition('@')[0]}" in done.stderr and text in done.stderr


def test_a_folder_is_uploaded(hub: Hub, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    program = f'print(push(Path("{folder}"), "owner/new"))'
    done = asked(program, hub.address, tmp_path, HF_TOKEN="hf_secret")
    assert done.stdout.strip() == f"{hub.address}/owner/new", done.stderr
    assert hub.files["owner/new"] == CONTENT
    refused = asked(program, hub.address, tmp_path)
    assert f"push=owner/new: {folder} is whole, but could not be uploaded" in refused.stderr


@pytest.mark.slow
def test_artifacts_are_kept_for_when_there_is_no_network(tmp_path: Path):
    show = 'print(fetch("wandb://team/maps/checkpoint-x:best", Path("cache")))'
    with wandb_server() as server:
        place = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
        place |= {"WANDB_CACHE_DIR": str(tmp_path / "w")}
        done = asked(show.replace("cache", str(tmp_path)), "", tmp_path, **place)
        folder = tmp_path / "wandb" / "team" / "maps" / "checkpoint-x"
        assert done.stdout.strip() == str(folder / "v3"), done.stderr
        assert (folder / "v3" / "best.safetensors").read_bytes() == CONTENT_OF_ARTIFACT
        unknown = asked('fetch("wandb://team/maps/other:best", Path("cache"))', "", tmp_path, **place)
        assert "CheckpointError: checkpoint=wandb://team/maps/other:best can't be downloaded (" in unknown.stderr
        assert "not found" in unknown.stderr and "): check its name, and the key (wandb login)" in unknown.stderr
    offline = asked(show.replace("cache", str(tmp_path)), "", tmp_path, **place)
    assert offline.stdout.strip() == str(folder / "best"), offline.stderr
    assert (folder / "best" / "best.safetensors").read_bytes() == CONTENT_OF_ARTIFACT


@pytest.mark.parametrize("source", ["hf://name", "hf://a/b/c", "wandb://a/b", "s3://bucket/model", "https://x.org/a"])
def test_other_sources(source: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"expected hf://owner/name or wandb://entity/project/name:alias"):
        fetch(source, tmp_path)


def test_the_package_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: fetch("hf://a/b", tmp_path), lambda: push(tmp_path, "a/b")):
        with pytest.raises(ConfigError, match=r"needs the package huggingface_hub: run `pip install 'pfseg\[hub\]'`"):
            call()
