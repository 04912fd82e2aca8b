"""`pfseg settings`: every setting with its value, type and documentation."""

from __future__ import annotations

import pytest

from pfseg.commands.settings import run
from pfseg.config.reference import reference
from pfseg.errors import ConfigError


def test_all_settings_are_printed_with_their_documentation(capsys: pytest.CaptureFixture[str]):
    assert run([]) == 0
    told = capsys.readouterr().out
    assert all(row.key in told and row.doc in told for row in reference())


def test_a_command_or_a_key_prints_its_own(capsys: pytest.CaptureFixture[str]):
    run(["optimizer.lr"])
    told = capsys.readouterr().out
    assert "optimizer.lr=0.001  a number above 0" in told and "learning rate" in told
    assert "optimizer.eps" not in told and "pfseg evaluate" not in told
    run(["predict"])
    told = capsys.readouterr().out
    assert "pfseg predict" in told and "pfseg train" not in told


def test_an_unknown_one_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown command or setting `optimiser`: did you mean `optimizer`\?"):
        run(["optimiser"])
