"""The operators as a kernel of Hugging Face's Kernel Hub, beside the installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import imported

import atm_triton
from atm_triton import hub_kernel
from atm_triton.__main__ import main

# In a process of its own, offline: the copy is loaded, all of it, and its operators agree with the installed package's.
CHECK = """
import importlib, sys
from pathlib import Path
import kernels, torch
import atm_triton

repository = Path(sys.argv[1])
kernel = kernels.get_local_kernel(repository)
(loaded,) = kernels.get_loaded_kernels()
name, variant = loaded.metadata.id, Path(kernel.__file__).parent
assert kernel.__name__ == name and kernel.token_mix is not atm_triton.token_mix
for file in variant.rglob("*.py"):
    if file.parent.name != "atm_triton":
        importlib.import_module(".".join([name, *file.relative_to(variant).with_suffix("").parts]).removesuffix(".__init__"))
registered = lambda space: {op.split("::")[1] for op in torch._C._dispatch_get_all_op_names() if op.split("::")[0] == space}
assert registered(name) == registered("atm_triton") and len(registered(name)) >= 8

torch.manual_seed(0)
x = torch.randn(2, 5, 7, 16, requires_grad=True)
copy, ours = kernel.ActiveTokenMixer(16, 2), atm_triton.ActiveTokenMixer(16, 2)
ours.load_state_dict(copy.state_dict())
gradients = []
for mixer in (copy, ours):
    y = mixer(x)
    gradients.append((y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])))
assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
program = torch.export.export(copy.eval(), (x.detach(),))
assert any(str(node.target).startswith(name) for node in program.graph.nodes), program
print(name)
"""


def test_the_kernel_stands_beside_the_package(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("kernels")
    assert main(["hub-kernel", str(tmp_path / "kernel"), "--version", "3"]) == 0
    assert "_atm_triton_cpu_" in capsys.readouterr().out
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(atm_triton.__file__).parents[1]), "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CHECK, str(tmp_path / "kernel")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("_atm_triton_")


def test_the_digests_are_those_of_kernels(tmp_path: Path):
    rust = pytest.importorskip("kernels._rust")
    hub_kernel.write_kernel(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["torch-cpu", "torch-cuda", "torch-rocm"]
    for variant in (tmp_path / "build").iterdir():
        metadata = rust.Metadata.read_from_file(variant / "metadata.json")
        metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, variant))
        assert (metadata.version, metadata.python_depends) == (2, ["einops"])


def test_what_the_kernel_leaves_out(tmp_path: Path):
    """What needs more than torch and einops, or is of commands."""
    names: dict[str, object] = {}
    exec(hub_kernel.INIT[hub_kernel.INIT.index("__all__") :], names)
    assert set(atm_triton.__all__) - set(names["__all__"]) == {"Report", "swap", "unswap", "tune"}
    identifiers = hub_kernel.write_kernel(tmp_path / "kernel", 1)
    variant = tmp_path / "kernel/build/torch-cpu"
    assert json.loads((variant / "metadata.json").read_text())["id"] == identifiers[0]
    for file in variant.rglob("*.py"):
        assert imported(file) <= {*sys.stdlib_module_names, "torch", "einops", "triton"}, file
    with pytest.raises(ValueError, match="is not empty"):
        hub_kernel.write_kernel(tmp_path / "kernel", 1)
    with pytest.raises(ValueError, match="version 0: it must be at least 1"):
        hub_kernel.write_kernel(tmp_path / "other", 0)


def test_older_versions_find_the_kernel_in_its_folder(tmp_path: Path):
    identifiers = hub_kernel.write_kernel(tmp_path, 1)
    code = "import torch, atm_triton; print(atm_triton.token_mix.__module__, atm_triton.OffsetFC(8)(torch.zeros(1, 2, 2, 8)).shape)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "build/torch-cpu")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(f"{identifiers[0]}.ops.token_mix"), done.stderr
