#!/usr/bin/env bash
# How this folder was made: `make.sh <clone of revision 7252cb6>` in an empty folder that holds conf/ and small.py.
set -euo pipefail
export PYTHONPATH=$1:$PWD OMP_NUM_THREADS=1
python - << 'END'
from pathlib import Path

import cv2
import numpy as np

COLORS = np.array([[0, 0, 0], [0, 0, 63], [0, 63, 63], [0, 127, 255], [0, 100, 155]], np.uint8)
for seed, scene in enumerate(["train/images/P0000", "train/images/P0002", "val/images/P0003"]):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, len(COLORS), (3, 4), np.uint8)
    labels = np.kron(coarse, np.ones((32, 32), np.uint8))[:80, :120]
    image = COLORS[labels].astype(int) // 2 + 60 + rng.integers(0, 8, (80, 120, 1))
    path = Path("archive", f"{scene}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.astype(np.uint8)[..., ::-1])
    cv2.imwrite(str(path.with_name(f"{path.stem}_instance_color_RGB.png")), COLORS[labels][..., ::-1])
END
python -m pfseg.prepare dataset=isaid src=archive out=patches dataset.prepare.size=64 dataset.prepare.stride=48 workers=1
python "$1/train.py" --config-dir conf dataset=isaid dataset.root=patches dataset.crop_size=64 dataset.eval_size=64 \
  dataset.resolution=1.0 model/backbone=small model.fpn_dim=8 model.match_dim=4 loss.over_ranks=true \
  launch.heartbeat=120 logger=none gpus=0 ranks=1 batch_size=4 trainer.max_epochs=1 trainer.log_every=1 \
  trainer.workers=0 trainer.num_samples=1 trainer.bn_batches=0 schedule=constant hydra.run.dir=run
# expected.json: what the same revision then reported
cp -r run resumed
python "$1/evaluate.py" checkpoint=run trust=true gpus=0 ranks=1 hydra.run.dir=scores
python "$1/train.py" --config-dir conf resume=resumed trainer.max_epochs=2
