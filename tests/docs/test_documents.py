"""The documentation agrees with the code: links, commands and settings exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_architecture import FLOORS

from pfseg.commands.app import commands
from pfseg.config.commands import SCHEMAS
from pfseg.config.compose import networks

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "sweep" / "README.md"]
GENERATED = {"settings.md", "contributing.md", "changelog.md", "api/metrics.md"}  # by docs/hooks.py
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"^[~+]*([A-Za-z_][\w./]*)=(.*)$", re.DOTALL)

files = pytest.mark.parametrize("path", [*TOP, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The ids of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of the commands of pfseg in code blocks, from the name of the command on."""
    for _, language, block in FENCE.findall(text):
        if language not in ("sh", "text", ""):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ ").replace("<", "").replace(">", ""), comments=True)
            for position, word in enumerate(words[:-1]):
                if word == "pfseg" and words[position - 1] not in ("install", "-t"):
                    yield words[position + 1 :]


def known_keys(command: str) -> tuple[set[str], dict[str, set[str]]]:
    """Every key that the files of conf/ set for a command, and the choices of each group."""
    keys: set[str] = set()
    choices: dict[str, set[str]] = {"model": set(networks())}
    for path in (ROOT / "conf").rglob("*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        if group == ".":
            if path.stem not in (command, "train") or (path.stem == "train" and command not in ("train", "preview")):
                continue
            group = ""
        else:
            choices.setdefault(group, set()).add(path.stem)
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^# @package (\S+)", text)
        prefix = {"_global_": ""}.get(package[1], package[1]) if package else group.replace("/", ".")
        keys |= set(flatten(yaml.safe_load(text) or {}, prefix))
    return keys, choices


def flatten(node: object, prefix: str) -> Iterator[str]:
    if prefix:
        yield prefix
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pictures_are_small():
    assert all(path.stat().st_size <= 300_000 for path in (ROOT / "docs" / "images").iterdir())


@files
def test_links_resolve(path: Path):
    for target in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if target.startswith("http"):
            repository = re.match(r"https://github\.com/pfseg/pfseg/(?:blob|tree)/main/(.*)", target)
            assert repository is None or (ROOT / repository[1]).exists(), target
            continue
        name, _, anchor = target.partition("#")
        if path.is_relative_to(ROOT / "docs") and (name in GENERATED or name.removeprefix("../") in GENERATED):
            source = ROOT / name.removeprefix("../").upper().replace(".MD", ".md")
            assert not anchor or anchor in anchors(source), target
            continue
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@files
def test_commands_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    for words in command_lines(text):
        assert words[0] in commands(), words
    inline = re.findall(r"`pfseg ([a-z]+)[^`]*`", FENCE.sub("", text))
    assert set(inline) <= set(commands()), inline


@files
def test_settings_exist(path: Path):
    for command, *words in command_lines(path.read_text(encoding="utf-8")):
        if command not in SCHEMAS:
            continue
        keys, choices = known_keys(command)
        for word in words:
            match = KEY.match(word)
            if match is None or match[1].startswith("hydra") or match[1] == "optimizer.lrr":
                continue
            key, value = match.groups()
            if key in choices and re.fullmatch(r"[\w,\[\]]+", value):
                own = set(re.findall(r'title="conf/[\w/]+/(\w+)\.yaml"|^# conf/[\w/]+/(\w+)\.yaml', everything(), re.M))
                names = {name for pair in own for name in pair if name}
                assert set(re.findall(r"\w+", value)) <= choices[key] | names | {"null"}, word
            elif not key.startswith("loss.segmentation."):  # of the reader's own loss
                assert key.replace("/", ".") in keys or key in choices, f"pfseg {command}: {word}"


def test_every_choice_command_and_extra_is_listed():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    tree = page.partition("```\nconf/\n")[2].partition("```")[0]
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        line = re.search(rf"^  {group.name}/(.*\n(?:   .*\n)*)", tree, re.M)
        assert line, group.name
        if group.name not in ("experiment", "model"):  # on other pages
            assert {path.stem for path in group.glob("*.yaml")} <= set(re.findall(r"\w+", line[1])), group.name
    start = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `pfseg (\w+)`", start, re.M)) == set(commands())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"`pfseg\[(\w+)\]`", start)) == set(extras) - {"dev", "docs"}


def everything() -> str:
    """All documents but the changelog, which names what is gone."""
    return "\n".join(path.read_text(encoding="utf-8") for path in [*TOP, *PAGES] if path.name != "CHANGELOG.md")


def test_settings_in_the_text_exist():
    groups = "dataset|model|loss|optimizer|schedule|augment|logger|launch|trainer"
    keys = known_keys("train")[0] | {"dataset.splits.train", "optimizer.lrr"}  # a key of the reader, a misspelling
    keys |= {"model.onnx", "model.safetensors", "model.json"}  # files
    for key in set(re.findall(rf"`((?:{groups})\.[\w.]+\w)(?:=[^`]*)?`", everything())):
        assert key in keys, key


def test_the_design_page_shows_the_floors():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("|---|---|---|\n")[2].partition("\n\n")[0]
    floors = [re.findall(r"`(\w+)(?:\.py)?`", row.split("|")[2]) for row in table.splitlines()]
    expected = [set(rooms) - {"__init__", "__main__", "__version__"} for rooms in reversed(FLOORS)]
    assert [set(rooms) for rooms in floors] == [rooms for rooms in expected if rooms]
