"""Configuration: every choice composes, faults are one line, runs are resumed."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pfseg.commands.app import main
from pfseg.config.check import check
from pfseg.config.compose import VERSION_BASE, compose, config_dir, networks, prepare_hydra, run_folder
from pfseg.config.data_settings import AugmentSettings, FolderData, SyntheticData
from pfseg.config.settings import Settings
from pfseg.config.stored import expand_resume
from pfseg.errors import ConfigError
from pfseg.weights.checkpoint import save_checkpoint
from pfseg.weights.sources import find_checkpoint

ROOT = Path(__file__).parents[2]
CONF = config_dir()


def checked(*overrides: str) -> dict[str, Any]:
    return check(compose("train", ["gpus=0", *overrides])).dump()


def options(group: str) -> list[str]:
    heads = {head for head, _ in networks().values()} if group == "model" else set()
    return sorted({*heads, *(path.stem for path in (CONF / group).glob("*.yaml"))})


GROUPS = ("model", "model/backbone", "model/head", "loss", "loss/term", "optimizer", "schedule", "augment", "logger")
CHOICES = [
    f"{group}={name}"
    for group in (*GROUPS, "launch", "debug")
    for name in options(group)
    if name != "common"  # of the heads
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_fits_its_schema(choice: str):
    if choice.startswith("loss/term"):
        choice = choice.replace("=", "=[") + "]"
    config = checked(choice, *(["schedule.relax_epoch=3"] if choice == "schedule=scl_poly" else []))
    assert config["model"]["num_classes"] == len(config["dataset"]["classes"])


@pytest.mark.parametrize("name", [name for name in options("dataset") if name not in ("folder", "synthetic")])
def test_every_dataset_fits_its_schema(name: str, tmp_path: Path):
    assert checked(f"dataset={name}", f"dataset.root={tmp_path}")["dataset"]["root"] == str(tmp_path)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_with_debug(name: str, tmp_path: Path):
    config = checked(f"experiment={name}", "debug=fast", f"dataset.root={tmp_path}")
    assert config["name"] == name
    assert config["trainer"]["max_steps"] == 2
    assert config["ranks"] == 1


@pytest.mark.parametrize(
    ("name", "model", "variant", "total", "lr", "epochs", "crop", "scale", "vflip"),
    [
        ("isaid_r50_jittor", "pfnet_r50", "jittor", 16, 0.007, 20, 896, None, 0.5),
        ("isaid_r50", "pfnet_r50", "pytorch", 16, 0.007, 16, 896, None, 0.5),
        ("isaid_r101", "pfnet_r101", "pytorch", 16, 0.007, 16, 896, None, 0.5),
        ("potsdam_r50", "pfnet_r50", "pytorch", 16, 0.01, 100, 896, [0.5, 2.0], 0.0),
        ("vaihingen_r50", "pfnet_r50", "pytorch", 16, 0.01, 200, 768, [0.5, 2.0], 0.0),
        ("gaofen_img_r2n101", "pfnet_r2n101", "jittor", 8, 0.001, 64, 512, None, 0.5),
        ("gaofen_sar_r2n101", "pfnet_r2n101", "jittor", 8, 0.001, 64, 512, None, 0.5),
    ],
)
def test_published_recipes(name, model, variant, total, lr, epochs, crop, scale, vflip, tmp_path: Path):
    config = checked(f"experiment={name}", f"dataset.root={tmp_path}")
    assert (config["model"]["name"], config["model"]["variant"]) == (model, variant)
    assert config["batch_size"] * config["ranks"] == total
    assert config["optimizer"] == {
        "name": "sgd",
        "lr": lr,
        "scale_lr": "none",
        "reference_batch": 16,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": False,
        "decay_norms": True,
        "lr_factors": {},
    }
    assert config["trainer"]["max_epochs"] == epochs and config["trainer"]["max_steps"] is None
    assert config["dataset"]["crop_size"] == [crop, crop]
    assert config["dataset"]["edge"] == {"rule": "foreground", "thickness": 8}
    assert config["augment"]["scale_range"] == scale and config["augment"]["vflip"] == vflip
    assert config["schedule"]["per"] == "epoch" and config["schedule"]["legacy"] and config["schedule"]["power"] == 0.9
    assert (config["loss"]["edge_weight"], config["loss"]["min_kept"]) == (25.0, 10000)


@pytest.mark.parametrize("name", ["dubai", "isaid", "potsdam", "vaihingen"])
def test_tables_sweep_over_networks_of_one_recipe(name: str, tmp_path: Path):
    prepare_hydra()
    arguments = [f"experiment=table/{name}", f"dataset.root={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        config = hydra_compose("train", arguments, return_hydra_config=True)
    models = config.hydra.sweeper.params.model.split(",")
    assert len(models) == 9 and config.hydra.sweeper.params.seed == "1,2,3"
    for model in models:
        assert checked(*arguments, f"model={model}")["name"] == f"table_{name}"


def test_command_line_wins_over_an_experiment():
    config = checked("experiment=isaid_r50", "dataset=synthetic", "optimizer=adamw", "ranks=1")
    assert (config["dataset"]["name"], config["optimizer"]["name"]) == ("synthetic", "adamw")


def test_classes_of_the_synthetic_scenes():
    from pfseg.data.base import parse_classes
    from pfseg.data.synthetic import SyntheticDataset

    assert parse_classes(checked()["dataset"]["classes"]) == tuple(SyntheticDataset.classes)


def test_schemas_name_what_the_constructors_take():
    from pfseg.data.folder import FolderDataset
    from pfseg.data.synthetic import SyntheticDataset
    from pfseg.data.transforms import Augment as AugmentClass

    def names(schema: type[Settings]) -> set[str]:
        return set(schema.model_fields) - {"target"}

    assert set(inspect.signature(AugmentClass).parameters) == names(AugmentSettings)
    assert set(inspect.signature(FolderDataset).parameters) - {"split"} <= names(FolderData)
    assert set(inspect.signature(SyntheticDataset).parameters) - {"split"} <= names(SyntheticData)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["optimizer.lrr=3"], "unknown key `optimizer.lrr`: did you mean `optimizer.lr`. known keys of optimizer"),
        (["+optimizer.lrr=3"], "unknown key `optimizer.lrr`: did you mean `optimizer.lr`?"),
        (["+optimizer.momentum=0.9"], r"unknown key `optimizer.momentum`: known keys of optimizer \(adamw\): betas"),
        (["optimizer=sgd", "optimizer.momentun=0"], "did you mean `optimizer.momentum`?"),
        (["modle=pfnet_r50"], "unknown key `modle`: did you mean `model`?"),
        (["experimnt=isaid_r50"], "did you mean `experiment`?"),
        (["model/backbon=resnet18"], "unknown key `model.backbon`: did you mean `model.backbone`?"),
        (["optimizer.lr.x=3"], "`optimizer.lr` is a value and has no keys below it"),
        (["~seeds"], "unknown key `seeds`: did you mean `seed`?"),
        (["+seed=3"], r"`seed` exists already: leave out the \+"),
        (
            ["model=pfnet_r5O"],
            "`model=pfnet_r5O`: did you mean `model=pfnet_r50`. choices: .*pfnet, .*also with .*_r101, .*segnext_t",
        ),
        (["model/backbone=resnet34"], "unknown choice `model/backbone=resnet34`: did you mean"),
        (["logger=[wandb,tensorbord]"], "unknown choice `logger=tensorbord`: did you mean `logger=tensorboard`. choic"),
        (["logger=terminal"], "^unknown choice `logger=terminal`: choices: none, tensorboard, wandb$"),
        (
            ["logger=[wandb,tensorboard]", "logger.wandb.projet=x"],
            "unknown key `logger.wandb.projet`: did you mean `log",
        ),
        (["logger=tensorboard", "logger.wandb.project=x"], "unknown key `logger.wandb`: known keys of logger: tensorb"),
        (["+logger.comet={}"], "unknown key `logger.comet`: known keys of logger: tensorboard, wandb"),
        (["logger.wandb=null"], "logger.wandb=null: expected a group of settings, got null"),
        (
            ["logger.wandb.checkpoints=[bets]"],
            r"checkpoints=\[bets\]: expected a list in brackets, each last \| best",
        ),
        (["logger=null"], "a group of settings cannot be null: choose one of its files, such as logger=none"),
        (
            ["hydra/sweeper=optuma"],
            r"unknown choice `hydra/sweeper=optuma`: .*; others come with pip install 'pfseg\[sw",
        ),
        (["pruner={_target_:optuna.pruners.Nix}"], "pruner._target_=optuna.pruners.Nix: no such class; write it as"),
        (["optimizer.lr"], "cannot read `optimizer.lr`"),
        ([f"trainer.{'e' * 300}=1"], "unknown key `trainer.e{32}...` of 308 characters"),
        (
            ["optimizer.lr=1,2"],
            "`optimizer.lr=1,2` has several values: add -m .--multirun. to run them all, or put",
        ),
        (["optimizer.lr=fast"], "optimizer.lr=fast: expected a number above 0, got text"),
        (["optimizer.lr="], "optimizer.lr=: expected a number above 0, got nothing"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: expected a number above 0$"),
        (["optimizer.betas=[1,2,3]"], "expected 2 values in brackets, each a number of at least 0 and below 1, got a"),
        (["batch_size=1.5"], "batch_size=1.5: expected a whole number of at least 1$"),
        (["trainer.freeze_bn=maybe"], "trainer.freeze_bn=maybe: expected true or false, got text"),
        (["trainer.max_steps=true"], "trainer.max_steps=true: expected .* or null, got true or false"),
        (["dataset.edge.rule=all"], r"dataset.edge.rule=all: expected class \| foreground, got text"),
        (["dataset.edge=3"], "dataset.edge=3: expected a group of settings, got a whole number"),
        (["dataset.ignore_index=0"], "dataset.ignore_index=0: expected a whole number equal to 255"),
        (["optimizer.name=adamm"], r"optimizer.name=adamm: did you mean `adam`\? expected sgd \| adam \| adamw"),
        (["~optimizer.lr"], "optimizer.lr is missing"),
        (["model.backbone.depth=34"], r"expected 18 \| 50 \| 101"),
        (["model._target_=pfseg.models.mine.Net"], "model._target_=pfseg.models.mine.Net: no such class"),
        (["dataset=dubai"], "dataset.root is not set: add dataset.root=<folder of the data set>"),
        (["dataset=dubai", "dataset.root=/nowhere"], "dataset.root=/nowhere does not exist .looked in /nowhere.: set"),
        (["name=${nix}"], "cannot be resolved: Interpolation key 'nix' not found"),
        (["model.num_classes=3"], "model.num_classes=3, but dataset.classes of synthetic lists 6: set model.num_class"),
        (["dataset.crop_size=32"], "dataset.crop_size=32 is too small for model.variant=pytorch, which takes 64 px"),
        (["model.variant=jittor"], "crop_size=192 is too small for model.variant=jittor, which takes 448 px .*pytorch"),
        (["model.variant=jittor", "dataset.crop_size=448", "dataset.eval_size=[512,256]"], r"eval_size=\[512,256\]"),
        (["trainer.max_epochs=null"], "trainer.max_epochs and trainer.max_steps are both null"),
        (["schedule.legacy=true"], "schedule.legacy=true goes with epochs only"),
        (["schedule=scl_poly"], "schedule.relax_epoch is not set"),
        (["schedule=scl_poly", "schedule.relax_epoch=99"], "schedule.relax_epoch=99 is not below trainer.max_epochs"),
        (["dataset.scale_range=[2.0,0.5]"], r"dataset.scale_range=\[2,0.5\]: expected \[low, high\]"),
        (["dataset.edge.thickness=0"], "dataset.edge.thickness=0: expected a whole number of at least 1"),
        (["dataset.class_uniform=2"], "dataset.class_uniform=2: expected a number of at least 0 and of at most 1"),
        (["dataset.on_error=ignore"], r"dataset.on_error=ignore: expected raise \| skip"),
        (["dataset.size=32"], "dataset.size=32: expected a whole number of at least 64"),
        (["dataset.val_images=0"], "dataset.val_images=0: expected a whole number of at least 1"),
        (["augment.hflip=1.5"], "augment.hflip=1.5: expected a number of at least 0 and of at most 1"),
        (["augment.max_class_share=-1"], "augment.max_class_share=-1: expected a number of at least 0 and of at most"),
        (["augment.cutmix=2"], "augment.cutmix=2: expected a number of at least 0 and of at most 1"),
        (["augment.scale_range=[2,1]"], r"augment.scale_range=\[2,1\]: expected \[low, high\] in this order"),
        (["augment.scale_range=[1]"], r"augment.scale_range=\[1\]: expected 2 values in brackets"),
        (["augment.blur=[0,1]"], r"augment.blur=\[0,1\]: expected 2 values in brackets, each a number above 0"),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.bands=[0,1,2,3]"],
            r"dataset.mean has 3 values, but there are 4 bands: give one for each, or dataset.mean=null to have them",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.display_bands=[3,0,1]"],
            r"dataset.display_bands=\[3, 0, 1\]: band 3 is not among the network's bands \[0, 1, 2\]",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.stretch={range:[5,1]}"],
            r"dataset.stretch=.*expected",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.stretch=[98,2]"],
            r"dataset.stretch=\[98,2\]: expected \[low, high\] with low",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.stretch=[5]"],
            r"dataset.stretch=\[5\]: expected 2 values in brackets",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.stretch=[-1,50]"],
            r"dataset.stretch=\[-1,50\]: expected 2 values .* at least 0",
        ),
        (
            ["dataset=dubai", "dataset.root=.", "dataset.stretch=[0,101]"],
            r"dataset.stretch=\[0,101\]: expected 2 values .* at most 100",
        ),
        (["gpus=99"], "gpus=99 asks for more GPUs than are visible"),
        (["launch=inline", "ranks=2"], "launch=inline runs one rank, got ranks=2"),
        (["model.pretrained=no.pth"], "model.pretrained=no.pth does not exist .*: set model.pretrained=<a backbone"),
        (["model.init=no.pth"], "model.init=no.pth does not exist .*: set model.init=<a checkpoint or weights of"),
        (["loss.class_weights=[1,2]"], "loss.class_weights has 2 values, but dataset.classes of synthetic lists 6"),
        (["loss.seg_weight=0"], r"loss.seg_weight=0 and no further term: set .* or add loss/term=\[lovasz\]"),
        (["loss/term=[dice]", "loss.terms.dice.beta=-1"], "loss.terms.dice.beta=-1: expected a number of at least 0"),
        (["model.init=a.pth", "model.pretrained=b.pth"], "model.pretrained and model.init are both set: .* leave out"),
        (["resume=nowhere"], "resume=nowhere does not exist"),
    ],
)
def test_faults_name_the_key_and_the_remedy(overrides: list[str], text: str):
    with pytest.raises(ConfigError, match=text) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)


def test_loggers_are_chosen_together_or_left_out():
    assert checked("logger=none")["logger"] == checked("logger=[]")["logger"] == {}
    assert checked()["logger"].keys() == {"wandb"}
    both = checked("logger=[wandb,tensorboard]", "logger.wandb.project=mine")["logger"]
    assert both["wandb"]["project"] == "mine" and both["tensorboard"] == {}
    assert checked("debug=fast")["logger"] == {} and checked("debug=fast", "logger=wandb")["logger"].keys() == {"wandb"}


def test_a_dataset_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "town_data.py").write_text("class Town: ...\n")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "town.yaml").write_text(
        "defaults: [synthetic, _self_]\n_target_: town_data.Town\nname: town\nstreets: 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = check(compose("train", ["dataset=town"], folder=tmp_path))
    assert config.dataset.streets == 7 and config.dump()["dataset"]["streets"] == 7
    with pytest.raises(ConfigError, match=r"dataset\.std=3: expected numbers above 0 in brackets, one for each band"):
        check(compose("train", ["dataset=town", "dataset.std=3"], folder=tmp_path))
    with pytest.raises(ConfigError, match=r"town_data\.City: no such class"):
        check(compose("train", ["dataset=town", "dataset._target_=town_data.City"], folder=tmp_path))


def test_composing_leaves_an_outer_hydra_alone():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose("train")
        assert GlobalHydra.instance().hydra is outer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose name needs quotes."""
    folder = tmp_path / "a=b c"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("[name=x, model=pfnet_r50, seed=1, resume='/old']\n")
    save(folder)
    return folder


def save(folder: Path) -> None:
    """Leave what a training leaves in its folder once it has saved."""
    (folder / "resolved.yaml").write_text(yaml.safe_dump(checked()))
    save_checkpoint(folder / "checkpoints" / "last.safetensors", {}, {"config": checked()})


def test_resume_replays_the_run(run: Path):
    expanded = expand_resume([f"resume={run}", "seed=2", "model=pfnet_r18"])
    assert expanded == ["name=x", "seed=2", "model=pfnet_r18", f"resume='{run}'", f"hydra.run.dir='{run}'"]
    config = checked(*expanded)
    assert (config["name"], config["seed"], config["model"]["name"]) == ("x", 2, "pfnet_r18")
    assert config["resume"] == str(run)
    assert expand_resume(["seed=2", "resume=null"]) == ["seed=2", "resume=null"]


def test_resume_refuses_what_it_cannot_continue(run: Path):
    with pytest.raises(ConfigError, match="leave out -m"):
        expand_resume([f"resume={run}"], multirun=True)
    (run / "checkpoints" / "last.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no checkpoints/last\.safetensors"):
        expand_resume([f"resume={run}"])
    (run / "resolved.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has no resolved\.yaml: it never started"):
        expand_resume([f"resume={run}"])
    (run / ".hydra" / "overrides.yaml").unlink()
    with pytest.raises(ConfigError, match="is not a run folder"):
        expand_resume([f"resume={run}"])


def test_evaluate_finds_the_checkpoint(run: Path):
    last, best = run / "checkpoints" / "last.safetensors", run / "checkpoints" / "best.safetensors"
    assert find_checkpoint(run) == last
    for path in (last, best):
        save_checkpoint(path, {}, {"config": checked()})
    assert find_checkpoint(run) == best
    assert run_folder(str(run)) == run_folder(str(last)) == str(run)
    config = check(compose("evaluate", [f"checkpoint='{last}'", "eval_size=512"]))
    assert (config.checkpoint, config.eval_size) == (str(last), (512, 512))
    for value, text in {
        "nowhere": "checkpoint=nowhere does not exist",
        str(run / ".hydra"): r"holds no checkpoints/best\.safetensors",
        str(run / ".hydra" / "overrides.yaml"): r"must be a run folder, a \.safetensors file of a run or",
        "???": "checkpoint is not set: add checkpoint=<run folder",
    }.items():
        with pytest.raises(ConfigError, match=text):
            check(compose("evaluate", [f"checkpoint='{value}'"]))


# `pfseg train`, which does nothing but say where it runs.
COMMAND = """
import sys
from hydra.core.hydra_config import HydraConfig
from pfseg.commands import train
from pfseg.commands.app import main

def run(settings):
    if settings.seed == 13:
        raise RuntimeError("boom")
    sys.stdout.write(HydraConfig.get().runtime.output_dir)

train.run = run
main("train")
"""


def command(folder: Path, *args: str, code: str = COMMAND, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code, *args], cwd=folder, env=env, capture_output=True, text=True)


def test_a_fault_is_one_line_before_anything_is_written(tmp_path: Path):
    (trap := tmp_path / "trap").mkdir()
    (trap / "jittor.py").write_text("raise SystemExit('Jittor was imported')")  # which takes seconds
    (folder := tmp_path / "folder").mkdir()
    start = [sys.executable, ROOT / "train.py", "optimizer.lrr=3"]
    environment = {**os.environ, "PYTHONPATH": str(trap)}
    done = subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown key `optimizer.lrr`") and done.stderr.count("\n") == 1
    assert not list(folder.iterdir())


def test_checking_loads_neither_jittor_nor_opencv(tmp_path: Path):
    code = "import sys\nfrom pfseg.config.check import check\nfrom pfseg.config.compose import compose\n"
    code += "check(compose('train'))\n"
    done = command(tmp_path, code=code + "sys.exit(bool({'jittor', 'cv2', 'wandb'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_is_resumed_in_its_folder(tmp_path: Path):
    folder = Path(command(tmp_path, "name=a=b c", "seed=5").stdout)
    assert folder.parts[-3] == "a=b c"
    save(folder)
    relative = folder.relative_to(tmp_path)
    for epochs in (3, 4):
        done = command(tmp_path, f"resume={relative}", f"trainer.max_epochs={epochs}")
        assert done.stdout == str(folder), done.stderr
        saved = list(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
        assert saved == ["name='a=b c'", "seed=5", f"trainer.max_epochs={epochs}", f"resume='{folder}'"]
    assert command(tmp_path, f"resume={relative}", "seed=-1").returncode == 2
    done = command(tmp_path, f"resume={relative}", "model=pfnet_r50")
    assert done.returncode == 1 and "was trained with model.backbone.depth=18, this run has 50; resume" in done.stderr
    assert list(OmegaConf.load(folder / ".hydra" / "overrides.yaml")) == saved


def test_a_run_is_repeated_in_a_new_folder(tmp_path: Path):
    """By Hydra's --experimental-rerun, with the settings of then; the run itself is left as it is."""
    folder = Path(command(tmp_path, "name=first", "seed=5").stdout)
    before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = command(tmp_path, "--experimental-rerun", str(folder / ".hydra" / "config.pickle"))
    again = Path(done.stdout)
    assert done.returncode == 0 and again.parent == folder.parent and again.name.startswith(f"{folder.name}-again-")
    assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert list(OmegaConf.load(again / ".hydra" / "overrides.yaml")) == ["name=first", "seed=5"]
    assert command(tmp_path, "--experimental-rerun", str(folder / "x"), "seed=3").returncode == 2


def test_other_errors_keep_their_traceback(tmp_path: Path):
    done = command(tmp_path, "seed=13")
    assert done.returncode == 1
    (kept,) = tmp_path.glob("outputs/*/*/*/error.txt")
    assert "RuntimeError: boom" in kept.read_text()
    assert "RuntimeError: boom" in done.stderr and "Error executing job" not in done.stderr


def test_a_sweep_keeps_each_failure(tmp_path: Path):
    done = command(tmp_path, "-m", "seed=1,13,-2")
    assert done.returncode != 0
    texts = {path.parent.name: path.read_text() for path in tmp_path.glob("outputs/*/*/*/*/error.txt")}
    assert set(texts) == {"1", "2"}
    assert "RuntimeError: boom" in texts["1"]
    assert texts["2"].startswith("error: seed=-2: expected a whole number of at least 0")


@pytest.mark.parametrize(
    ("args", "env", "text"),
    [
        ([], {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "pfseg train ranks=4"),
        (["--lr", "3"], {}, "settings are given as key=value, without dashes"),
    ],
)
def test_command_lines_that_are_refused(args, env, text, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as caught:
        main("train")
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("root: x\n\tname: y", r"^\S+/conf/dataset/mine.yaml:2 can't be read as YAML: found character"),
        ("root: {a: 1", r"^\S+/mine.yaml:1 can't be read as YAML: expected"),
        ("name: a\nname: b", r"^\S+/mine.yaml:2 can't be read as YAML: found duplicate key name$"),
        ("name: " + "[" * 3000, r"^\S+/mine.yaml:1 can't be read as YAML: exceeded maximum nesting depth$"),
        ("name: \udcff", r"^\S+/mine.yaml can't be read as YAML: 'utf-8' codec"),
        ("a: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)), "absurd size$"),
        ('defaults: [{"": ""}]', r"^an entry of `defaults` has no name: check `defaults` in your own files$"),
        ("defaults: [mine]", r"^YAML files include each other in a circle: check `defaults` in your own files$"),
    ],
    ids=["tab", "brace", "twice", "deep", "bytes", "bomb", "nameless", "circle"],
)
@pytest.mark.timeout(30)
def test_damaged_files_of_the_users_own_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, text: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "mine.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=text) as error:
        compose("train", ["dataset=mine"])
    assert "\n" not in str(error.value)
