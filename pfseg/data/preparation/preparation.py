"""Scenes to patches: which scenes are left to do, several threads at work, what came of it.

The calling thread decodes one scene after the other; a pool of threads codes and writes the patches of the scenes
before. OpenCV and NumPy let other threads run meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfseg.data.base import Scene
from pfseg.data.preparation.cutting import Cutter, LoadedScene, patch_name, unknown_colors
from pfseg.data.preparation.files import png_fault
from pfseg.data.preparation.folder import PatchFolder
from pfseg.data.tiling import Window
from pfseg.errors import DataError, WriteError

_AHEAD_BYTES = 128 << 20  # of scenes whose patches are being written while the next scene is decoded


@dataclass
class Outcome:
    """What came of a preparation.

    Attributes:
        scenes: those that were to be cut, in order.
        failures: for each scene that could not be cut (`<split>/<name>`) the reason.
        stopped: whether it ended early because it was asked to.
        skipped: number of scenes that an earlier start had finished.
    """

    scenes: list[Scene]
    failures: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    skipped: int = 0


class Progress:
    """Hears how far a preparation is; does nothing by itself."""

    def begin(self, total: int, done: int) -> None:
        """Take the number of bytes of all scenes' images, and of those that are finished already."""

    def advance(self, size: float) -> None:
        """Take the number of bytes of a source that have been dealt with."""


@dataclass
class _Running:
    key: str
    size: int  # bytes of the image file
    loaded: LoadedScene
    source: list[Any]
    futures: list[Future[dict[str, Any]]]


def prepare(
    scenes: Sequence[Scene],
    src: Path,
    cutter: Cutter,
    folder: PatchFolder,
    *,
    workers: int,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Cut the scenes that are not finished yet; a scene that cannot be cut is noted and left out.

    Args:
        scenes: each name once in its split.
        src: folder that the scenes come from.
        cutter: reads and writes.
        folder: where to, with the journal of earlier starts.
        workers: threads that code and write.
        progress: hears how far it is.
        stop: asked between patches; True ends early.

    Raises:
        WriteError: the disk is full, or a file cannot be written for another reason; what was written is kept.
        ConfigError: the folder holds finished scenes that are not among these.
    """
    return _Preparation(src, cutter, folder, progress or Progress(), stop).run(scenes, workers)


class _Preparation:
    def __init__(
        self, src: Path, cutter: Cutter, folder: PatchFolder, progress: Progress, stop: Callable[[], bool]
    ) -> None:
        self.src, self.cutter, self.folder = src, cutter, folder
        self.progress, self.stop = progress, stop
        self.running: deque[_Running] = deque()

    def run(self, scenes: Sequence[Scene], workers: int) -> Outcome:
        outcome = self.outcome = Outcome(list(scenes))
        self.folder.keep_only([scene_key(scene) for scene in scenes])
        sizes = {scene_key(scene): _size(scene.image) for scene in scenes}
        todo = [scene for scene in scenes if not self._is_done(scene)]
        outcome.skipped = len(scenes) - len(todo)
        total = sum(sizes.values())
        self.progress.begin(total, total - sum(sizes[scene_key(scene)] for scene in todo))
        pool, masks = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
        try:
            for scene in todo:
                while self.running and sum(one.loaded.nbytes for one in self.running) > _AHEAD_BYTES:
                    self._finish(self.running.popleft())
                if self.stop():
                    break
                self._start(scene, sizes[scene_key(scene)], pool, masks)
                while self.running and all(future.done() for future in self.running[0].futures):
                    self._finish(self.running.popleft())
            while self.running:
                self._finish(self.running.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            masks.shutdown()
        outcome.stopped = self.stop() and len(self.folder.done) + len(outcome.failures) < len(scenes)
        return outcome

    def _is_done(self, scene: Scene) -> bool:
        """Whether an earlier start cut the scene from the same files, and its patches are whole."""
        record = self.folder.done.get(scene_key(scene))
        if record is None or record["source"] != self._source(scene):
            return False
        for row in record["patches"]:
            shape = self.cutter.patch_shape(Window(*row["window"]))
            files = self.folder.layout.files(scene.split, row["name"], scene.mask is not None)
            if any(png_fault(self.folder.out / file, shape) for file in files):
                return False
        return True

    def _source(self, scene: Scene) -> list[Any]:
        """What tells whether a scene's files are those of an earlier start: path, bytes and time of each."""
        return [self._identity(path) for path in (scene.image, scene.mask) if path is not None]

    def _identity(self, path: Path) -> list[Any]:
        name = path.relative_to(self.src) if path.is_relative_to(self.src) else path
        try:
            stat = path.stat()
        except OSError:
            return [name.as_posix(), None, None]
        return [name.as_posix(), stat.st_size, stat.st_mtime_ns]

    def _start(self, scene: Scene, size: int, pool: Executor, masks: Executor) -> None:
        key, source = scene_key(scene), self._source(scene)
        try:
            loaded = self.cutter.load(scene, masks)
        except (DataError, MemoryError) as error:
            self._fail(key, error, size)
            return
        layout = self.folder.layout
        names = [patch_name(scene.name, window) for window in loaded.windows]
        has_mask = scene.mask is not None
        self.folder.begin(key, [file for name in names for file in layout.files(scene.split, name, has_mask)])
        target = layout.target(self.folder.out, scene.split)
        futures = [pool.submit(self.cutter.write_patch, loaded, window, target) for window in loaded.windows]
        self.running.append(_Running(key, size, loaded, source, futures))

    def _finish(self, one: _Running) -> None:
        """Wait for a scene's patches and note them; on a stop leave it unfinished."""
        rows = []
        try:
            for future in one.futures:
                if self.stop():
                    future.cancel()
                    continue
                rows.append(future.result())
                self.progress.advance(one.size / len(one.futures))
        except (DataError, WriteError) as error:
            for future in one.futures:
                future.cancel()
            if isinstance(error, WriteError):
                raise
            _wait(one.futures)
            self._fail(one.key, error, one.size * (1 - len(rows) / len(one.futures)))
            return
        if len(rows) == len(one.futures):
            unknown = unknown_colors(one.loaded.unknown)
            record = {"source": one.source, "size": list(one.loaded.shape), "unknown": unknown, "patches": rows}
            self.folder.finish(one.key, record)

    def _fail(self, key: str, error: Exception, size: float) -> None:
        self.outcome.failures[key] = str(error) or "not enough memory"
        self.folder.drop(key)
        self.progress.advance(size)


def _wait(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        if not future.cancelled():
            future.exception()


def scene_key(scene: Scene) -> str:
    """What a scene is called in the journal and in messages."""
    return f"{scene.split}/{scene.name}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will say what is wrong
