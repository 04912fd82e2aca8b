"""Segmentation scores from a confusion matrix (K, K) int64, rows the truth, which may be summed over ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pfseg.errors import DataError


def confusion_matrix(pred: np.ndarray, mask: np.ndarray, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """Count pixels as (K, K) int64, `[truth, prediction]`, but the ignored; DataError for other labels and shapes."""
    if pred.shape != mask.shape:
        raise DataError(f"prediction of shape {pred.shape} and mask of shape {mask.shape} cannot be compared")
    valid = mask != ignore_index
    truth, predicted = mask[valid].astype(np.int64), pred[valid].astype(np.int64)
    for what, values in (("mask", truth), ("prediction", predicted)):
        check_labels(what, values, num_classes, ignore_index)
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def check_labels(what: str, values: np.ndarray, num_classes: int, ignore_index: int) -> None:
    """Raise DataError unless all of `values`, none of them ignored, are in [0, K)."""
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
        raise DataError(
            f"{what} has labels from {values.min()} to {values.max()}; expected 0..{num_classes - 1} "
            f"or {ignore_index} (config: dataset.classes, dataset.ignore_index)"
        )


def scores(confusion: np.ndarray, class_names: Sequence[str], exclude: Collection[str] = ()) -> dict[str, float]:
    """All scores of a confusion matrix (K, K), `[truth, prediction]`.

    A score whose denominator is 0 is NaN and left out of the means: the IoU and F1 of a class that occurs neither in
    the truth nor in the prediction, the precision of a class never predicted, the recall of a class not in the truth.
    `mIoU`, `mF1` and `mAcc` leave out the classes of `exclude`; their pixels are still counted in all other scores.

    Returns:
        `mIoU`, `mF1`, `OA` (share of pixels that are right), `mAcc` (mean recall), `fwIoU` (IoU weighted by how
            frequent the class is), all in percent; `kappa` (Cohen's, -1..1); then for every class `IoU/<class>`,
            `precision/<class>`, `recall/<class>`, `F1/<class>` in percent.
    """
    counts = confusion.astype(np.float64)
    correct, truth, predicted, total = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    iou = divide(correct, truth + predicted - correct)
    per_class = {
        "IoU": iou,
        "precision": divide(correct, predicted),
        "recall": divide(correct, truth),
        "F1": divide(2 * correct, truth + predicted),
    }
    kept = [name not in exclude for name in class_names]
    accuracy = float(divide(correct.sum(), total))
    chance = float(divide((truth * predicted).sum(), total**2))
    result = {
        "mIoU": _mean(iou[kept]),
        "mF1": _mean(per_class["F1"][kept]),
        "OA": accuracy,
        "mAcc": _mean(per_class["recall"][kept]),
        "fwIoU": float(divide(np.nansum(truth * iou), total)),
    }
    result = {key: 100 * value for key, value in result.items()}
    # With a single class agreement by chance is certain: kappa is undefined.
    result["kappa"] = float(divide(np.array(accuracy - chance), np.array(1 - chance)))
    for position, name in enumerate(class_names):
        for key, values in per_class.items():
            result[f"{key}/{name}"] = 100 * float(values[position])
    return result


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0."""
    nothing = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) != 0)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
