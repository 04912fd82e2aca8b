"""The comparison as one HTML page that needs nothing else: no network, no fonts, pictures inside."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.reporting.charts import Curve, chart
from pfseg.reporting.runs import Run
from pfseg.reporting.selection import SeedGroup, compare_groups, group_seeds, show
from pfseg.reporting.statistics import Spread
from pfseg.reporting.table import Column, Row, Table, text

MAX_SHOWN = 8  # runs with curves and pictures: as many colours as can be told apart
_PICTURE_WIDTH = 1100  # pixels
_CHIP_SETTINGS = 4
_TITLES = {
    "loss": "training loss",
    "lr": "learning rate",
    "images_per_s": "images per second",
    "rank_mib": "memory of a rank, MiB",
    "gpu_mib": "GPU memory of a rank, MiB",
}
_SIDE = {*_TITLES, "eta_s", "step"}  # training values that are no terms of the loss
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def to_html(table: Table) -> str:
    """Write the page.

    Args:
        table: runs in the order in which they are shown; the first `MAX_SHOWN` get curves and pictures.

    Returns:
        A whole HTML document.
    """
    runs = table.runs
    shown = list(enumerate(runs[:MAX_SHOWN]))
    sections = [
        _head(runs),
        section("Runs", _run_table(table)),
        section("Over seeds", _seeds(group_seeds(runs))),
        _legend(shown, [column for column in table.columns if column.setting]),
        section("Curves", _curves(shown)),
        section("IoU by class", _classes(shown), "At each run's best validation, in percent."),
        section("Confusion", _confusions(shown), "Rows are the truth, columns the prediction; percent of the row."),
        section("Samples", _samples(shown), "Of each run's last validation; a click enlarges a picture."),
    ]
    return document(_title(runs), sections)


def document(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document of sections as `section` makes them."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.settings.get("name", run.name)) for run in runs))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _head(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    facts = [f"{len(runs)} run{'s' * (len(runs) > 1)}: " + ", ".join(f"{n} {status}" for status, n in counts.items())]
    if len(runs) > MAX_SHOWN:
        facts.append(
            f"curves, bars and pictures show the first {MAX_SHOWN} of the table as sorted when the page was made and "
            f"leave out {len(runs) - MAX_SHOWN}"
        )
    if lines := sum(run.unreadable for run in runs):
        facts.append(f"{lines} unreadable line{'s' * (lines > 1)} left out")
    facts.append(f"made {time.strftime('%Y-%m-%d %H:%M %Z')}")
    return f"<header><h1>{escape(_title(runs))}</h1><p>{escape('; '.join(facts))}.</p></header>\n"


def section(title: str, content: str, note: str = "") -> str:
    """A section of the page; nothing without content. The note is HTML, as the content is."""
    if not content:
        return ""
    return f"<section><h2>{title}</h2>{f'<p>{note}</p>' if note else ''}{content}</section>\n"


# Tables


def _run_table(table: Table) -> str:
    columns = [column for column in table.columns if column.key != "detail"]
    heads = "".join(
        f"<th{_right(column)}><button type='button'>{escape(column.title)}</button></th>" for column in columns
    )
    colors = {id(run): color for color, run in enumerate(table.runs[:MAX_SHOWN])}
    best = {column.key: _best(table, column) for column in columns if column.digits is not None}
    rows = "".join(_row(row, columns, best, colors.get(id(row.run))) for row in table.rows if row.run)
    means = "".join(_row(row, columns, {}, None) for row in table.rows if row.group)
    foot = f"<tfoot>{means}</tfoot>" if means else ""
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>{foot}"
    notes = "".join(
        f"<li><b>{escape(str(row.cells['run']))}</b>: {escape(str(row.cells['detail']))}</li>"
        for row in table.rows
        if row.cells.get("detail")
    )
    return f'<div class="scroll"><table class="runs">{body}</table></div>' + (f"<ul>{notes}</ul>" if notes else "")


def _best(table: Table, column: Column) -> float | None:
    values = [v for row in table.rows if row.run and isinstance(v := row.cells.get(column.key), float)]
    if len(values) < 2:
        return None
    return min(values) if column.key == "loss" else max(values)


def _row(row: Row, columns: Sequence[Column], best: dict[str, float | None], color: int | None) -> str:
    cells = []
    for column in columns:
        cell = row.cells.get(column.key)
        value = row.run.steps if row.run and column.key == "steps" else cell
        classes = ["right"] * column.right + ["best"] * (cell is not None and best.get(column.key) == cell)
        words = escape(text(column, cell))
        if column.key == "status" and cell:
            words = f'<span class="status {cell}">{words}</span>'
        elif column.key == "run":
            dot = f'<span class="dot r{color}"></span>' if color is not None else ""
            words = f'<span title="{escape(str(row.run.folder) if row.run else "")}">{dot}{words}</span>'
        sort = "" if value is None or isinstance(value, Spread) else escape(str(value))
        cells.append(f'<td class="{" ".join(classes)}" data-v="{sort}">{words}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _right(column: Column) -> str:
    return ' class="right"' if column.right else ""


def _seeds(groups: Sequence[SeedGroup]) -> str:
    if not groups:
        return ""
    rows = ""
    for group in groups:
        seeds = ", ".join(sorted((show(run.settings.get("seed")) for run in group.runs), key=lambda s: (len(s), s)))
        left = f" ({group.left_out} not finished)" if group.left_out else ""
        best = group.spread([run.best.miou if run.best else None for run in group.runs])
        last = group.spread([run.last.miou if run.last else None for run in group.runs])
        rows += (
            f"<tr><td>{escape(group.label)}</td><td class='right'>{len(group.runs)}{left}</td><td>{escape(seeds)}</td>"
            f"<td class='right'>{_spread(best)}</td><td class='right'>{_spread(last)}</td></tr>"
        )
    heads = _heads("runs that differ only in the seed", "n", "seeds", "best mIoU, mean ± std", "last mIoU, mean ± std")
    content = f"<div class='scroll'><table><thead>{heads}</thead><tbody>{rows}</tbody></table></div>"
    return content + _comparisons(groups)


def _comparisons(groups: Sequence[SeedGroup]) -> str:
    rows = ""
    for first, second, found in compare_groups(groups):
        low, high = found.mean - found.half_width, found.mean + found.half_width
        verdict = "differs from 0" if found.significant else "may be chance: the interval holds 0"
        rows += (
            f"<tr><td>{escape(second.label)}</td><td>{escape(first.label)}</td><td class='right'>{found.n}</td>"
            f"<td class='right'>{found.mean:+.2f}</td><td class='right'>{low:+.2f} to {high:+.2f}</td>"
            f"<td>{verdict}</td></tr>"
        )
    if not rows:
        return ""
    heads = _heads("this", "minus this", "common seeds", "difference", "95 % interval", "")
    note = "Paired differences of the best mIoU over the seeds that both were run with (Student's t)."
    return f"<p><br>{note}</p><div class='scroll'><table><thead>{heads}</thead><tbody>{rows}</tbody></table></div>"


def _heads(*names: str) -> str:
    right = {"n", "common seeds", "difference", "95 % interval"}
    marks = (" class='right'" if name in right or "mean" in name else "" for name in names)
    return "<tr>" + "".join(f"<th{mark}>{name}</th>" for mark, name in zip(marks, names, strict=True)) + "</tr>"


def _spread(value: Spread | None) -> str:
    return "-" if value is None or value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


# Pictures: each is in the colour of its run, and hidden with it


def _legend(shown: Sequence[tuple[int, Run]], settings: Sequence[Column]) -> str:
    """A chip for each run, with what sets it apart where that is little."""
    chips = ""
    for color, run in shown:
        values = ", ".join(
            f"{c.key.rpartition('.')[2]} {show(run.settings[c.key])}" for c in settings if c.key in run.settings
        )
        apart = f" <small>{escape(values)}</small>" if values and len(settings) <= _CHIP_SETTINGS else ""
        chips += (
            f'<button type="button" class="chip r{color}" data-run="{color}" aria-pressed="true" '
            f'title="show or hide {escape(run.name)}"><span class="dot"></span>{escape(run.name)}{apart}</button>'
        )
    return f'<nav class="legend" aria-label="runs shown below">{chips}</nav>\n'


def _curves(shown: Sequence[tuple[int, Run]]) -> str:
    terms = dict.fromkeys(key for _, run in shown for row in run.train for key in row if key not in _SIDE)
    scores = dict.fromkeys(k for _, run in shown for v in run.validations for k in v.scores if "/" not in k)
    trainings = [(color, run) for color, run in shown if len(run.validations) > 1 or run.train]
    main = [_training(trainings, "loss"), _validation(trainings, "mIoU")]
    more = [_training(trainings, key) for key in (*terms, *_TITLES) if key != "loss"]
    more += [_validation(trainings, key) for key in scores if key != "mIoU"]
    content = f'<div class="cards">{"".join(main)}</div>' if any(main) else ""
    if any(more):
        content += f'<details><summary>All curves</summary><div class="cards">{"".join(more)}</div></details>'
    return content


def _training(shown: Sequence[tuple[int, Run]], key: str) -> str:
    def points(run: Run) -> list[tuple[float, float]]:
        return [(step, v) for row in run.train if (v := row.get(key)) is not None and (step := row["step"]) is not None]

    loss = key == "loss" or key not in _TITLES
    curves = [Curve(color, run.name, points(run)) for color, run in shown]
    return chart(_TITLES.get(key, f"training {key}"), curves, smoothed=loss, may_be_log=loss)


def _validation(shown: Sequence[tuple[int, Run]], key: str) -> str:
    curves = [
        Curve(color, run.name, [(v.step, value) for v in run.validations if (value := v.scores.get(key)) is not None])
        for color, run in shown
    ]
    return chart(f"validation {key}", curves)


def _classes(shown: Sequence[tuple[int, Run]]) -> str:
    names = dict.fromkeys(
        key.removeprefix("IoU/") for _, run in shown if run.best for key in run.best.scores if key.startswith("IoU/")
    )
    colors = {name: color for _, run in shown for name, color in _class_colors(run).items()}
    cards = ""
    for name in names:
        bars = ""
        for color, run in shown:
            if run.best is None or f"IoU/{name}" not in run.best.scores:
                continue
            value = run.best.scores[f"IoU/{name}"]
            label = "-" if value is None else f"{value:.1f}"
            bars += (
                f'<div class="bar run r{color}" title="{escape(run.name)}: {label}">'
                f'<i style="--v:{value or 0:.1f}%"></i>{label}</div>'
            )
        swatch = f'<span class="swatch" style="background:{colors[name]}"></span>' if name in colors else ""
        cards += f'<div class="class"><h3>{swatch}{escape(name)}</h3>{bars}</div>'
    return f'<div class="classes">{cards}</div>' if cards else ""


def _class_colors(run: Run) -> dict[str, str]:
    found = {}
    for row in run.settings.get("dataset.classes") or []:
        color = row.get("color") if isinstance(row, dict) else None
        if isinstance(color, list) and len(color) == 3 and all(isinstance(part, int) for part in color):
            found[str(row.get("name"))] = "#" + "".join(f"{part & 255:02x}" for part in color)
    return found


def _confusions(shown: Sequence[tuple[int, Run]]) -> str:
    def draw(run: Run) -> tuple[str, str] | None:
        with_matrix = [v for v in run.validations if v.confusion]
        if not with_matrix:
            return None
        found = run.best if run.best in with_matrix else with_matrix[-1]
        assert found is not None and found.confusion is not None, "chosen from those with a matrix"
        names = [key.removeprefix("IoU/") for key in found.scores if key.startswith("IoU/")]
        names = names if len(names) == len(found.confusion) else [str(i) for i in range(len(found.confusion))]
        return f"step {found.step}", confusion_table(names, found.confusion)

    return _figures(shown, draw)


def confusion_table(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """A confusion matrix [truth][prediction] of pixel counts as shares of its rows."""
    heads = "".join(f"<th><span>{escape(name)}</span></th>" for name in names)
    rows = ""
    for name, counts in zip(names, matrix, strict=True):
        total = sum(counts)
        cells = ""
        for other, count in zip(names, counts, strict=True):
            share = count / total if total else 0.0
            words = f"{100 * share:.0f}" if total else ""
            strong = ' class="strong"' if share > 0.6 else ""
            label = f"{escape(name)} taken for {escape(other)}: {count:,} pixels"
            cells += f'<td{strong} style="--v:{share:.3f}" title="{label}">{words}</td>'
        rows += f'<tr><th title="{escape(name)}">{escape(name)}</th>{cells}</tr>'
    return (
        '<div class="scroll"><table class="confusion">'
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _samples(shown: Sequence[tuple[int, Run]]) -> str:
    def draw(run: Run) -> tuple[str, str] | None:
        found = next((v for v in reversed(run.validations) if v.panels), None)
        if found is None or found.panels is None or (source := picture(found.panels)) is None:
            return None
        label = f"samples of {escape(run.name)} at step {found.step}"
        return f"step {found.step}", f'<img src="{source}" alt="{label}" tabindex="0">'

    figures = _figures(shown, draw)
    return figures.replace('class="cards"', 'class="cards samples"', 1)


def picture(path: Path) -> str | None:
    """A picture as a data URI, scaled down; None if it can't be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        return None
    if (width := image.shape[1]) > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, round(image.shape[0] * _PICTURE_WIDTH / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 85])
    assert done, "OpenCV encodes any picture that it has decoded"
    return f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _figures(shown: Sequence[tuple[int, Run]], draw: Callable[[Run], tuple[str, str] | None]) -> str:
    """Cards of the runs for which `draw` returns a note and a content."""
    drawn = [(color, run, found) for color, run in shown if (found := draw(run)) is not None]
    figures = "".join(
        f'<figure class="run r{color}"><figcaption><span class="dot"></span>{escape(run.name)} <small>{note}</small>'
        f"</figcaption>{content}</figure>"
        for color, run, (note, content) in drawn
    )
    return f'<div class="cards">{figures}</div>' if figures else ""
