"""What a user adds is one YAML file in `conf/` and one module, both in the folder that training is started from."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import CPU, ENVIRONMENT, ROOT, rows

pytestmark = pytest.mark.slow

TWO_STEPS = [*CPU, "trainer.max_steps=2", "trainer.bn_batches=0", "trainer.num_samples=1", "schedule.warmup_steps=0"]
SCENES = ["dataset.size=64", "dataset.train_images=4", "dataset.val_images=2"]
NETWORK = ["model.fpn_dim=16", "model.match_dim=8"]


class Addition(NamedTuple):
    """What a user writes, and how they train with it.

    Attributes:
        settings: path of the YAML file below `conf/`, and its text.
        module: name of the module, and its text.
        overrides: of the training.
    """

    settings: tuple[str, str]
    module: tuple[str, str]
    overrides: list[str]


DATA_SET = Addition(
    settings=(
        "dataset/stripes.yaml",
        """
        defaults: [synthetic, _self_]
        _target_: stripes.Stripes
        name: stripes
        classes:
          - {name: dark, color: "3C3C3C"}
          - {name: bright, color: "B4B4B4"}
        width: 8
        """,
    ),
    module=(
        "stripes.py",
        """
        import numpy as np
        from pfseg.data import base

        class Stripes(base.SegmentationDataset):
            def __init__(self, split, classes, width):
                self.classes = base.parse_classes(classes)
                self.warnings = []
                self.width = width

            def __len__(self):
                return 4

            def read(self, index):
                columns = (np.arange(64) + index) // self.width % 2
                mask = np.tile(columns.astype(np.uint8), (64, 1))
                image = np.where(mask[..., None] > 0, 180, 60).repeat(3, 2).astype(np.uint8)
                return base.Sample(image, mask, f"{index}")
        """,
    ),
    overrides=["dataset=stripes", "dataset.crop_size=64", *NETWORK],
)

BACKBONE = Addition(
    settings=("model/backbone/thin.yaml", "{_target_: thin.Backbone, width: 4}"),
    module=(
        "thin.py",
        """
        from pfseg.runtime import jt

        nn = jt.nn

        class Backbone(nn.Module):
            feature_strides = (4, 8, 16, 32)

            def __init__(self, width):
                super().__init__()
                self.out_channels = (width,) * 4
                self.layer0 = nn.Conv(3, width, 4, stride=4)
                self.layer1 = nn.Conv(width, width, 3, padding=1)
                for number in (2, 3, 4):
                    setattr(self, f"layer{number}", nn.Conv(width, width, 3, stride=2, padding=1))
        """,
    ),
    overrides=["model/backbone=thin", "dataset.crop_size=64", *SCENES, *NETWORK],
)

HEAD = Addition(
    settings=(
        "model/plain.yaml",
        """
        defaults:
          - backbone: resnet18
          - _self_
        _target_: plain.PlainNetwork
        name: plain
        num_classes: null
        pretrained: null
        init: null
        width: 16
        """,
    ),
    module=(
        "plain.py",
        """
        from pfseg import SegOutput
        from pfseg.runtime import jt

        nn = jt.nn

        class PlainNetwork(nn.Module):
            output_stride = 32

            def __init__(self, backbone, num_classes, width):
                super().__init__()
                self.backbone = backbone
                self.head = nn.Sequential(nn.Conv(backbone.out_channels[3], width, 1), nn.Conv(width, num_classes, 1))

            def predict(self, image):
                x = self.backbone.layer0(image)
                for number in range(1, 5):
                    x = getattr(self.backbone, f"layer{number}")(x)
                return nn.resize(self.head(x), image.shape[2:], mode="bilinear")

            def execute(self, image):
                return SegOutput(self.predict(image))
        """,
    ),
    overrides=["model=plain", "loss=ce", "dataset.crop_size=64", *SCENES],
)

LOSS = Addition(
    settings=("loss/squared.yaml", "{_target_: squared.SquaredError, weight: 2.0}"),
    module=(
        "squared.py",
        """
        import numpy as np
        from pfseg.runtime import jt

        class SquaredError:
            def __init__(self, weight):
                self.weight = weight

            def __call__(self, output, batch):
                logits, mask = output.logits, batch["mask"]
                classes = jt.array(np.arange(logits.shape[1], dtype=np.int32)).reshape(1, -1, 1, 1)
                truth = (mask.unsqueeze(1) == classes).float32()
                return {"squared": self.weight * ((jt.nn.softmax(logits, dim=1) - truth) ** 2).mean()}
        """,
    ),
    overrides=["loss=squared", "dataset.crop_size=64", *SCENES, *NETWORK],
)

LOGGER = Addition(
    settings=(
        "logger/scores.yaml",
        """
        # @package logger.scores
        _target_: scores.ScoresLogger
        file: scores.txt
        """,
    ),
    module=(
        "scores.py",
        """
        from pfseg.tracking.records import Sink

        class ScoresLogger(Sink):
            def __init__(self, run, file):
                self.path = run.folder / file

            def on_val(self, row):
                with self.path.open("a") as file:
                    file.write(f"{row['step']}\\n")
        """,
    ),
    overrides=["logger=scores", "dataset.crop_size=64", *SCENES, *NETWORK],
)

ADDITIONS = {"data set": DATA_SET, "backbone": BACKBONE, "head": HEAD, "loss": LOSS, "logger": LOGGER}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_one_yaml_file_and_one_module_are_all_that_is_added(kind: str, tmp_path: Path):
    addition = ADDITIONS[kind]
    for name, text in ((f"conf/{addition.settings[0]}", addition.settings[1]), addition.module):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    overrides = [*TWO_STEPS, *addition.overrides, "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "pfseg", "train", *overrides],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    assert [row["step"] for row in rows(run, "train")] == [1, 2]
    assert (run / "checkpoints" / "best.safetensors").is_file()
    if kind == "loss":
        assert "train/squared" in rows(run, "train")[0]
    if kind == "logger":
        assert (run / "scores.txt").read_text().split() == [str(row["step"]) for row in rows(run, "val")]
