from __future__ import annotations

import pytest

from pfseg.data.base import ClassInfo, class_ids, parse_classes, parse_color
from pfseg.errors import ConfigError


def test_class_table_is_read():
    rows = [{"name": "roof", "color": "#3C1098"}, {"name": "road", "color": [1, 2, 3], "id": 7}]
    classes = parse_classes(rows)
    assert classes == (ClassInfo("roof", (60, 16, 152)), ClassInfo("road", (1, 2, 3), 7))
    assert class_ids(classes) == [0, 7]
    assert parse_classes(classes) == classes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has 0 classes; expected 1 to 254"),
        ([{"name": "a"}], r"expected the keys name, color .*dataset.classes\[0\]"),
        (["a"], "expected the keys name, color"),
        ([{"name": "a", "color": "000000", "colour": 1}], "expected the keys"),
        ([{"name": "a", "color": "000000", "id": -1}], "id -1 is not a whole number"),
        ([{"name": "a", "color": "000000"}, {"name": "b", "color": [0, 0, 0]}], r"0 \(a\) and 1 \(b\) .* same colour"),
        ([{"name": "a", "color": "000000"}, {"name": "a", "color": "000001"}], "same name"),
        ([{"name": "a", "color": "000000", "id": 1}, {"name": "b", "color": "000001"}], "same id"),
    ],
)
def test_faulty_class_tables(rows, message):
    with pytest.raises(ConfigError, match=message):
        parse_classes(rows)


@pytest.mark.parametrize("value", [110000, 6e1098, "3C109", "GGGGGG", [1, 2], [1, 2, 256], [True, 0, 0]])
def test_faulty_colours(value):
    with pytest.raises(ConfigError, match=r"neither hex such as .*in quotes.*\(config: x\)"):
        parse_color(value, where="config: x")
