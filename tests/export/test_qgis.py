"""Exported files by the rules of QGIS's plugin Deepness: what it checks when it loads a model, and how it uses one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from exported import export, make_checkpoint

from pfseg.inference.onnx_network import OnnxNetwork


class Segmentor:
    """What the plugin makes of a file, for segmentation."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (self.given,), (self.told,) = self.session.get_inputs(), self.session.get_outputs()
        assert len(self.told.shape) == 4 and self.told.shape[2] == self.told.shape[3]
        entries = self.session.get_modelmeta().custom_metadata_map
        self.entries: dict[str, Any] = {key: json.loads(text) for key, text in entries.items()}

    def names(self) -> list[str]:
        """Class names, whose ids have to be consecutive from 0."""
        rows = sorted(self.entries["class_names"].items(), key=lambda row: int(row[0]))
        assert [int(key) for key, _ in rows] == list(range(len(rows)))
        return [name for _, name in rows]

    def labels(self, tiles: np.ndarray) -> np.ndarray:
        """Classes (N, H, W) of tiles (N, H, W, bands) uint8: scaled to 0..1, cut to the channels, no softmax."""
        batch = np.float32(tiles[..., : self.given.shape[-3]] * 1.0 / 255.0).transpose(0, 3, 1, 2)
        (found,) = self.session.run(None, {self.given.name: batch})
        found[found < float(self.entries["seg_thresh"])] = 0
        return np.argmax(found, axis=1)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_plugin_maps_as_prediction_does(batch: int, tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "best.safetensors")
    options = ["ground_resolution=0.5", f"dynamic_batch={batch > 1}".lower(), "overlap=0.15"]
    path = export(checkpoint, tmp_path / "model.onnx", *options)
    plugin = Segmentor(path)
    assert str(plugin.entries["model_type"]).capitalize() == "Segmentor"
    assert plugin.names() == ["roof", "road", "tree"] and plugin.told.shape[-3] == 3
    assert int(plugin.entries["tile_size"]) == 96 and plugin.given.shape[-2:] == [96, 96]
    assert (float(plugin.entries["resolution"]), int(plugin.entries["tiles_overlap"])) == (50.0, 15)
    assert int(plugin.entries["seg_small_segment"]) // 2 * 2 + 1 == 1  # the side of its median filter
    tiles = np.random.default_rng(0).integers(0, 256, (batch, 96, 96, 4), np.uint8)  # RGBA
    mean, std = (np.array(plugin.entries[key], np.float32) for key in ("mean", "std"))
    normalised = ((tiles[..., :3] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    expected = OnnxNetwork(path).labels(np.ascontiguousarray(normalised, np.float32))
    labels = plugin.labels(tiles)
    assert (labels == expected).mean() > 0.999 and set(np.unique(labels)) == {0, 1, 2}
