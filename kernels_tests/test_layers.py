"""The mixer as a module: the composition, its offsets, and what users do with modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import INTERPRETER, PATHS
from einops import rearrange
from oracles import dense_gather
from torch import nn

from atm_triton.layers import ActiveTokenMixer, ActiveTokenMixer2d, OffsetFC


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


@pytest.mark.exhaustive  # for half a minute; before that, test_cases.py compiles the operators by Inductor
def test_compile(mixer):
    compiled, x = torch.compile(mixer, fullgraph=True), torch.randn(2, 5, 7, 12)
    actual, expected = compiled(x), mixer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    parameters = tuple(mixer.parameters())
    gradients = (torch.autograd.grad(y.square().mean(), parameters) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


ANY_SIZE = [(None, "aot_eager"), (20, "aot_eager"), pytest.param(20, "inductor", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("mixer,backend", ANY_SIZE, indirect=["mixer"])
def test_compile_for_any_size(mixer, backend):
    mixer.eval()
    compiled = torch.compile(mixer, fullgraph=True, backend=backend)
    with torch.no_grad():
        for size in (2, 5, 7), (3, 8, 4), (1, 6, 30):
            x = torch.randn(*size, 12)
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


@same_and_other_widths
def test_maps_as_convolutions_take_them(mixer):
    maps = ActiveTokenMixer2d(12, share=3, out_dim=mixer.out_dim)
    maps.load_state_dict(mixer.state_dict())
    x, offset = torch.randn(2, 12, 5, 7), torch.randn(2, 8, 5, 7) * 3
    tokens, offsets = (rearrange(t, "b c h w -> b h w c") for t in (x, offset))
    torch.testing.assert_close(maps(x), rearrange(mixer(tokens), "b h w c -> b c h w"))
    torch.testing.assert_close(maps(x, offset), rearrange(mixer(tokens, offsets), "b h w c -> b c h w"))
    assert torch.equal(maps(x.to(memory_format=torch.channels_last)), maps(x))
    for other in (copy.deepcopy(maps), pickle.loads(pickle.dumps(maps))):
        assert torch.equal(other(x), maps(x))
    with pytest.raises(ValueError, match=r"x must be \[B, 12, H, W\] \(NCHW\), got \[2, 5, 7, 12\]"):
        maps(tokens)
    with pytest.raises(ValueError, match=r"offset must be \[B, 8, H, W\] \(NCHW\), got \[2, 5, 7, 8\]"):
        maps(x, offsets)


def test_names_in_state_dicts_stay():
    offset = [f"offset.{name}" for name in ("norm_weight", "norm_bias", "weight", "bias")]
    fcs = ["fc_w.weight", "fc_w.bias", "fc_h.weight", "fc_h.bias", "fc_c.weight"]
    logits = [f"logits.{fc}.{name}" for fc in ("fc1", "fc2") for name in ("weight", "bias")]
    expected = [*offset, *fcs, *logits, "proj.weight", "proj.bias"]
    for layer in (ActiveTokenMixer(8, proj_drop=0.1), ActiveTokenMixer2d(8, out_dim=12)):
        assert list(layer.state_dict()) == expected
    assert list(ActiveTokenMixer(8, own_offset=False).state_dict()) == expected[4:]


@pytest.mark.parametrize("layer", [ActiveTokenMixer(8, 2), ActiveTokenMixer(8, out_dim=12), ActiveTokenMixer2d(8, out_dim=6)], ids=repr)
def test_symbolic_tracing(layer):
    model = nn.Sequential(layer)
    traced = torch.fx.symbolic_trace(model)
    for size in (8, 5):  # rows, columns and, for either layout, channels
        x = torch.randn(2, 8, size, 8)
        assert torch.equal(traced(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), model(x))
    with pytest.raises(ValueError, match="x must be"):
        traced(torch.randn(8, 8))


@pytest.mark.parametrize("layer", [ActiveTokenMixer(8), ActiveTokenMixer2d(8), OffsetFC(8)], ids=lambda layer: type(layer).__name__)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_is_refused(layer):
    with pytest.raises(RuntimeError, match=rf"^{type(layer).__name__} cannot be TorchScript.*torch.compile"):
        torch.jit.script(nn.Sequential(nn.Identity(), layer))
