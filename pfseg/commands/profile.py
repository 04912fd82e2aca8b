"""`pfseg profile`: what a network costs.

Multiply-adds are those of the convolutions, counted on the forward pass as it runs.
"""

from __future__ import annotations

import resource

from pfseg.build import build_model
from pfseg.config.commands import Profile
from pfseg.errors import ConfigError
from pfseg.tracking import terminal


def run(settings: Profile) -> None:
    """Show parameters, multiply-adds, time and memory of a network with random weights."""
    from pfseg.engine.cost import clock, count
    from pfseg.inference.folding import fold_batchnorm

    model = build_model(settings.model, settings.classes, settings.bands)
    (height, width), batch = settings.size, settings.batch_size
    if min(height, width) < (least := getattr(model, "min_size", 1)):
        raise ConfigError(
            f"size={min(height, width)} is too small for {settings.model.name}, which takes {least} px a side at least"
        )
    stages, whole = count(model, (batch, settings.bands, height, width))  # folding adds biases
    folded = fold_batchnorm(model) if settings.fold else 0
    clock(model, (batch, settings.bands, height, width), stages, whole, settings.rounds)
    images = "" if batch == 1 else f", {batch} at a time"
    title = f"{settings.model.name}, {settings.classes} classes, {width}x{height} px{images}"
    figures = ("parameters", "GMACs", "ms", "GMACs/s")
    table = terminal.table("stage", *figures, numbers=figures, title=title)
    for stage in stages:
        table.add_row(stage.name, *_figures(stage.parameters, stage.macs, stage.seconds, batch))
    rest = max(0.0, whole.seconds - sum(stage.seconds for stage in stages))
    table.add_row("between them", "", "", f"{1000 * rest:.0f}", "", end_section=True)
    table.add_row("all", *_figures(whole.parameters, whole.macs, whole.seconds, batch))
    console = terminal.console()
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    note = f", {folded} BatchNorms folded into convolutions" if folded else ""
    console.print(f"{batch / whole.seconds:.2f} images/s, peak memory {peak:.2f} GiB{note}", highlight=False)


def _figures(parameters: int, macs: int, seconds: float, batch: int) -> list[str]:
    speed = f"{macs * batch / seconds / 1e9:.0f}" if seconds > 0 else ""
    return [f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.1f}", f"{1000 * seconds:.0f}", speed]
