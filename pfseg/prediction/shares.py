"""Work that several ranks share, by files in a folder that all see: each part is done once, by whoever comes first.

A rank that dies leaves its part to whoever comes next, since its lock goes with it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pfseg.files import cannot_write, lock, write_atomic

_SECONDS = 0.5  # between two notes of how far a rank is


@contextmanager
def claim(result: Path) -> Iterator[bool]:
    """Hold the part of a job that ends in the file `result`; False if it is done, or another process does it.

    Raises WriteError where the folder can't be written to.
    """
    with ExitStack() as held:
        try:
            held.enter_context(lock(result, wait=False))
        except TimeoutError:
            yield False
            return
        except OSError as error:
            raise cannot_write(result, error) from error
        yield not result.exists()


class Shares:
    """The parts that a job consists of, by their names, as `rank` sees them."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self._rank = folder / "parts", rank
        self._done, self._told = 0.0, 0.0

    def claim(self, names: Sequence[str]) -> Iterator[str]:
        """One part after the other that no rank has done or is doing; it is this rank's until the next one."""
        for name in names:
            with claim(self._file(name)) as mine:
                if mine:
                    yield name

    def finish(self, name: str, failure: str | None) -> None:
        """Note that a part is done, or why it can't be."""
        write_atomic(self._file(name), json.dumps(failure), sync=False)

    def is_finished(self, name: str) -> bool:
        """Whether a part is done, or can't be."""
        return self._file(name).exists()

    def finished(self) -> list[str | None]:
        """What was noted of each finished part."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]

    def advance(self, amount: float) -> float:
        """Note that this rank has done some more; returns how much all ranks have done."""
        self._done += amount
        if time.monotonic() - self._told > _SECONDS:
            self._told = time.monotonic()
            write_atomic(self.folder / f"rank{self._rank}", str(self._done), sync=False)
        total = self._done
        for path in self.folder.glob("rank*"):
            with suppress(OSError, ValueError):
                total += float(path.read_text()) if path.name != f"rank{self._rank}" else 0.0
        return total

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"
