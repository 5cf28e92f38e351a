"""The mixer as a module: the composition, its offsets, and what users do with modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import INTERPRETER, PATHS
from oracles import dense_gather

from atm_triton import ActiveTokenMixer


def published(mixer: ActiveTokenMixer, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The paper's equations, written out."""
    B, H, W, C = x.shape
    groups = C // mixer.share
    w = mixer.fc_w(dense_gather(x, offset[..., :groups], "w"))
    h = mixer.fc_h(dense_gather(x, offset[..., groups:], "h"))
    c = mixer.fc_c(x)
    s = (w + h + c).reshape(B, H * W, C).mean(1)
    alpha = mixer.logits.fc2(F.gelu(mixer.logits.fc1(s))).reshape(B, C, 3).softmax(2)
    return mixer.proj(w * alpha[:, None, None, :, 0] + h * alpha[:, None, None, :, 1] + c * alpha[:, None, None, :, 2])


@pytest.fixture
def mixer() -> ActiveTokenMixer:
    torch.manual_seed(0)
    mixer = ActiveTokenMixer(12, share=3)
    for p in mixer.parameters():  # away from the initial values, which would hide a mistake behind small numbers
        torch.nn.init.normal_(p, std=0.5)
    return mixer


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_papers_equations(mixer, path):
    x, offset = torch.randn(2, 5, 7, 12), torch.randn(2, 5, 7, 8) * 3
    expected = published(mixer.double(), x.double(), offset.double()).float()
    mixer = mixer.float().to(path.device)
    with path.active():
        actual = mixer(x.to(path.device), offset.to(path.device)).cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_without_offsets_it_makes_its_own(mixer):
    x = torch.randn(2, 5, 7, 12)
    own = F.linear(F.layer_norm(x, (12,), mixer.offset.norm_weight, mixer.offset.norm_bias), mixer.offset.weight, mixer.offset.bias)
    torch.testing.assert_close(mixer(x), mixer(x, own))
    mixer(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())


def test_kernels_and_plain_path_train_alike(mixer):
    x = torch.randn(2, 5, 7, 12)
    grads = []
    for path in (PATHS[0], INTERPRETER):
        mixer.zero_grad()
        with path.active():
            mixer(x).square().mean().backward()
        grads.append([p.grad.clone() for p in mixer.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compile(mixer, mode):
    getattr(mixer, mode)()
    compiled = torch.compile(mixer, fullgraph=True)
    for x in (torch.randn(2, 5, 7, 12), torch.randn(3, 8, 4, 12), torch.randn(1, 6, 30, 12)):
        torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-4)


def test_copies_pickles_and_state(mixer):
    x = torch.randn(1, 4, 4, 12)
    buffer = io.BytesIO()
    torch.save(mixer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), mixer(x))
    fresh = ActiveTokenMixer(12, share=3)
    fresh.load_state_dict(mixer.state_dict())
    assert torch.equal(fresh(x), mixer(x))
    assert "12, share=3" in repr(mixer)


def test_export_takes_the_plain_path():
    mixer = ActiveTokenMixer(8, share=2).eval()
    x = torch.randn(2, 6, 5, 8)
    exported = torch.export.export(
        mixer, (x,), dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")},)
    )
    other = torch.randn(3, 9, 4, 8)
    torch.testing.assert_close(exported.module()(other), mixer(other))
