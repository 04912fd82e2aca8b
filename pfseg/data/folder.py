"""Your own images and masks in folders, described by one YAML file."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pfseg.data.base import ClassInfo, ClassRow, IgnoreEntry, Sample, SegmentationDataset, parse_classes
from pfseg.data.cache import stat_of
from pfseg.data.masks import MaskReader
from pfseg.data.reader import ImageReader, Stretch, check_same_size
from pfseg.errors import ConfigError, DataError

EXTENSIONS = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_DEFAULT_SPLITS = {"train": "train", "val": "val", "test": "test"}
Splits = Mapping[str, str | Sequence[str] | float]  # for each split its folders or lists; or `val`, a share, and `seed`


class FolderDataset(SegmentationDataset):
    """Images and masks of the same stems, in folders called `images` and `masks` (or as you say).

    The mask of `<anything>/images/<stem>.jpg` is `<anything>/masks/<stem>.png` (.tif, .jpg). Masks are single-channel
    ids, palette PNGs or RGB colours. As YAML:

        _target_: pfseg.data.folder.FolderDataset
        root: /data/town
        classes:
          - {name: roof, color: "3C1098"}
          - {name: road, color: [110, 193, 228], id: 7}   # id: the value in single-channel masks, if not the position
        ignore: ["9B9B9B", 0]            # colours and ids without a class; other unknown colours are reported
        images: images
        masks: masks
        splits: {train: train, val: val}                       # folders: <root>/train/images/..., nested ones too
        # splits: {train: split_train.txt, val: split_val.txt} # lists of image paths below the root
        # splits: {train: [train, more], val: test}            # several of them
        # splits: {val: 0.2, seed: 0}                          # a share of all images below the root

    `pfseg settings dataset` explains each key. Files whose stems end in `mask_suffix` are no images; 255 means "no
    class" unless a class has that id; `splits: null` stands for the folders `train`, `val` and `test`.

    Raises:
        ConfigError: a keyword that does not fit.
        DataError: a missing folder or list, no images, or an image without mask.
    """

    def __init__(
        self,
        *,
        split: str,
        root: str | Path,
        classes: Iterable[ClassRow | ClassInfo],
        images: str,
        masks: str,
        mask_suffix: str,
        splits: Splits | None,
        ignore: Sequence[IgnoreEntry],
        bands: Sequence[int] | None,
        stretch: Stretch | None,
        on_error: str,
    ) -> None:
        self.classes = parse_classes(classes)
        self.reader = MaskReader(self.classes, ignore)
        self.on_error, self.warnings = on_error, []
        self.mask_suffix, self.image_reader = mask_suffix, ImageReader(bands, stretch)
        self.root, self.images, self.masks = Path(root).expanduser(), images.strip("/"), masks.strip("/")
        if self.images == self.masks and not mask_suffix:
            raise ConfigError(
                f"images and masks both lie in folders called {images!r}: give the ending of the "
                "stems of masks, such as _label (config: dataset.mask_suffix)"
            )
        if not self.root.is_dir():
            raise DataError(
                f"data folder {self.root} not found (looked in {self.root.absolute()}); unpack the data set there "
                "or set dataset.root=<folder>"
            )
        self.files = self._pair(self._list_images(split, splits or _DEFAULT_SPLITS), split)

    def __len__(self) -> int:
        """Number of images of the split that have a mask."""
        return len(self.files)

    def read(self, index: int) -> Sample:
        """Read an image and its mask; raises DataError."""
        path, mask = self.files[index][0], self.read_mask(index)
        image = self.image_reader.read(path, mask.shape)
        self.warnings += self.image_reader.pop_notes()
        check_same_size(image, mask, self._name(path), self._name(self.files[index][1]))
        return Sample(image, mask, self._name(path))

    def read_mask(self, index: int) -> np.ndarray:
        """Read the mask alone."""
        path = self.files[index][1]
        mask, warning = self.reader.read(path, self._name(path))
        if warning:
            self.warnings.append(warning)
        return mask

    def image_files(self) -> list[Path]:
        """Image files in the order of the samples."""
        return [image for image, _ in self.files]

    def mask_key(self) -> object:
        """Names, sizes and times of the mask files, and what turns their pixels into labels."""
        return [[self._name(mask), *stat_of(mask)] for _, mask in self.files], self.reader.key()

    def cache_folders(self) -> list[Path]:
        """A hidden folder beside the data, or the common one where that cannot be written or is marked so."""
        marked = not self.root.stat().st_mode & 0o222  # the superuser could write there all the same
        return [*([] if marked else [self.root / ".pfseg"]), *super().cache_folders()]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def _list_images(self, split: str, splits: Splits) -> list[Path]:
        share = splits.get("val")
        if isinstance(share, float):
            return self._by_ratio(split, share, splits)
        source = splits.get(split)
        sources = [source] if isinstance(source, str) else source
        if not isinstance(sources, Sequence) or not sources or not all(isinstance(source, str) for source in sources):
            raise ConfigError(
                f"splits has no folder or list for {split!r}: got {dict(splits)}; give folders or .txt lists for "
                "train and val, or a share such as {val: 0.2, seed: 0} (config: dataset.splits)"
            )
        images = [
            image
            for source in sources
            for image in (self._from_list if source.endswith(".txt") else self._below)(self.root / source, split)
        ]
        return self._one_of_each(dict.fromkeys(images))  # folders and lists may overlap

    def _by_ratio(self, split: str, share: float, splits: Splits) -> list[Path]:
        seed = splits.get("seed", 0)
        fits = 0 < share < 1 and set(splits) <= {"val", "seed"} and split in ("train", "val")
        if not fits or not isinstance(seed, int):
            raise ConfigError(
                f"splits={dict(splits)} (wanted: {split}) is no share; expected {{val: 0.2, seed: 0}} with val between "
                "0 and 1 and nothing else (config: dataset.splits)"
            )
        paths = self._one_of_each(self._below(self.root, split))
        order = np.random.default_rng(seed).permutation(len(paths))
        held_out = max(1, round(share * len(paths)))
        if held_out >= len(paths):
            raise DataError(f"{len(paths)} images below {self.root} cannot be split with val={share}; add images")
        return [paths[place] for place in sorted(order[:held_out] if split == "val" else order[held_out:])]

    def _from_list(self, path: Path, split: str) -> list[Path]:
        if not path.is_file():
            raise DataError(f"list {path} not found; expected one image path per line (config: dataset.splits.{split})")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows begin it with a mark
        except UnicodeDecodeError as error:
            raise DataError(
                f"list {path} is not UTF-8 (byte {error.start:,} is {error.object[error.start]:#04x}): save it "
                f"as UTF-8 (config: dataset.splits.{split})"
            ) from error
        images = []
        for line in map(str.strip, lines):
            image = self.root / line
            if not line or line.startswith("#"):
                continue
            if _is_file(image):
                images.append(image)
            else:
                self._fault(f"image {image} of the list {path} not found; paths in it are relative to {self.root}")
        if not images:
            raise DataError(f"list {path} names no image that exists (config: dataset.splits.{split})")
        return images

    def _below(self, folder: Path, split: str) -> list[Path]:
        if not folder.is_dir():
            raise DataError(
                f"folder {folder} of the split {split!r} not found; create it with the folders {self.images} and "
                f"{self.masks} or set dataset.splits (config: dataset.splits.{split})"
            )
        paths = [
            path
            for images in sorted(folder.glob(f"**/{glob.escape(self.images)}"))
            if not any(part.startswith(".") for part in images.relative_to(folder).parts)
            for path in sorted(images.iterdir())
            if self._is_image(path)
        ]
        if not paths:
            raise DataError(
                f"no images below {folder}: looked for {self.images}/*{{{','.join(EXTENSIONS)}}}, nested ones too "
                f"(config: dataset.root, dataset.images, dataset.splits.{split})"
            )
        return paths

    def _one_of_each(self, paths: Iterable[Path]) -> list[Path]:
        """Leave out images that differ from others in their endings only, which would share a mask."""
        kept: dict[Path, Path] = {}
        every = list(paths)
        for path in sorted(every, key=lambda path: EXTENSIONS.index(path.suffix.lower())):
            kept.setdefault(path.with_suffix(""), path)
        if again := [path for path in every if kept[path.with_suffix("")] != path]:
            other = kept[again[0].with_suffix("")]
            self.warnings.append(
                f"left out: {len(again)} images that differ from others in the ending only, such as {again[0]}: "
                f"{other.name} is taken"
            )
        return [path for path in every if kept[path.with_suffix("")] == path]

    def _is_image(self, path: Path) -> bool:
        return is_image(path) and not (self.mask_suffix and path.stem.endswith(self.mask_suffix))

    def _pair(self, images: list[Path], split: str) -> list[tuple[Path, Path]]:
        masks = cache(_masks_by_stem)
        pairs = []
        for image in images:
            folder, stem = self._mask_folder(image), image.stem + self.mask_suffix
            if mask := masks(folder).get(stem):
                pairs.append((image, mask))
            else:
                self._fault(f"{image} has no mask: expected {folder / stem}{{{','.join(EXTENSIONS)}}}")
        if not pairs:
            raise DataError(f"none of the {len(images)} images of the split {split!r} below {self.root} has a mask")
        return pairs

    def _mask_folder(self, image: Path) -> Path:
        before, folder, after = f"{image.parent.as_posix()}/".rpartition(f"/{self.images}/")
        if not folder:
            raise DataError(
                f"{image} lies in no folder called {self.images!r}, so the place of its mask is unknown; "
                "name that folder (config: dataset.images)"
            )
        return Path(f"{before}/{self.masks}/{after}")

    def _fault(self, message: str) -> None:
        if self.on_error == "raise":
            raise DataError(f"{message}; add it, or leave it out with dataset.on_error=skip")
        self.warnings.append(f"left out: {message}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long for the system
        return False


def is_image(path: Path) -> bool:
    """Whether the name is that of an image or mask."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _masks_by_stem(folder: Path) -> dict[str, Path]:
    """Masks of a folder by stem; of several with one stem the lossless format is taken."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS] if folder.is_dir() else []
    paths.sort(key=lambda path: (EXTENSIONS.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in paths}
