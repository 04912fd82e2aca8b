"""Which runs to show, in which order, by which settings they differ, and which repeat one another with other seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pfseg.config.validation import unknown_key
from pfseg.errors import ConfigError
from pfseg.reporting.runs import Run
from pfseg.reporting.statistics import Difference, Spread, paired_difference, spread
from pfseg.tracking.terminal import as_typed

MAX_PAIRS = 15
# What doesn't change a result, or follows from other settings.
_ASIDE = {"name", "job", "resume", "checkpoint", "split", "gpus", "logger", "launch", "debug"}
_FOLLOWS = {"model.num_classes", "dataset.classes"}


@dataclass
class SeedGroup:
    """Runs that differ only in `seed`.

    Attributes:
        label: what sets the group apart from the others shown.
        settings: the values of the shown settings, the seed left out.
        runs: finished ones, two at least.
        left_out: how many more are not finished or have no score.
    """

    label: str
    settings: dict[str, Any]
    runs: list[Run]
    left_out: int = 0

    @property
    def seeds(self) -> list[str]:
        """The seeds as texts, in the order of their numbers."""
        return sorted((as_typed(run.settings.get("seed")) for run in self.runs), key=lambda seed: (len(seed), seed))

    @property
    def best(self) -> Spread | None:
        """Spread of the runs' best mIoU."""
        return self.spread([run.best.miou if run.best else None for run in self.runs])

    @property
    def last(self) -> Spread | None:
        """Spread of the runs' last mIoU."""
        return self.spread([run.last.miou if run.last else None for run in self.runs])

    def spread(self, scores: Sequence[float | None]) -> Spread | None:
        """Mean and spread of scores of the group's runs; None where one has no value."""
        known = [score for score in scores if score is not None]
        return spread(known) if len(known) == len(self.runs) else None


def select(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Keep the runs that meet all conditions.

    Args:
        runs: all runs.
        conditions: `key=value`; key is a dotted setting, a group (`model=pfnet_r50`), `status` or `run`.

    Raises:
        ConfigError: a condition that isn't one, a key that no run has, or no run left.
    """
    kept = list(runs)
    for condition in conditions:
        key, equals, wanted = condition.partition("=")
        if not equals or not key:
            raise ConfigError(f"where=['{condition}']: expected key=value, such as where=['model=pfnet_r50']")
        _check_key(key, runs)
        present = sorted({as_typed(_lookup(run, key)) for run in kept})
        kept = [run for run in kept if _equal(_lookup(run, key), wanted)]
        if not kept:
            raise ConfigError(f"where=['{condition}'] leaves no run: {key} is {' | '.join(present)} in these runs")
    return kept


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings to show: those that differ between the runs, without what merely follows from another choice.

    Runs of two models differ in many of the model's settings; shown are then the choice and what differs between
    runs of the same choice and recipe, or was given on a command line.

    Returns:
        Choices of groups first, then dotted keys, then `seed`.
    """
    keys: dict[str, None] = {}
    for run in runs:
        keys |= dict.fromkeys(run.settings)
    shown = [key for key in keys if _counts(key) and _differs(key, runs)]
    return sorted(shown, key=lambda key: (key == "seed", key != "experiment", "." in key))


def group_seeds(runs: Sequence[Run]) -> list[SeedGroup]:
    """Group the runs that differ only in `seed`; groups of one finished run are left out."""
    groups: defaultdict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        same = sorted(
            (k, as_typed(v)) for k, v in run.settings.items() if k != "seed" and k.partition(".")[0] not in _ASIDE
        )
        groups[run.job, *same].append(run)
    repeated = [members for members in groups.values() if _repeated(members)]
    shown = [key for key in differing(runs) if key != "seed"]
    apart = [key for key in differing([run for members in repeated for run in members]) if key != "seed"]
    groups_of_seeds = []
    for members in repeated:
        settings = {key: members[0].settings[key] for key in shown if key in members[0].settings}
        job = [f"{members[0].job}:"] * (len({run.job for run in runs}) > 1)
        label = " ".join(
            [*job, *(f"{key}={as_typed(members[0].settings[key])}" for key in apart if key in members[0].settings)]
        )
        scored = _scored(members)
        default = str(members[0].settings.get("name", "all runs"))
        groups_of_seeds.append(SeedGroup(label or default, settings, scored, len(members) - len(scored)))
    return groups_of_seeds


def compare_groups(groups: Sequence[SeedGroup]) -> list[tuple[SeedGroup, SeedGroup, Difference]]:
    """Paired differences of the best mIoU: of all pairs, or if these are many, of each group with the best one.

    Trainings are compared with trainings, evaluations with those of the same split.
    """
    pairs = [(first, second) for i, first in enumerate(groups) for second in groups[i + 1 :]]
    if len(pairs) > MAX_PAIRS:
        best = max(groups, key=lambda group: spread(list(_by_seed(group).values())).mean)
        pairs = [(group, best) for group in groups if group is not best]
    alike = [(a, b) for a, b in pairs if a.runs[0].job == b.runs[0].job]
    compared = [(a, b, paired_difference(_by_seed(a), _by_seed(b))) for a, b in alike]
    return [(a, b, difference) for a, b, difference in compared if difference]


def _scored(members: Sequence[Run]) -> list[Run]:
    return [run for run in members if run.status == "finished" and run.best is not None]


def _repeated(members: Sequence[Run]) -> bool:
    return len({run.settings.get("seed") for run in _scored(members)}) >= 2


def _by_seed(group: SeedGroup) -> dict[int, float]:
    """Best mIoU by seed, the mean where a seed was run more than once."""
    scores: defaultdict[int, list[float]] = defaultdict(list)
    for run in group.runs:
        assert run.best is not None and run.best.miou is not None, "only scored runs are grouped"
        scores[run.settings.get("seed", 0)].append(run.best.miou)
    return {seed: spread(values).mean for seed, values in scores.items()}


def _check_key(key: str, runs: Sequence[Run]) -> None:
    known = {"status", "run"}.union(*(run.settings for run in runs))
    if key not in known:
        group = key.rpartition(".")[0]
        near = {name for name in known if name.startswith(f"{group}.")} if group else set()
        names = {name.removeprefix(f"{group}.") for name in near} if near else {n for n in known if "." not in n}
        raise unknown_key(key if near else key.partition(".")[0], names)


def _lookup(run: Run, key: str) -> object:
    return {"status": run.status, "run": run.name}.get(key, run.settings.get(key))


def _equal(value: object, wanted: str) -> bool:
    if as_typed(value) == wanted:
        return True
    try:
        return bool(value == yaml.safe_load(wanted) or float(str(value)) == float(wanted))
    except (yaml.YAMLError, ValueError):
        return False


def _counts(key: str) -> bool:
    top, _, rest = key.partition(".")
    return top not in _ASIDE and key not in _FOLLOWS and rest.rpartition(".")[2] not in ("name", "_target_")


def _differs(key: str, runs: Sequence[Run]) -> bool:
    top, dot, _ = key.partition(".")
    everywhere = not dot or any(key in run.overridden for run in runs)
    jobs = {run.job for run in runs if key in run.settings}  # a training has no setting of evaluations to differ in
    values: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        choices = () if everywhere else tuple(as_typed(run.settings.get(name)) for name in (top, "experiment", "debug"))
        if key in run.settings or (everywhere and run.job in jobs):
            values[choices].add(as_typed(run.settings[key]) if key in run.settings else "")
    return any(len(texts) > 1 for texts in values.values())
