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
    groups = x.shape[3] // mixer.share
    w = mixer.fc_w(dense_gather(x, offset[..., :groups], "w"))
    h = mixer.fc_h(dense_gather(x, offset[..., groups:], "h"))
    c = mixer.fc_c(x)
    s = (w + h + c).mean((1, 2))
    alpha = mixer.logits.fc2(F.gelu(mixer.logits.fc1(s))).reshape(*s.shape, 3).softmax(2)
    return mixer.proj(w * alpha[:, None, None, :, 0] + h * alpha[:, None, None, :, 1] + c * alpha[:, None, None, :, 2])


@pytest.fixture
def mixer(request) -> ActiveTokenMixer:
    torch.manual_seed(0)
    mixer = ActiveTokenMixer(12, share=3, out_dim=getattr(request, "param", None))
    for p in mixer.parameters():  # away from the initial values, which would hide a mistake behind small numbers
        torch.nn.init.normal_(p, std=0.5)
    return mixer


same_and_other_widths = pytest.mark.parametrize("mixer", [None, 20, 3], indirect=True, ids=lambda out_dim: f"out_dim={out_dim}")


@same_and_other_widths
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_papers_equations(mixer, path):
    x, offset = torch.randn(2, 5, 7, 12), torch.randn(2, 5, 7, 8) * 3
    exact = [t.double().requires_grad_() for t in (x, offset)]
    expected = published(mixer.double(), *exact)
    dy = torch.randn_like(expected)
    inputs_and_parameters = [*exact, *(p for name, p in mixer.named_parameters() if not name.startswith("offset."))]
    expected = [expected, *torch.autograd.grad(expected, inputs_and_parameters, dy)]

    mixer.float().to(path.device)
    inputs = [t.to(path.device).requires_grad_() for t in (x, offset)]
    with path.active():
        actual = mixer(*inputs)
        actual.backward(dy.to(actual))
    gradients = [p.grad for p in mixer.parameters() if p.grad is not None]
    for a, b in zip([actual, *(t.grad for t in inputs), *gradients], expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.float(), rtol=1e-4, atol=1e-4)


@same_and_other_widths
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_autocast(mixer, path):
    x, offset = torch.randn(2, 5, 7, 12), torch.randn(2, 5, 7, 8) * 3
    expected = published(mixer.double(), x.double(), offset.double())
    mixer.float().to(path.device)
    with path.active(), torch.autocast(path.device, torch.bfloat16):
        actual = mixer(x.to(path.device), offset.to(path.device))
    assert actual.dtype == torch.bfloat16 and actual.shape == expected.shape
    assert (actual.cpu().double() - expected).norm() < 0.02 * expected.norm()


def test_an_empty_batch_of_another_width():
    mixer = ActiveTokenMixer(8, out_dim=12)
    mixer(torch.randn(0, 5, 4, 8)).sum().backward()
    assert mixer(torch.randn(0, 5, 4, 8)).shape == (0, 5, 4, 12)
    assert all(p.grad is not None and not p.grad.any() for p in mixer.parameters())


def test_out_dim_is_told_and_kept():
    mixer = ActiveTokenMixer(8, out_dim=12)
    shapes = {name: list(p.shape) for name, p in mixer.named_parameters()}
    assert shapes["offset.weight"] == [16, 8] and shapes["fc_w.weight"] == [12, 8] and shapes["proj.weight"] == [12, 12]
    assert shapes["logits.fc1.weight"] == [3, 12] and shapes["logits.fc2.weight"] == [36, 3]
    assert "8, share=1, out_dim=12" in repr(mixer)
    with pytest.raises(ValueError, match=r"\[B, H, W, 8\] \(channels last\), got \[1, 4, 4, 12\]"):
        mixer(torch.randn(1, 4, 4, 12))


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


@pytest.mark.parametrize("mixer,mode", [(None, "train"), (None, "eval"), (20, "eval")], indirect=["mixer"])
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


@pytest.mark.parametrize("out_dim", [8, 12])
def test_export_takes_the_plain_path(out_dim):
    mixer = ActiveTokenMixer(8, share=2, out_dim=out_dim).eval()
    x = torch.randn(2, 6, 5, 8)
    exported = torch.export.export(
        mixer, (x,), dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")},)
    )
    other = torch.randn(3, 9, 4, 8)
    torch.testing.assert_close(exported.module()(other), mixer(other))
