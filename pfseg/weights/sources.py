"""Checkpoints that others share: folders on the Hugging Face Hub and artifacts of W&B, kept in their caches."""

from __future__ import annotations

from pathlib import Path

from pfseg.data.cache import cache_folder
from pfseg.errors import CheckpointError, ConfigError, MissingPackage, one_line

FILES = ["*.safetensors", "*.json", "*.yaml", "*.csv", "*.onnx"]  # what a model folder is used by
_ELSEWHERE = "give a folder that was downloaded elsewhere"
_OFFLINE = f"check the network, or {_ELSEWHERE}"


def is_source(checkpoint: str) -> bool:
    """Whether a checkpoint is named by where others share it."""
    return "://" in checkpoint


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Weights file that `checkpoint` stands for: the file itself, or a run's best one, otherwise its last one.

    It may also be a model folder, or be shared by others; see `fetch`.

    Raises:
        ConfigError: neither such a file nor a folder with a checkpoint.
        CheckpointError: what others share can't be downloaded.
    """
    if is_source(str(checkpoint)):
        checkpoint = fetch(str(checkpoint), cache_folder())
    path = Path(checkpoint).expanduser().absolute()
    below = ("checkpoints/best", "checkpoints/last", "model", "best", "last")  # of a run, a model folder, an artifact
    for file in (path, *(path / f"{name}.safetensors" for name in below)):
        if file.is_file() and file.suffix in (".safetensors", ".onnx"):
            return file
    if path.is_file():
        fault = (
            "must be a run folder, a .safetensors file of a run or an .onnx file of pfseg export; pfseg convert makes "
            "one of other weights files"
        )
    elif path.is_dir():
        fault = (
            "holds no checkpoints/best.safetensors or last.safetensors: give a run folder, "
            "outputs/<name>/<date>/<time>, that has saved at least once, or a model folder with model.safetensors"
        )
    else:
        fault = f"does not exist (looked in {path}): give a run folder or a .safetensors file"
    raise ConfigError(f"checkpoint={checkpoint} {fault}")


def fetch(source: str, cache: Path) -> Path:
    """The folder of `hf://owner/name[@revision]` or `wandb://entity/project/name:alias`, downloaded where needed.

    Without a network it is the copy of an earlier download: the Hub's own cache has it, and `cache` those of W&B.

    Raises:
        CheckpointError: it doesn't exist, can't be reached, or the disk is full.
        ConfigError: another kind of source, or a package that isn't installed.
    """
    kind, _, name = source.partition("://")
    if kind == "hf" and name.partition("@")[0].count("/") == 1:
        return _from_hub(source, name)
    if kind == "wandb" and name.count("/") == 2:
        return _from_wandb(source, name, cache)
    raise ConfigError(f"checkpoint={source}: expected hf://owner/name or wandb://entity/project/name:alias")


def push(folder: Path, repository: str) -> str:
    """Upload a model folder to a repository of the Hub, which is made where missing; returns its address.

    Raises:
        CheckpointError: no network, no token, or no permission.
        ConfigError: huggingface_hub isn't installed.
    """
    hub = _hub(f"push={repository}")
    try:
        api = hub.HfApi()
        address = str(api.create_repo(repository, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model folder of pfseg export")
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise CheckpointError(
            f"push={repository}: {folder} is whole, but could not be uploaded ({one_line(error)}); log in by `hf auth "
            f"login`, then `hf upload {repository} {folder}`"
        ) from error
    return address


def _hub(what: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingPackage(what, "huggingface_hub", "hub") from error
    return huggingface_hub


def _from_hub(source: str, name: str) -> Path:
    hub = _hub(f"checkpoint={source}")
    repository, _, revision = name.partition("@")
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=FILES))
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"checkpoint={source}: there is no such repository or revision, or it needs a token (hf auth login)"
        ) from error
    except hub.errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"checkpoint={source} can't be reached, and there is no copy of it: {_OFFLINE}"
        ) from error
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise CheckpointError(f"checkpoint={source} can't be downloaded ({one_line(error)}): {_OFFLINE}") from error


def _from_wandb(source: str, name: str, cache: Path) -> Path:
    import wandb

    folder = cache / "wandb" / name.replace(":", "/")
    try:
        artifact = wandb.Api().artifact(name, type="model")
        version = folder.parent / str(artifact.version)
        artifact.download(root=str(version))  # leaves alone what is there with the right checksum
        if version != folder:
            folder.unlink(missing_ok=True)
            folder.symlink_to(version.name)
    except (wandb.errors.Error, ValueError, OSError) as error:  # ValueError: there is no such artifact
        if folder.is_dir():
            return folder
        raise CheckpointError(
            f"checkpoint={source} can't be downloaded ({one_line(error)}): check its name, and the key (wandb login); "
            f"without a network, {_ELSEWHERE}"
        ) from error
    return version
