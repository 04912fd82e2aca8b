"""`report.md`: what a preparation gave, compared with what a complete archive gives, and every oddity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pfseg.data.preparation.cutting import SceneRecord
from pfseg.data.preparation.preparation import Outcome

Expected = Mapping[str, int | Sequence[int]]  # `size` and `stride` in pixels, and the number of patches of each split
_SHOWN = 1000  # lines of one kind; the first ones tell enough


def make_report(
    index: Mapping[str, Any],
    outcome: Outcome,
    done: Mapping[str, SceneRecord],
    *,
    expected: Expected | None,
    faults: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Write the report in Markdown, the same for the same patches however often the preparation was interrupted.

    `done` are the records of the finished scenes; `faults` and `notes` are about the archive.
    """
    size = "whole scenes" if index["size"] is None else f"{_by(index['size'])} px at stride {_by(index['stride'])}"
    lines = [f"# {index['dataset']}: {size}", "", f"Prepared by pfseg {index['pfseg']}.", ""]
    counts = [[split, f"{part['scenes']:,}", f"{len(part['patches']):,}"] for split, part in index["splits"].items()]
    lines += _table(["split", "scenes", "patches"], counts)
    lines += ["", *(f"* {text}" for text in [*compare(index, expected), *notes])]
    lines += ["", "## Share of each class", "", *_shares(index)]
    lines += _section("Scenes that failed", [f"{key}: {reason}" for key, reason in sorted(outcome.failures.items())])
    lines += _section("Faults of the archive", faults)
    lines += _section("Scenes without mask", [scene.key for scene in outcome.scenes if scene.mask is None])
    lines += _section("Colours outside the class table, which are ignored", _unknown_by_file(outcome, done))
    return "\n".join(lines) + "\n"


def compare(index: Mapping[str, Any], expected: Expected | None) -> list[str]:
    """Compare the number of patches with that of a complete archive, if they were cut as those were."""
    if expected is None or any(_sides(expected[key]) != _sides(index[key]) for key in ("size", "stride")):
        return []
    lines = []
    for split, count in expected.items():
        if split not in ("size", "stride"):
            got = len(index["splits"].get(split, {"patches": ()})["patches"])
            gives = "as many as a complete archive gives" if got == count else f"a complete archive gives {count:,}"
            lines.append(f"{split}: got {got:,} patches, {gives}")
    return lines


def _unknown_by_file(outcome: Outcome, done: Mapping[str, SceneRecord]) -> list[str]:
    lines = []
    for scene in outcome.scenes:
        record = done.get(scene.key)
        if record and (unknown := record["unknown"]) and scene.mask is not None:
            most = ", ".join(unknown["most"])
            lines.append(f"{scene.mask.name}: {unknown['pixels']:,} px of {unknown['colors']:,} colours ({most})")
    return lines


def _shares(index: Mapping[str, Any]) -> list[str]:
    """In percent of the labelled pixels of each split; ignored pixels in percent of all."""
    names = [info["name"] for info in index["classes"]]
    columns = {}
    for split, part in index["splits"].items():
        if rows := [row for row in part["patches"] if "pixels" in row]:
            counts = [sum(row["pixels"].get(name, 0) for row in rows) for name in names]
            labelled, ignored = sum(counts), sum(row["ignored"] for row in rows)
            shares = [*(count / max(1, labelled) for count in counts), ignored / max(1, labelled + ignored)]
            columns[f"{split} %"] = [f"{100 * share:.3f}" for share in shares]
    table = _table(["class", *columns], zip([*names, "(ignored)"], *columns.values(), strict=False))
    return table if columns else ["No masks."]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in [head, rule, *rows]]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    rest = [f"* and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return ["", f"## {title} ({len(lines):,})", "", *(f"* {line}" for line in lines[:_SHOWN]), *rest]


def _sides(size: int | Sequence[int] | None) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size or ())


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) if len(set(size)) > 1 else str(size[0])
