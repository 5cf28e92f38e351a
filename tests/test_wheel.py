"""Wheel as users install it: three packages, which import from anywhere and build a model."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # Of a copy: a build writes beside the sources, and each process of tests makes its own.
    folder, sources = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    for name in ("atm_triton", "models", "train"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(sources)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (file,) = folder.glob("*.whl")
    return file


def test_it_holds_the_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    parts = {"atm_triton": ROOT / "atm_triton", "atmnet": ROOT / "models" / "atmnet", "atmnet_train": ROOT / "train" / "atmnet_train"}
    ours = {f"{part}/{path.relative_to(folder)}" for part, folder in parts.items() for path in folder.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    assert {name.split("/")[0] for name in names} == set(parts)
    recipes = {f"atmnet_train/recipes/{path.name}" for path in (ROOT / "train" / "atmnet_train" / "recipes").iterdir()}
    assert len(recipes) == 8 and recipes <= names
    assert {"atm_triton/py.typed", "atmnet/py.typed", "atmnet/offsets/page.html", "atm_triton/tuning/configs/nvidia-h200.json"} <= names


def test_it_asks_for_all_that_it_imports(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    requirements = archive.read(metadata).decode()
    always = {name.replace("-", "_") for name in re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", requirements, re.M)}
    # What single commands and the training programs need.
    extras = set(re.findall(r"^Requires-Dist: ([\w-]+).*; extra == .(?:export|pictures|serve|train|demo|video).$", requirements, re.M))
    extras = {name.replace("-", "_") for name in extras}
    imported = set()
    for name in archive.namelist():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(archive.read(name))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module else []
                imported |= {name.split(".")[0] for name in names}
    imported = {{"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn"}.get(name, name) for name in imported}
    imported -= {*sys.stdlib_module_names, "atm_triton", "atmnet", "triton"}  # Triton is used where it is there
    assert always <= imported <= always | extras


def test_a_model_and_a_training_program_run_from_it(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
        import atm_triton, atmnet, timm, torch
        import atmnet_train.imagenet
        assert all(module.__file__.startswith(FOLDER) for module in (atm_triton, atmnet, atmnet_train)), atmnet.__file__
        assert atmnet_train.imagenet.parse(["--config", "small.yaml"]).schedule.sched_on_updates
        print(tuple(timm.create_model("atmnet_xt", num_classes=3)(torch.zeros(1, 3, 32, 32)).shape))
    """.replace("FOLDER", repr(str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.strip() == "(1, 3)", done.stderr
