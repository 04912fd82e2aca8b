from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser import Browser
from run_folders import NAMES, fail, make_run

from pfseg.reporting.page import MAX_SHOWN, to_html
from pfseg.reporting.runs import find_runs, read_runs
from pfseg.reporting.table import build_table

in_chromium = pytest.mark.system("chromium")


def page_of(top: Path) -> str:
    return to_html(build_table(read_runs(find_runs([str(top)]))))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine runs: seeds, another model, a failed one, one without validation, a name of many kinds of letters."""
    top = tmp_path_factory.mktemp("sweep")
    for number, (weight, seed) in enumerate((w, s) for w in (0.5, 1.0, 25.0) for s in (0, 1)):
        make_run(top / str(number), seed=seed, edge_weight=weight, quality=0.4 + number / 20)
    fail(make_run(top / "größer <b>&", model="pfnet_r50", status=None), "out of memory </script><b>")
    make_run(top / "short", steps=5, status=None)
    make_run(top / "8", seed=2, panels=False)
    file = top / "page.html"
    file.write_text(page_of(top), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_the_page_holds_everything(page: Path):
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", html) and "http" not in re.sub(r"http-equiv", "", html)
    for section in ("Runs", "Over seeds", "Curves", "IoU by class", "Confusion", "Samples"):
        assert f"<h2>{section}</h2>" in html
    assert "größer &lt;b&gt;&amp;" in html and "<b>&</b>" not in html and "</script><b>" not in html
    assert html.count("<img ") == 7 and html.count('class="confusion"') == MAX_SHOWN
    assert f"show the first {MAX_SHOWN} runs in the order of the table and leave out 1" in html
    assert all(f">{name}</h3>" in html for name in NAMES)


def test_a_single_run_has_no_statistics(tmp_path: Path):
    make_run(tmp_path / "run")
    html = page_of(tmp_path)
    assert "Over seeds" not in html and "leave out" not in html and "<h2>Samples</h2>" in html


def test_a_run_without_rows_still_gives_a_page(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    html = page_of(tmp_path)
    assert "1 run: 1 lost" in html and "<h2>Curves</h2>" not in html and "<h2>Samples</h2>" not in html


def test_class_colours_may_be_written_in_hex_or_be_damaged(tmp_path: Path):
    folder = make_run(tmp_path / "run", panels=False)
    settings = folder / "resolved.yaml"
    config = yaml.safe_load(settings.read_text())
    config["dataset"]["classes"][0]["color"] = "0A0BFF"
    settings.write_text(yaml.safe_dump(config))
    assert '<span class="swatch" style="background:#0a0bff"></span>land' in page_of(tmp_path)
    config["dataset"]["classes"][0] = "land"
    settings.write_text(yaml.safe_dump(config))
    assert "<h3>land</h3>" in page_of(tmp_path)


def test_a_damaged_picture_is_left_out(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / "samples" / "step_000060.png").write_bytes(b"\x89PNG torn")
    assert "<img" not in page_of(tmp_path)


def test_a_hundred_runs_stay_readable(tmp_path: Path):
    for number in range(100):
        make_run(tmp_path / str(number), seed=number, steps=20, val_every=10, panels=False)
    html = page_of(tmp_path)
    assert html.count("<tr><td") >= 100 and "leave out 92" in html and len(html) < 500_000
    assert html.count('class="chip') == MAX_SHOWN


@in_chromium
@pytest.mark.parametrize(("width", "dark", "mobile"), [(1400, False, False), (1400, True, False), (375, False, True)])
def test_layouts_in_chromium(page: Path, browser: Browser, width: int, dark: bool, mobile: bool):
    browser.open(page, width=width, dark=dark, mobile=mobile)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("window.innerWidth") == width  # a phone would zoom out of a wider page
    lightness = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(lightness) < 80) == dark
    size = (
        "Math.min(...[...document.querySelectorAll('.cards svg')].filter(s => s.clientWidth).map(s => s.clientWidth))"
    )
    assert browser.run(size) >= 320  # the labels of 12 units are 9 pixels at least
    assert browser.problems == []


@in_chromium
def test_a_click_sorts_the_table(page: Path, browser: Browser):
    browser.open(page, width=1400)
    seed = "[...document.querySelectorAll('.runs th')].findIndex(h => h.textContent === 'best mIoU')"
    column = f"[...document.querySelectorAll('.runs tbody tr')].map(r => r.cells[{seed}].dataset.v)"
    click = f"document.querySelectorAll('.runs th button')[{seed}].click()"
    browser.run(click)
    up = browser.run(column)
    browser.run(click)
    down = browser.run(column)
    assert up[-1] == down[-1] == "" and up[:-1] == down[-2::-1]
    assert [float(v) for v in up[:-1]] == sorted(float(v) for v in up[:-1])
    assert browser.problems == []


@in_chromium
def test_the_read_out_follows_the_pointer_and_hidden_runs_leave_it(page: Path, browser: Browser):
    browser.open(page, width=1400)
    box = browser.run(
        "(() => { const s = document.querySelector('.chart svg'); s.scrollIntoView({block: 'center'});"
        " const b = s.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    browser.move(box[0] + box[2] * 0.6, box[1] + box[3] * 0.5)
    lines = "[...document.querySelector('.readout').children].map(line => line.textContent)"
    before = browser.run(lines)
    assert len(before) == MAX_SHOWN and all(re.match(r"[\d.]+ {2}step \d+ {2}", line) for line in before)
    browser.run("document.querySelector('.chip').click()")
    assert browser.run("[...document.querySelectorAll('.run.r0')].every(e => getComputedStyle(e).display === 'none')")
    browser.move(box[0] + box[2] * 0.61, box[1] + box[3] * 0.5)
    assert len(browser.run(lines)) == MAX_SHOWN - 1
    assert browser.problems == []


@in_chromium
def test_the_page_is_forbidden_the_network(page: Path, browser: Browser, tmp_path: Path):
    """The check of the other tests can fail: a request shows among the problems."""
    file = tmp_path / "page.html"
    file.write_text(page.read_text().replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'))
    browser.open(file, width=1400)
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()
