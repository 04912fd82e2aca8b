"""The card of a model, in the format of the Hugging Face Hub: YAML at the head, then Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pfseg.data.base import ClassInfo

_CARD = """---
{head}---

# {title}

{what} trained by [pfseg](https://github.com/pfseg/pfseg) on {data}.
{picture}
## Use

```sh
pip install 'pfseg[onnx]'
pfseg predict checkpoint=<this folder>/model.onnx input=<images> output=<folder>
pfseg evaluate checkpoint=<this folder> dataset.root=<labelled images>
```

```python
from pfseg import create_model

model = create_model("<this folder>")
```

`model.onnx` runs by ONNX Runtime alone, and in QGIS by the plugin Deepness.

## Input

{channels} bands{bands}, scaled to 0..1, mean {mean}, deviation {std}.{stretch}

## Classes

| id | name | colour |
|---|---|---|
{classes}

## Scores

{scores}

## Training

{training}
"""


def model_card(
    meta: Mapping[str, Any], classes: Sequence[ClassInfo], found: Mapping[str, Any], picture: str | None
) -> str:
    """The card of a checkpoint with this metadata; `found` is what `metrics.json` says, `picture` a file beside it."""
    config = meta["config"]
    data, model = config["dataset"], config["model"]
    record = meta.get("input") or {}
    about = data.get("about") or {}
    scores = {key: value for key, value in found["scores"].items() if "/" not in key and value is not None}
    scores.pop("kappa", None)  # no percentage
    head: dict[str, Any] = {
        "library_name": "pfseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["remote-sensing", "aerial-images", "semantic-segmentation", "onnx", "jittor"],
    }
    if scores:
        metrics = [{"type": "mean_iou", "name": key, "value": round(value, 2)} for key, value in scores.items()]
        task = {"type": "image-segmentation"}
        result = {"task": task, "dataset": {"name": data["name"], "type": data["name"]}, "metrics": metrics[:1]}
        head["model-index"] = [{"name": model["name"], "results": [result]}]
    rows = [
        f"| {info.id if info.id is not None else k} | {info.name} | `{info.hex_color}` |"
        for k, info in enumerate(classes)
    ]
    ious = {info.name: found["scores"].get(f"IoU/{info.name}") for info in classes}
    lines = ["| measure | percent |", "|---|---|", *(f"| {key} | {value:.2f} |" for key, value in scores.items())]
    lines += [f"| IoU of {name} | {value:.2f} |" for name, value in ious.items() if value is not None]
    source = f"{data['name']} ({about['url']})" if about.get("url") else str(data["name"])
    training = [f"* data: {source}", f"* licence of the data: {about.get('licence') or 'not stated'}"]
    training += [f"* index of the patches: SHA-256 `{found['index']}`"] if found["index"] else []
    training += [f"* steps: {found['step']}", "* all settings: `config.yaml`"]
    return _CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        title=f"{model['name']} on {data['name']}",
        what=f"A network for the semantic segmentation of aerial images, {model['name']},",
        data=source,
        picture=f"\n![Samples: image, truth and prediction]({picture})\n" if picture else "",
        channels=len(data.get("mean") or (0, 0, 0)),
        bands=f" ({', '.join(map(str, record['bands']))} of the files, from 0)" if record.get("bands") else "",
        mean=data.get("mean"),
        std=data.get("std"),
        stretch=f" Beyond 8 bits they are stretched by `{record['stretch']}`." if record.get("stretch") else "",
        classes="\n".join(rows),
        scores="\n".join(lines) if scores else "Not scored.",
        training="\n".join(training),
    )
