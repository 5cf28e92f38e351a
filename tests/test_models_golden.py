"""ATMNet-xT computes the published network.

``fixtures/official_xt_*.safetensors`` hold what the authors' implementation returns in float64 on weights drawn from each parameter's name.
Their metadata say which image; of stages and of the image's gradient every 13th value is kept, of the largest map every 4th row and
column before that. In float32 the published code itself differs from them by up to 5e-6.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import atmnet
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from atmnet.weights.naming import from_official
from safetensors import safe_open
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 5e-5


def published_weights(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Weights for published parameter names, seeded by the name: norms around one, offsets of a few tokens."""
    weights = {}
    for name, shape in shapes.items():
        n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            is_norm = ("norm" in name or name.endswith("offset_layer.0.weight")) and name.endswith("weight")
            values = 1 + 0.1 * n if is_norm else 0.1 * n
        else:
            gain = 3 if "offset_layer" in name else 0.3 if "pos_blocks" in name else 1
            values = (gain * n).astype(np.float64) / math.sqrt(math.prod(shape[1:]))
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


class Golden:
    def __init__(self, case: str) -> None:
        with safe_open(FIXTURES / f"official_xt_{case}.safetensors", "pt") as file:
            self.values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.meta = {name: int(value) for name, value in file.metadata().items() if value.isdigit()}

    def images(self) -> Tensor:
        shape = [self.meta["batch"], 3, self.meta["height"], self.meta["width"]]
        return torch.from_numpy(np.random.RandomState(self.meta["input_seed"]).standard_normal(shape).astype(np.float32))

    def error(self, name: str, actual: Tensor) -> float:
        """Relative error in the L2 norm."""
        if name == "stage1":
            actual = actual[:, :: self.meta["stage1_step"], :: self.meta["stage1_step"]]
        if name.startswith("stage") or name == "input.grad":
            actual = actual.flatten()[:: self.meta["every"]]
        expected = self.values[name]
        assert actual.shape == expected.shape
        return ((actual - expected).norm() / expected.norm()).item()

    def errors(self, model: atmnet.ATMNet) -> dict[str, float]:
        images = self.images().to(next(model.parameters()).dtype)
        with torch.no_grad():
            final, stages = model.forward_intermediates(images, output_fmt="NHWC")
            logits = model.forward_head(final)
        return {"logits": self.error("logits", logits)} | {f"stage{i + 1}": self.error(f"stage{i + 1}", y) for i, y in enumerate(stages)}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return published_weights(json.loads((FIXTURES / "official_xt_keys.json").read_text()))


@pytest.fixture
def model(weights) -> atmnet.ATMNet:
    return atmnet.load_official(timm.create_model("atmnet_xt"), weights).eval()


@pytest.mark.parametrize("case", ["160x256_eval", "224x224_eval", "96x96_train"])
def test_logits_and_stages(model, case):
    errors = Golden(case).errors(model)
    assert len(errors) == 5
    assert max(errors.values()) < TOLERANCE, errors


def test_logits_and_stages_in_float64(model):
    errors = Golden("96x96_train").errors(model.double())
    assert max(errors.values()) < 1e-7, errors


def test_loss_and_gradients(model):
    golden = Golden("96x96_train")
    images = golden.images().requires_grad_()
    loss = F.cross_entropy(model.train()(images), torch.arange(len(images)) % 7)
    loss.backward()
    assert golden.error("loss", loss.detach().reshape(1)) < TOLERANCE
    assert golden.error("input.grad", images.grad) < TOLERANCE

    parameters = dict(model.named_parameters())
    expected = {name.removeprefix("gradnorm."): norm.item() for name, norm in golden.values.items() if name.startswith("gradnorm.")}
    assert {from_official(name) for name in expected} == set(parameters)
    # Gradients that cancel to nothing but rounding are left a floor.
    floor = 1e-6 * max(expected.values())
    norms = {name: parameters[from_official(name)].grad.double().norm().item() for name in expected}
    wrong = {name: (norms[name], norm) for name, norm in expected.items() if abs(norms[name] - norm) > TOLERANCE * norm + floor}
    assert not wrong


def swap_axes(model):
    for stage in model.stages:
        for block in stage.blocks:
            block.mixer.fc_w, block.mixer.fc_h = block.mixer.fc_h, block.mixer.fc_w


def drop_positions(model):
    for stage in model.stages:
        stage.peg.forward = lambda x, height: x


def other_epsilon(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def approximate_gelu(model):
    for stage in model.stages:
        for block in stage.blocks:
            block.mlp.act = torch.nn.GELU("tanh")


@pytest.mark.parametrize("mistake", [swap_axes, drop_positions, other_epsilon, approximate_gelu])
def test_a_wrong_network_is_told_apart(model, mistake):
    mistake(model)
    assert Golden("160x256_eval").errors(model)["logits"] > 2 * TOLERANCE
