"""Scenes to patches: which scenes are left to do, several threads at work, and the outcome.

The calling thread decodes one scene after the other; a pool of threads codes and writes the patches of the scenes
before. OpenCV and NumPy let other threads run meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pfseg.data.base import Scene
from pfseg.data.cache import stat_of
from pfseg.data.preparation.cutting import Cutter, LoadedScene, PatchRow, SceneRecord
from pfseg.data.preparation.folder import PatchFolder
from pfseg.errors import DataError, WriteError, unforeseen

_AHEAD_BYTES = 128 << 20  # of scenes whose patches are being written while the next scene is decoded


@dataclass
class Outcome:
    """The outcome of a preparation."""

    scenes: list[Scene]  # that were to be cut, in order
    failures: dict[str, str] = field(default_factory=dict)  # why a scene could not be cut, by its key
    stopped: bool = False  # whether it ended early because it was asked to
    skipped: int = 0  # scenes that an earlier start had finished


class ProgressListener(Protocol):
    """Is told how far a preparation is."""

    def begin(self, total: int, done: int) -> None:
        """Take the number of bytes of all scenes' images, and of those that are finished already."""

    def advance(self, size: float) -> None:
        """Take the number of bytes of a source that have been dealt with."""


@dataclass
class _SceneInWork:
    loaded: LoadedScene
    source: list[list[str | int]]
    patches: list[Future[PatchRow]]


@dataclass
class Preparation:
    """Cuts the scenes that are not finished yet; a scene that cannot be cut is noted and left out."""

    src: Path  # folder that the scenes come from
    cutter: Cutter
    folder: PatchFolder  # where to, with the journal of earlier starts
    workers: int  # threads that code and write
    progress: ProgressListener
    stop: Callable[[], bool]  # asked between patches; True ends early

    def run(self, scenes: Sequence[Scene]) -> Outcome:
        """Cut `scenes`, whose keys differ; raises WriteError if a file can't be written, and keeps the others."""
        todo = [scene for scene in scenes if not self._is_done(scene)]
        for scene in todo:
            self.folder.drop(scene.key)
        outcome = self.outcome = Outcome(list(scenes), skipped=len(scenes) - len(todo))
        total, left = (sum(stat_of(scene.image)[0] for scene in part) for part in (scenes, todo))
        self.progress.begin(total, total - left)
        in_work: deque[_SceneInWork] = deque()
        pool, masks = ThreadPoolExecutor(self.workers), ThreadPoolExecutor(1)
        try:
            for scene in todo:
                while sum(work.loaded.nbytes for work in in_work) > _AHEAD_BYTES:
                    self._finish(in_work.popleft())
                if self.stop():
                    break
                if work := self._start(scene, pool, masks):
                    in_work.append(work)
                while in_work and all(patch.done() for patch in in_work[0].patches):
                    self._finish(in_work.popleft())
            while in_work:
                self._finish(in_work.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            masks.shutdown()
        outcome.stopped = self.stop() and len(self.folder.done) + len(outcome.failures) < len(scenes)
        return outcome

    def _is_done(self, scene: Scene) -> bool:
        """Whether an earlier start cut the scene from the same files, and its patches are whole."""
        record = self.folder.done.get(scene.key)
        if record is None or "checksums" not in record or record["source"] != self._source(scene):
            return False  # the first versions noted no checksums
        return all(
            stat_of(self.folder.out / file)[0] == size
            for row in record["patches"]
            for file, (size, _) in zip(self._files(scene, row["name"]), row["files"], strict=True)
        )

    def _files(self, scene: Scene, name: str) -> list[str]:
        return self.folder.layout.files(scene.split, name, scene.mask is not None)

    def _source(self, scene: Scene) -> list[list[str | int]]:
        """What tells whether a scene's files are those of an earlier start: path, bytes and time of each."""
        paths = [path for path in (scene.image, scene.mask) if path is not None]
        names = [path.relative_to(self.src) if path.is_relative_to(self.src) else path for path in paths]
        return [[name.as_posix(), *stat_of(path)] for name, path in zip(names, paths, strict=True)]

    def _start(self, scene: Scene, pool: Executor, masks: Executor) -> _SceneInWork | None:
        source = self._source(scene)
        try:
            loaded = self.cutter.load(scene, masks)
        except Exception as error:
            self._fail(scene, error, stat_of(scene.image)[0])
            return None
        patches = []
        for window in loaded.windows:
            files = [self.folder.out / file for file in self._files(scene, self.cutter.patch_name(scene, window))]
            patches.append(pool.submit(self.cutter.write_patch, loaded, window, files))
        return _SceneInWork(loaded, source, patches)

    def _finish(self, work: _SceneInWork) -> None:
        """Wait for a scene's patches and note them; on a stop leave it unfinished."""
        loaded, rows = work.loaded, []
        size = stat_of(loaded.scene.image)[0] / len(work.patches)
        try:
            for patch in work.patches:
                if not (self.stop() and patch.cancel()):
                    rows.append(patch.result())
                    self.progress.advance(size)
        except Exception as error:
            if isinstance(error, WriteError):
                raise
            for patch in work.patches:
                patch.cancel()
            wait(work.patches)
            names = [self.cutter.patch_name(loaded.scene, window) for window in loaded.windows]
            self.folder.remove(file for name in names for file in self._files(loaded.scene, name))
            self._fail(loaded.scene, error, size * (len(work.patches) - len(rows)))
            return
        if len(rows) == len(work.patches):
            shape = list(loaded.image.shape[:2])
            self.folder.finish(
                loaded.scene.key,
                SceneRecord(
                    source=work.source, checksums=loaded.checksums, size=shape, unknown=loaded.unknown, patches=rows
                ),
            )

    def _fail(self, scene: Scene, error: Exception, size: float) -> None:
        known = isinstance(error, DataError)
        self.outcome.failures[scene.key] = str(error) if known else unforeseen(scene.image, error)
        self.progress.advance(size)
