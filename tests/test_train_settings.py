"""Settings of the training programs: command lines, configuration files, recipes, and which of them has the last word."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from atmnet_train import ade20k, coco, demo, demo_video, imagenet, video
from atmnet_train.common import config
from atmnet_train.common.errors import UsageError, run_program
from atmnet_train.common.flags import build_parser, default_in_words
from atmnet_train.common.program import Program
from atmnet_train.common.settings import about, defaults, fields_of, flatten, is_of, shape

PROGRAMS = {"imagenet": imagenet.PROGRAM, "ade20k": ade20k.PROGRAM, "coco": coco.PROGRAM, "video": video.PROGRAM}
DATA = ["--data-dir", "x"]


def values(program: str, *flags: object) -> dict[str, Any]:
    return flatten(PROGRAMS[program].parse([*DATA, *map(str, flags)]))


@pytest.mark.parametrize(
    ("program", "line", "expected"),
    [
        ("imagenet", "-b 4", {"batch_size": 4}),
        ("imagenet", "-b4", {"batch_size": 4}),
        ("imagenet", "--batch-size=4", {"batch_size": 4}),
        ("imagenet", "--batch-size 4 --batch-size 6", {"batch_size": 6}),
        ("imagenet", "--model ATMNet-B", {"model": "atmnet_b", "drop_path": 0.3, "output": "output/atmnet_b"}),
        ("imagenet", "--model-kwargs depths=(1,1) n=a=b --lr 1", {"model_kwargs": ["depths=(1,1)", "n=a=b"], "lr": 1.0}),
        ("imagenet", "--model-kwargs --img-size 32", {"model_kwargs": [], "img_size": 32}),
        ("imagenet", "--scale 0.7 1", {"scale": [0.7, 1.0]}),
        ("imagenet", "--color-jitter 0 --hflip 1", {"color_jitter": 0.0, "hflip": 1.0}),
        ("imagenet", "--aa none --mixed-precision no", {"aa": "none", "mixed_precision": "no"}),
        ("imagenet", "--no-tune", {"tune": False}),
        ("imagenet", "--no-tune --tune", {"tune": True}),
        ("imagenet", "--no-aug", {"no_aug": True}),
        ("imagenet", "--no-aug --aug", {"no_aug": False}),
        ("imagenet", "--torchcompile --ema", {"compile": True, "ema": True}),
        ("imagenet", "--compile --no-compile", {"compile": False}),
        ("imagenet", "--epo 7 --sched-on", {"epochs": 7, "sched_on_updates": True}),
        ("imagenet", "--finetune --init-from x --epochs 10", {"epochs": 10, "lr": 5e-6, "img_size": 384, "warmup_epochs": 0}),
        ("ade20k", "--head upernet", {"neck": None, "iterations": 160_000, "eval_interval": 16_000, "lr": 6e-5, "batch_size": 2}),
        ("ade20k", "--iterations 50", {"neck": "fpn", "eval_interval": 5, "lr": 2e-4}),
        ("ade20k", "--head upernet --iterations 40000", {"iterations": 40_000, "eval_interval": 4_000}),
        ("coco", "--min-size 64 80 96", {"min_size": [64, 80, 96]}),
        ("coco", "--schedule 3x --epochs 24", {"epochs": 24, "decay_epochs": [18, 22], "min_size": list(range(480, 801, 32))}),
        ("coco", "--resume auto --model resnet50 --pretrained", {"resume": "auto", "drop_path": None, "pretrained": True}),
    ],
)  # fmt: skip
def test_command_lines(program: str, line: str, expected: dict[str, Any]) -> None:
    found = values(program, *line.split())
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_tells_every_flag_and_its_default(name: str) -> None:
    program = PROGRAMS[name]
    parser = build_parser(program.name, program.description, program.settings)
    actions = [action for action in parser._actions if action.dest != "help"]
    assert len(actions) == 1 + len(fields_of(program.settings)) > 30
    for action in actions:
        assert re.match(r"\S.* \(default: [^()]+\)$", action.help or ""), (action.option_strings, action.help)
        assert not re.search(r"default: (None|True|False|\[|SUPPRESS)", action.help or ""), action.help
    assert all(f"{action.option_strings[0]}" in parser.format_help() for action in actions)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_default_that_is_none_is_told_in_words(name: str) -> None:
    for field in fields_of(PROGRAMS[name].settings).values():
        assert field.default not in (None, "") or about(field).told, field.name
        kind, _, optional = shape(field)
        assert optional == (field.default is None), f"{field.name}: optional is what has no default"
        for value in field.default if isinstance(field.default, tuple) else [field.default]:
            assert value is None or type(value) is kind, field.name
        assert default_in_words(field)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_two_components_have_a_setting_of_one_name(name: str) -> None:
    kinds = [field.type for field in PROGRAMS[name].settings.__dataclass_fields__.values()]
    assert sum(len(kind.__dataclass_fields__) for kind in kinds) == len(fields_of(PROGRAMS[name].settings))


def test_a_flag_over_the_file_over_the_checkpoint_over_the_model_over_the_default(tmp_path: Path) -> None:
    """Flag, file, checkpoint, model and default are in turn the last to say what drop path and image size are."""
    meta = {"model": "atmnet_b", "img_size": 64, "recipe": {"crop_pct": 0.5, "model_kwargs": ["period=1"]}, "classes": []}
    torch.save({"progress": {}, "model": {"w": torch.zeros(1)}, "ema": None, "meta": meta}, tmp_path / "last.pt")
    file = tmp_path / "my.yaml"
    file.write_text("img-size: 96\ndrop_path: 0.7\n")
    trained = ["--eval", tmp_path / "last.pt"]

    def seen(*flags: object) -> tuple[Any, ...]:
        found = values("imagenet", *flags)
        return tuple(found[name] for name in ("img_size", "drop_path", "crop_pct", "model"))

    assert seen() == (224, 0.1, 0.875, "atmnet_t")  # the defaults
    assert seen("--model", "atmnet-l") == (224, 0.3, 0.875, "atmnet_l")  # over them the model's
    assert seen(*trained) == (64, 0.3, 0.5, "atmnet_b")  # over them the checkpoint's
    assert values("imagenet", *trained)["model_kwargs"] == ["period=1"]
    assert seen(*trained, "--config", file) == (96, 0.7, 0.5, "atmnet_b")  # over them the file's
    assert seen("--img-size", 32, *trained, "--config", file, "--drop-path", 0) == (32, 0.0, 0.5, "atmnet_b")  # over them the flags
    file.write_text("model: atmnet-l\nepochs: null\n")
    assert seen("--config", file) == (224, 0.3, 0.875, "atmnet_l")  # the file names the model whose defaults count
    assert values("imagenet", "--config", file)["epochs"] == 300


def test_a_head_in_a_file_brings_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("head: upernet\nlr: 1e-4\n")
    found = values("ade20k", "--config", tmp_path / "my.yaml")
    assert (found["iterations"], found["lr"], found["neck"], found["power"]) == (160_000, 1e-4, None, 1.0)


def test_values_in_files_are_read_as_flags_are(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "lr: 1e-3\nmixed_precision: no\ncompile: yes\ntune: false\naa: none\nscale: [0.7, 1]\nmodel_kwargs:\n- depths=(1,1)\n- a=b\n"
    )
    found = values("imagenet", "--config", tmp_path / "my.yaml")
    expected = {"lr": 1e-3, "mixed_precision": "no", "compile": True, "tune": False, "aa": "none", "scale": [0.7, 1.0]}
    assert {name: found[name] for name in expected} == expected and found["model_kwargs"] == ["depths=(1,1)", "a=b"]
    (tmp_path / "my.yaml").write_text("# nothing\n")
    assert values("imagenet", "--config", tmp_path / "my.yaml") == values("imagenet")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("epoch: 3", r"my\.yaml: epoch: 3: imagenet\.py has no setting epoch; did you mean epochs"),
        ("wings: 2", r"my\.yaml: wings: 2: imagenet\.py has no setting wings"),
        ("epochs: three", r"my\.yaml: epochs: three: it must be a whole number"),
        ("epochs: 3.5", r"epochs: 3\.5: it must be a whole number"),
        ("lr: fast", r"lr: fast: it must be a number"),
        ("lr: [1, 2]", r"lr: .*: it must be one value \(float\), not a list"),
        ("compile: maybe", r"compile: maybe: it must be one of true, yes, on, false, no, off"),
        ("sched: cosin", r"sched: cosin: it must be one of cosine, poly, tanh, step; did you mean cosine\?"),
        ("scale: 0.7", r"scale: 0\.7: it must be a list of 2"),
        ("scale: [0.7]", r"scale: .*: it must be a list of 2"),
        ("- epochs", r"my\.yaml holds a list: a configuration has lines `setting: value`"),
        ("epochs: [", r"my\.yaml is not YAML that can be read"),
        ("[" * 5000, r"my\.yaml is not YAML that can be read"),
        ("lr: [&a0 [x]" + "".join(f", &a{n + 1} [*a{n}, *a{n}]" for n in range(60)) + "]", r"lr: .*: it must be one value"),
        ("reprob: 1.5", r"--reprob 1\.5: it must be between 0 and 1"),
    ],
)
def test_files_that_cannot_work(content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yaml").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        run_program(lambda: imagenet.main(["--config", str(tmp_path / "my.yaml")]))
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize("text", ["lr: 1e-3\nlr: 1e-4", "batch-size: 2\nbatch_size: 4"])
def test_a_setting_given_twice(text: str, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"twice\.yaml .*: (lr|batch_size) is given more than once"):
        imagenet.parse(["--config", str(tmp_path / "twice.yaml")])


def test_a_list_of_nothing_is_of_no_setting() -> None:
    assert not is_of(fields_of(coco.PROGRAM.settings)["min_size"], ()) and is_of(fields_of(coco.PROGRAM.settings)["model_kwargs"], ())


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        UsageError,
        match=r"--config smal: there is no such file, nor such a recipe; did you mean small\? There are imagenet, imagenet-384, small$",
    ):
        imagenet.parse(["--config", "smal"])


# Of which program each recipe is.
OF = {"imagenet.yaml": "imagenet", "imagenet-384.yaml": "imagenet", "small.yaml": "imagenet", "semantic-fpn.yaml": "ade20k"}
OF |= {"upernet.yaml": "ade20k", "coco-1x.yaml": "coco", "coco-3x.yaml": "coco", "small-video.yaml": "video"}


@pytest.mark.parametrize("recipe", OF)
def test_recipes_are_named_by_name_or_path(recipe: str) -> None:
    program = OF[recipe]
    assert [name for name, its in PROGRAMS.items() if recipe in config.recipes_of(its.settings)] == [program]
    more = ["--init-from", "x"] if recipe == "imagenet-384.yaml" else []
    found = values(program, "--config", recipe, *more)
    assert found == values(program, "--config", recipe.removesuffix(".yaml"), *more)
    assert found == values(program, "--config", config.RECIPE_FOLDER / recipe, *more)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("imagenet", ""),
        ("imagenet-384", "--finetune"),
        ("semantic-fpn", ""),
        ("upernet", "--head upernet"),
        ("coco-1x", ""),
        ("coco-3x", "--schedule 3x"),
    ],
)
def test_a_recipe_is_what_the_program_does_by_itself(recipe: str, flags: str) -> None:
    program = OF[f"{recipe}.yaml"]
    start = ["--init-from", "x"] if program == "imagenet" else []
    ours, theirs = values(program, "--config", recipe, *start), values(program, *start, *flags.split())
    assert ours == theirs


def test_the_small_recipe_is_for_few_images() -> None:
    found = values("imagenet", "--config", "small", "--epochs", 3)
    assert found["warmup_epochs"] < 3 and found["sched_on_updates"] and found["lr"] == 1e-3 and found["model"] == "atmnet_xt"
    with pytest.raises(UsageError, match=r"leaves nothing of --epochs 3: .*--config small\.yaml"):
        values("imagenet", "--epochs", 3)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_is_repeated_by_the_file_that_it_writes(small_run: Callable[..., None], two_classes: Path, tmp_path: Path) -> None:
    small_run(two_classes, tmp_path / "run", "--scale", "0.5", "1", "--model-kwargs", "ls_init_value=None", "--mixed-precision", "no")
    written = tmp_path / "run" / "config.yaml"
    assert set(config.read_yaml(written)) == set(defaults(imagenet.Settings))
    assert not (tmp_path / "run" / "config.yaml.tmp").exists()
    imagenet.main(["--config", str(written), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "steps.csv").read_text() == (tmp_path / "run" / "steps.csv").read_text()
    first, second = (config.read_yaml(tmp_path / name / "config.yaml") for name in ("run", "again"))
    assert first == second | {"output": first["output"]}

    imagenet.main(["--eval", str(tmp_path / "run"), "--data-dir", str(two_classes), "--workers", "0", "--output", str(tmp_path / "run")])
    assert config.read_yaml(written) == first  # which the evaluation leaves alone
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    imagenet.main(["--config", str(tmp_path / "run" / "eval.yaml"), "--output", str(tmp_path / "eval")])
    again = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert again | {"seconds": 0} == report | {"seconds": 0} and report["img_size"] == 32


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_written_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    program: Program[Any] = PROGRAMS[name]
    settings = program.parse([*DATA, "--model-kwargs", "depths=(1,1)", "note='it: #no'", "--mixed-precision", "no", "--clip-grad", "1e-7"])
    config.write_config(tmp_path / "config.yaml", settings)
    assert program.parse(["--config", str(tmp_path / "config.yaml")]) == settings


def test_every_recipe_is_of_a_program() -> None:
    assert {path.name for path in config.RECIPE_FOLDER.iterdir()} == set(OF)


def test_the_demo_trains_by_the_small_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(demo.imagenet, "main", commands.append)
    demo.train(tmp_path / "mnist", tmp_path / "run", epochs=6)
    found = values("imagenet", *commands[0])
    assert found == values("imagenet", "--config", "small") | {
        **{"data_dir": str(tmp_path / "mnist"), "output": str(tmp_path / "run"), "img_size": 32, "epochs": 6, "hflip": 0.0}
    }


@pytest.mark.parametrize("along_time", ["none", "all"])
def test_the_demo_of_videos_differs_in_time_alone(along_time: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(demo_video.video, "main", commands.append)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("{}")
    demo_video.train(tmp_path / "digits", tmp_path / "run", along_time, epochs=6)
    found = values("video", *commands[0])
    assert found["model_kwargs"] == [*demo_video.NETWORK, f"time={along_time}"] and found["hflip"] == 0.0
    assert (found["frames"], found["img_size"], found["epochs"]) == (8, 24, 6)
    small = values("video", "--config", "small-video")
    assert all(found[name] == small[name] for name in ("batch_size", "mixup", "cutmix", "color_jitter", "warmup_epochs"))
