"""Which runs to show, in which order, by which settings they differ, and which repeat one another with other seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import yaml

from pfseg.config.validation import as_typed, unknown_key
from pfseg.errors import ConfigError
from pfseg.reporting.runs import Run
from pfseg.reporting.statistics import Difference, Spread, paired_difference, spread

MAX_PAIRS = 15
# What doesn't change a result, or follows from other settings.
_ASIDE = {"name", "job", "resume", "checkpoint", "split", "gpus", "logger", "launch", "debug"}
_FOLLOWS = {"model.num_classes", "dataset.classes"}


@dataclass
class SeedGroup:
    """Runs that differ only in `seed`."""

    label: str  # what sets the group apart from the others shown
    settings: dict[str, object]  # the values of the shown settings, the seed left out
    runs: list[Run]  # finished ones, two at least
    left_out: int = 0  # how many more are not finished or have no score

    @property
    def seeds(self) -> list[str]:
        """The seeds as texts, in the order of their numbers."""
        return sorted((as_typed(run.settings.get("seed")) for run in self.runs), key=lambda seed: (len(seed), seed))

    def miou(self, which: Literal["best", "last"]) -> Spread | None:
        """Spread of the runs' best or last mIoU."""
        points = [getattr(run, which) for run in self.runs]
        return self.spread([point.miou if point else None for point in points])

    @property
    def by_seed(self) -> dict[str, float]:
        """Best mIoU by seed, the mean where a seed was run more than once."""
        scores: defaultdict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            assert run.best is not None and run.best.miou is not None, "only scored runs are grouped"
            scores[as_typed(run.settings.get("seed"))].append(run.best.miou)
        return {seed: spread(values).mean for seed, values in scores.items()}

    def spread(self, scores: Sequence[float | None]) -> Spread | None:
        """Mean and spread of scores of the group's runs; None where one has no value."""
        known = [score for score in scores if score is not None]
        return spread(known) if len(known) == len(self.runs) else None


def select(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Keep the runs that meet all `key=value`; key is a dotted setting, a group (`model=pfnet_r50`), `status` or `run`.

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
    runs of the same choice and recipe, or was given on a command line. Choices of groups come first, `seed` last.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings if _top(key) not in _ASIDE and key not in _FOLLOWS)
    shown = [key for key in keys if not key.endswith((".name", "._target_")) and _differs(key, runs)]
    return sorted(shown, key=lambda key: (key == "seed", key != "experiment", "." in key))


def group_seeds(runs: Sequence[Run]) -> list[SeedGroup]:
    """Group the runs that differ only in `seed`; groups of one finished run are left out."""
    alike: defaultdict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        settings = ((k, as_typed(v)) for k, v in run.settings.items() if k != "seed" and _top(k) not in _ASIDE)
        alike[run.job, *sorted(settings)].append(run)
    repeated = [(runs, [run for run in runs if run.status == "finished" and run.best]) for runs in alike.values()]
    repeated = [pair for pair in repeated if len({as_typed(run.settings.get("seed")) for run in pair[1]}) >= 2]
    shown = differing(runs)
    apart = differing([run for members, _ in repeated for run in members])
    several_jobs = len({run.job for run in runs}) > 1
    groups = []
    for members, scored in repeated:
        own = {key: value for key, value in members[0].settings.items() if key != "seed"}
        words = [f"{members[0].job}:"] * several_jobs + [f"{k}={as_typed(own[k])}" for k in apart if k in own]
        label = " ".join(words) or str(own.get("name", "all runs"))
        groups.append(SeedGroup(label, {k: own[k] for k in shown if k in own}, scored, len(members) - len(scored)))
    return groups


def compare_groups(groups: Sequence[SeedGroup]) -> list[tuple[SeedGroup, SeedGroup, Difference]]:
    """Paired differences of the best mIoU: of all pairs, or if these are many, of each group with the best one.

    Trainings are compared with trainings, evaluations with those of the same split.
    """
    pairs = list(combinations(groups, 2))
    if len(pairs) > MAX_PAIRS:
        best = max(groups, key=lambda group: spread(list(group.by_seed.values())).mean)
        pairs = [(group, best) for group in groups if group is not best]
    alike = [(a, b) for a, b in pairs if a.runs[0].job == b.runs[0].job]
    compared = [(a, b, paired_difference(a.by_seed, b.by_seed)) for a, b in alike]
    return [(a, b, difference) for a, b, difference in compared if difference]


def _top(key: str) -> str:
    return key.partition(".")[0]


def _check_key(key: str, runs: Sequence[Run]) -> None:
    known = {"status", "run"}.union(*(run.settings for run in runs))
    if key not in known:
        group = f"{key.rpartition('.')[0]}."
        near = {name.removeprefix(group) for name in known if name.startswith(group)}
        raise unknown_key(key if near else _top(key), near or {name for name in known if "." not in name})


def _lookup(run: Run, key: str) -> object:
    return {"status": run.status, "run": run.name}.get(key, run.settings.get(key))


def _equal(value: object, wanted: str) -> bool:
    if as_typed(value) == wanted:
        return True
    try:
        return bool(value == yaml.safe_load(wanted) or float(str(value)) == float(wanted))
    except (yaml.YAMLError, ValueError):
        return False


def _differs(key: str, runs: Sequence[Run]) -> bool:
    everywhere = "." not in key or any(key in run.overridden for run in runs)
    jobs = {run.job for run in runs if key in run.settings}  # a training has no setting of evaluations to differ in
    values: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        names = () if everywhere else (_top(key), "experiment", "debug")
        if key in run.settings or (everywhere and run.job in jobs):
            value = as_typed(run.settings[key]) if key in run.settings else ""
            values[tuple(as_typed(run.settings.get(name)) for name in names)].add(value)
    return any(len(texts) > 1 for texts in values.values())
