from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import fail, make_run
from runs import command

from pfseg.errors import ConfigError
from pfseg.reporting.page import to_html
from pfseg.reporting.runs import Run, find_runs, read_runs
from pfseg.reporting.selection import compare_groups, differing, group_seeds, select
from pfseg.reporting.table import build_table, to_csv, to_latex, to_markdown
from pfseg.tracking.records import RecordWriter


def read(*places: Path) -> list[Run]:
    return read_runs(find_runs([str(place) for place in places]))


def one(folder: Path) -> Run:
    (run,) = read(folder)
    return run


def sweep(top: Path) -> Path:
    for number, (weight, seed) in enumerate((w, s) for w in (1.0, 25.0) for s in (0, 1)):
        make_run(top / str(number), seed=seed, edge_weight=weight, panels=False)
    return top


def test_runs_are_found_below_folders_and_by_patterns(tmp_path: Path):
    for name in ("10", "9", "b/ein Lauf ü"):
        make_run(tmp_path / name, panels=False)
    (tmp_path / "9" / "wandb" / "x").mkdir(parents=True)
    (tmp_path / "9" / "wandb" / "x" / "metrics.jsonl").touch()
    assert [run.name for run in read(tmp_path)] == ["9", "10", "b/ein Lauf ü"]
    assert len(read(tmp_path / "*", tmp_path / "9")) == 3
    assert one(tmp_path / "9").name == "pfnet_r18_dubai 9"
    assert one(tmp_path / "10" / "metrics.jsonl").folder == tmp_path / "10"


def evaluate(run: Path, name: str = "2026-01-01", overlap: float = 0) -> Path:
    """Write an evaluation of a run as evaluate.py leaves it."""
    folder = run / "evaluate" / name
    writer = RecordWriter(folder / "metrics.jsonl")
    writer.write("start", step=60, epoch=0, steps=0)
    writer.write("val", step=60, epoch=0, **{"val/mIoU": 12.5})
    writer.write("confusion", step=60, epoch=0, confusion=[[3, 1], [0, 2]])
    writer.write("end", step=60, epoch=0, status="done")
    settings = f"job: evaluate\nsplit: test\nseed: 0\noverlap: {overlap}\nflips: none\ndataset: {{root: null}}\n"
    (folder / "resolved.yaml").write_text(settings)
    return folder


def test_trainings_and_evaluations_differ_in_what_both_have(tmp_path: Path):
    for seed in (0, 1):
        evaluate(make_run(tmp_path / str(seed), seed=seed, panels=False))
    runs = read(tmp_path)
    assert [run.settings["seed"] for run in runs] == [0, 0, 1, 1], "an evaluation counts by its training's seed"
    assert differing(runs) == ["seed"]
    evaluate(tmp_path / "0", "overlapping", overlap=0.5)
    runs = read(tmp_path)
    assert differing(runs) == ["overlap", "seed"]
    table = build_table(runs)
    assert "null" not in to_csv(table) and "null" not in to_html(table)
    assert [row.cells.get("overlap") for row in table.rows if row.run and row.run.job == "train"] == [None, None]


def test_an_evaluation_takes_the_settings_of_its_run(tmp_path: Path):
    evaluate(make_run(tmp_path / "run", edge_weight=25.0))
    evaluation = read(tmp_path)[1]
    assert evaluation.job == "evaluate test" and evaluation.best is not None and evaluation.best.miou == 12.5
    assert evaluation.settings["loss.edge_weight"] == 25.0 and evaluation.settings["dataset.root"] == "/data/dubai"
    assert evaluation.best.confusion == [[3, 1], [0, 2]]
    assert "job" in [column.key for column in build_table(read(tmp_path)).columns]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("done", "finished"), ("early_stop", "finished"), ("out_of_time", "finished"), ("stopped", "stopped")],
)
def test_status_of_an_ended_run(tmp_path: Path, status: str, expected: str):
    folder = make_run(tmp_path / "run", status=status, panels=False)
    assert one(folder).status == expected
    (folder / "result.json").unlink()  # killed after its end row
    assert one(folder).status == expected


def test_status_of_a_failed_run(tmp_path: Path):
    folder = make_run(tmp_path / "run", status=None, panels=False)
    fail(folder, "the loss is not finite\nsecond line", user=False)
    assert (one(folder).status, one(folder).detail) == ("failed", "JobError: the loss is not finite")
    never = tmp_path / "job"
    (never / ".hydra").mkdir(parents=True)
    (never / "error.txt").write_text("error: no such device\n")
    assert (one(never).status, one(never).detail) == ("failed", "no such device")
    (never / "error.txt").write_text("Traceback (most recent call last):\n  File x\nValueError: what\n")
    assert one(never).detail == "ValueError: what"


def test_a_run_is_running_while_a_process_writes_its_log(tmp_path: Path):
    folder = make_run(tmp_path / "run", status=None, panels=False)
    assert one(folder).status == "lost"
    (folder / "worker.log").touch()
    script = f"import time; f = open({str(folder / 'worker.log')!r}, 'ab'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        assert one(folder).status == "running"
        process.kill()
    assert one(folder).status == "lost"
    with open(folder / "worker.log", "rb"):  # somebody reading it, as `tail -f`
        assert one(folder).status == "lost"


def test_a_resumed_and_killed_run_is_lost(tmp_path: Path):
    folder = make_run(tmp_path / "run", status="stopped", panels=False)
    (folder / "result.json").unlink()
    RecordWriter(folder / "metrics.jsonl").write("start", step=60, epoch=3, steps=90)
    assert one(folder).status == "lost" and one(folder).total == 90


def test_a_run_of_another_host_runs_while_its_rows_are_fresh(tmp_path: Path):
    folder = make_run(tmp_path / "run", status=None, panels=False, host="elsewhere")
    assert (one(folder).status, one(folder).detail) == ("running", "on elsewhere")
    os.utime(folder / "metrics.jsonl", (1.0, time.time() - 3600))
    assert one(folder).status == "lost" and "elsewhere" in one(folder).detail


def test_damaged_rows_are_counted_and_the_rest_is_read(tmp_path: Path):
    folder = make_run(tmp_path / "run", panels=False)
    (folder / "result.json").unlink()
    whole = one(folder)
    head = b'"step": 61, "epoch": 3, "time": 9e9'
    damage = [b"not json", b"\xff\xfe", b"[1]", b'{"event": "val"}', b'{"event": "val", %s, "panels": 3}' % head]
    nan = b'{"event": "val", %s, "val/mIoU": NaN, "val/IoU/land": null}' % head
    confused = b'{"event": "confusion", %s, "confusion": [[1], [2]]}' % head
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\n".join([*damage, nan, confused, b'{"event": "torn", "st']))
    run = one(folder)
    assert run.unreadable == 6 and run.best == whole.best
    assert run.last is not None and run.last.miou is None and run.last.confusion is None
    (folder / "resolved.yaml").write_text("{a: [")
    assert one(folder).unreadable == 7 and one(folder).settings["model"] == "pfnet_r18"
    cells = build_table([run]).rows[0].cells
    assert cells["last"] is None and "6 unreadable lines" in str(cells["detail"])


def test_time_is_summed_over_resumptions(tmp_path: Path):
    events = [("start", 10.0), ("train", 15.0), ("start", 100.0), ("train", 102.5)]
    lines = (json.dumps({"event": event, "step": 1, "epoch": 0, "time": time}) for event, time in events)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert one(tmp_path / "run").seconds == 7.5


def test_only_settings_that_differ_are_shown(tmp_path: Path):
    make_run(tmp_path / "a", panels=False)
    assert differing(read(tmp_path)) == []
    make_run(tmp_path / "b", seed=1, panels=False)
    assert differing(read(tmp_path)) == ["seed"]
    make_run(tmp_path / "c", model="pfnet_r50", panels=False)  # its match_dim follows from the choice
    assert differing(read(tmp_path)) == ["model", "seed"]
    make_run(tmp_path / "d", model="pfnet_r50", panels=False, overrides=("model.match_dim=128",))
    assert differing(read(tmp_path)) == ["model", "model.match_dim", "seed"]


def test_where_filters_on_settings_groups_and_status(tmp_path: Path):
    runs = read(sweep(tmp_path))
    make_run(tmp_path / "r50", model="pfnet_r50", panels=False, status="stopped")
    runs = read(tmp_path)
    assert [run.name for run in select(runs, ["model=pfnet_r50"])] == ["r50"]
    assert [run.name for run in select(runs, ["loss.edge_weight=25", "seed=1"])] == ["3"]
    assert [run.name for run in select(runs, ["loss.edge_weight=2.5e1", "seed=0"])] == ["2"]
    assert len(select(runs, ["status=finished"])) == 4
    with pytest.raises(ConfigError, match=r"unknown key `loss.edge_wieght`: did you mean `loss.edge_weight`"):
        select(runs, ["loss.edge_wieght=1"])
    with pytest.raises(ConfigError, match=r"unknown key `modle`: did you mean `model`"):
        select(runs, ["modle=pfnet_r50"])
    with pytest.raises(ConfigError, match=r"leaves no run: model is pfnet_r18 \| pfnet_r50 in"):
        select(runs, ["model=unet"])
    with pytest.raises(ConfigError, match="expected key=value"):
        select(runs, ["model"])


def test_sorting(tmp_path: Path):
    runs = read(sweep(tmp_path))
    make_run(tmp_path / "none", steps=5, panels=False)
    runs = read(tmp_path)
    scores = [run.best.miou if run.best else None for run in build_table(runs).runs]
    assert scores[-1] is None and scores[:-1] == sorted(scores[:-1], reverse=True)  # type: ignore[type-var]
    assert [r.settings["seed"] for r in build_table(runs, "seed:desc").runs] == [1, 1, 0, 0, 0]
    assert build_table(runs, "steps").runs[0].name == "none"
    assert build_table(runs, "loss.edge_weight:desc").runs[0].settings["loss.edge_weight"] == 25
    with pytest.raises(ConfigError, match="direction 'up'"):
        build_table(runs, "seed:up")
    with pytest.raises(ConfigError, match="unknown key `stesp`: did you mean `steps`"):
        build_table(runs, "stesp")


def test_runs_that_differ_only_in_the_seed_are_grouped(tmp_path: Path):
    sweep(tmp_path)
    make_run(tmp_path / "4", seed=2, status="stopped", panels=False)
    make_run(tmp_path / "5", seed=0, model="pfnet_r50", panels=False)
    runs = read(tmp_path)
    groups = group_seeds(runs)
    assert [(g.label, len(g.runs), g.left_out) for g in groups] == [
        ("loss.edge_weight=1", 2, 1),
        ("loss.edge_weight=25", 2, 0),
    ]
    ((first, second, difference),) = compare_groups(groups)
    miou = {run.name: run.best.miou for run in runs if run.best and run.best.miou}
    expected = (miou["2"] - miou["0"] + miou["3"] - miou["1"]) / 2
    assert (first, second) == (groups[0], groups[1]) and difference.mean == pytest.approx(expected)


def test_many_groups_are_compared_with_the_best_one(tmp_path: Path):
    for weight in range(7):
        for seed in (0, 1):
            place = tmp_path / f"{weight} {seed}"
            make_run(place, seed=seed, edge_weight=weight, quality=0.9 if weight == 4 else 0.3, panels=False)
    compared = compare_groups(group_seeds(read(tmp_path)))
    assert len(compared) == 6 and {second.label for _, second, _ in compared} == {"loss.edge_weight=4"}


def test_networks_are_compared_with_their_cost(tmp_path: Path):
    for model in ("pfnet_r18", "pfnet_r50"):
        for seed in (0, 1):
            make_run(tmp_path / f"{model} {seed}", seed=seed, model=model, panels=False)
    table = build_table(read(tmp_path), "run")
    head, _, first, *_, means = to_markdown(table).splitlines()
    assert "| M param. | G mult-adds | images/s |" in head and "| 12.9 | 30.4 | 5.0 |" in first
    assert "| 31.3 | 30.4 | 5.0 ± 0.0 |" in means
    make_run(tmp_path / "alone", panels=False)
    assert "param." not in to_markdown(build_table(read(tmp_path / "alone")))


def test_long_runs_show_their_steps_in_full(tmp_path: Path):
    writer = RecordWriter(make_run(tmp_path / "run", panels=False) / "metrics.jsonl")
    writer.write("train", step=1_234_567, epoch=9, **{"train/loss": 0.1})
    assert "| 1234567 |" in to_markdown(build_table(read(tmp_path)))


def test_csv_has_full_precision_and_rows_of_means(tmp_path: Path):
    table = build_table(read(sweep(tmp_path)), "run")
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert [row["run"] for row in rows[:5]] == ["0", "1", "2", "3", "mean of 2 seeds"]
    values = [float(row["best mIoU"]) for row in rows[:2]]
    assert values == [run.best.miou for run in table.runs[:2] if run.best]
    assert float(rows[4]["best mIoU"]) == pytest.approx(sum(values) / 2)
    assert float(rows[5]["best mIoU"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert rows[4]["loss.edge_weight"] == "1" and rows[4]["seed"] == ""


def test_markdown_and_latex_are_escaped_and_aligned(tmp_path: Path):
    make_run(tmp_path / "a|b_50%", seed=0, panels=False)
    make_run(tmp_path / "c", seed=1, model="pfnet_r50", panels=False)
    table = build_table(read(tmp_path), "run")
    head, rule, first, _ = to_markdown(table).splitlines()
    assert head.count("|") == rule.count("|") == first.replace("\\|", "").count("|")
    assert "a\\|b\\_50%" in first and rule.startswith("| --- | --- | ---: | ---: | --- | ---: |")
    latex = to_latex(table)
    assert r"a\textbar{}b\_50\%" in latex and r"pfnet\_r50" in latex and r"\begin{tabular}{llrrlrr" in latex
    assert r"$\pm$" in to_latex(build_table(read(sweep(tmp_path / "s"))))


@pytest.mark.system("pdflatex")
def test_latex_compiles(tmp_path: Path):
    table = to_latex(build_table(read(sweep(tmp_path / 's {~^\\"<>}'))))
    page = f"\\documentclass{{article}}\\usepackage[T1]{{fontenc}}\\usepackage{{booktabs}}\\begin{{document}}{table}"
    (tmp_path / "t.tex").write_text(page + "\\end{document}")
    subprocess.run(["pdflatex", "-interaction=batchmode", "t.tex"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("columns", [60, 100, 180])
def test_terminal_table_fits_its_width(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sweep(tmp_path / "s")
    fail(make_run(tmp_path / "s" / "größer", model="pfnet_r50", status=None, panels=False), "out of memory")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert command("report", str(tmp_path / "s")) == 0
    out = capsys.readouterr().out
    for expected in ("größer", "failed", "out of memory", "edge_weight=25", "± ", "95 % interval"):
        assert expected in " ".join(out.split()), out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    assert command("report", str(tmp_path / "empty")) == 2
    assert "no run in" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert command("report", str(tmp_path / "nothing*")) == 2
    assert "does not exist and matches nothing" in capsys.readouterr().err
    make_run(tmp_path / "run", panels=False)
    (tmp_path / "file").touch()
    assert command("report", str(tmp_path / "run"), f"csv={tmp_path}/file/x.csv") == 1
    assert f"{tmp_path}/file/x.csv can't be written" in capsys.readouterr().err


def test_the_command_writes_all_files(tmp_path: Path):
    sweep(tmp_path / "s")
    files = [f"{form}={tmp_path / form}" for form in ("html", "csv", "markdown", "latex")]
    command = [sys.executable, "-m", "pfseg", "report", str(tmp_path / "s" / "*"), *files, "where=['seed=1']"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "loss.edge_weight" in done.stdout and not done.stderr
    assert len((tmp_path / "csv").read_text().splitlines()) == 3
    assert (tmp_path / "html").read_text().startswith("<!doctype html>")
