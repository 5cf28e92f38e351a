"""Tokens of one, two and three axes: what the table of operators does not say of them."""

from __future__ import annotations

import pytest
import torch
from cases import INTERPRETER, PLAIN
from oracles import dense_gather

from atm_triton import (
    ActiveTokenMixer,
    ActiveTokenMixer1d,
    ActiveTokenMixer2d,
    ActiveTokenMixer3d,
    OffsetFC,
    axial_gather,
    offset_fc,
    reference,
)
from atm_triton import token_mix as mix
from atm_triton.axes import axes_of
from atm_triton.testing import OPERATORS, Shape, assert_as_exact, make, mixer_inputs

SIZES = {1: (2, 9, 6), 2: (2, 4, 5, 6), 3: (2, 4, 3, 5, 6)}
each_axis = pytest.mark.parametrize(("axes", "axis"), [(axes, axis) for axes in SIZES for axis in "wht"[:axes]])
on_both_paths = pytest.mark.parametrize("path", [PLAIN, INTERPRETER], ids=str)


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@on_both_paths
@each_axis
def test_the_written_out_sum(path, axes, axis):
    x, offset = random(*SIZES[axes]), 3 * random(*SIZES[axes][:-1], 3, seed=1)
    with path.active():
        y = axial_gather(x, offset, axis)
    torch.testing.assert_close(y, dense_gather(x.double(), offset.double(), axis).float())


@each_axis
def test_the_definition_is_the_written_out_sum(axes, axis):
    x, offset = random(*SIZES[axes], dtype=torch.float64), 3 * random(*SIZES[axes][:-1], 3, seed=1, dtype=torch.float64)
    torch.testing.assert_close(reference.axial_gather(x, offset, axis), dense_gather(x, offset, axis))


@on_both_paths
@pytest.mark.parametrize("folded", [True, False])
def test_a_mixer_of_frames_that_see_each_other(path, folded):
    """A dense product with hat weights along each of three axes, in float64: an oracle that shares nothing with the definition."""
    T, H, W, C, G = 4, (8 if folded else 3), (9 if folded else 3), 16, 4
    x, offset = random(2, T, H, W, C), 2 * random(2, T, H, W, 3 * G, seed=1)
    given = {
        name: random(*size, seed=i) * size[-1] ** -0.5 for i, (name, size) in enumerate(mixer_inputs(Shape(2, H, W, G, 4), axes=3).items())
    }
    del given["x"], given["offset"]
    with path.active():
        y = mix(x, offset, *given.values())
    p = {name: t.double() for name, t in given.items()}
    along = [dense_gather(x.double(), part.double(), axis) for part, axis in zip(offset.chunk(3, -1), "wht", strict=True)]
    branches = [t @ p[f"{axis}.weight"].T + p[f"{axis}.bias"] for t, axis in zip(along, "wht", strict=True)] + [
        x.double() @ p["c.weight"].T
    ]
    s = sum(branches).mean((1, 2, 3))
    hidden = torch.nn.functional.gelu(s @ p["fc1.weight"].T + p["fc1.bias"])
    alpha = (hidden @ p["fc2.weight"].T + p["fc2.bias"]).view(2, C, 4).softmax(-1)
    fused = sum(alpha[:, None, None, None, :, k] * branch for k, branch in enumerate(branches))
    exact = fused @ p["proj.weight"].T + p["proj.bias"]
    assert_as_exact(y, reference.token_mix(x, offset, *given.values()), exact)


@on_both_paths
def test_frames_and_rows_are_gathered_as_images_are(path):
    """Of every frame, row and column, to the bit what an image of it gives."""
    x, offset = random(2, 3, 4, 5, 6), 2 * random(2, 3, 4, 5, 3, seed=1)
    with path.active():
        for axis in "wh":
            frames = torch.stack([axial_gather(x[:, t], offset[:, t], axis) for t in range(3)], 1)
            assert torch.equal(axial_gather(x, offset, axis), frames)
        columns = [torch.stack([axial_gather(x[:, :, h, w], offset[:, :, h, w], "w") for w in range(5)], 2) for h in range(4)]
        assert torch.equal(axial_gather(x, offset, "t"), torch.stack(columns, 2))
        rows = torch.stack([axial_gather(x[:, 0, h], offset[:, 0, h], "w") for h in range(4)], 1)
        assert torch.equal(axial_gather(x[:, 0], offset[:, 0], "w"), rows)


@pytest.mark.parametrize("axes", SIZES)
def test_the_layers(axes):
    """Channels first and last are the same, and calling the layers is the same as reading them."""
    last = ActiveTokenMixer(6, 3, axes=axes, out_dim=4)
    first = {1: ActiveTokenMixer1d, 2: ActiveTokenMixer2d, 3: ActiveTokenMixer3d}[axes](6, 3, out_dim=4)
    first.load_state_dict(last.state_dict())
    for parameter in last.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    first.load_state_dict(last.state_dict())
    x = random(*SIZES[axes])
    y = last(x)
    assert y.shape == (*SIZES[axes][:-1], 4)
    torch.testing.assert_close(first(x.movedim(-1, 1)).movedim(1, -1), y)
    offset = last.offset(x)
    assert offset.shape == (*SIZES[axes][:-1], axes * 2)
    torch.testing.assert_close(first(x.movedim(-1, 1), offset.movedim(-1, 1)).movedim(1, -1), y)
    last.fc_w.register_forward_hook(lambda *_: None)  # so that the layers are called
    torch.testing.assert_close(last(x), y)
    assert f"axes={axes}" in repr(last) or axes == 2


@pytest.mark.parametrize("axes", SIZES)
@pytest.mark.parametrize("hooked", [False, True])
def test_the_layers_compile_and_export(axes, hooked):
    mixer = ActiveTokenMixer(6, 3, axes=axes)
    if hooked:
        mixer.proj.register_forward_hook(lambda *_: None)
    x = random(*SIZES[axes])
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))
    torch.testing.assert_close(torch.export.export(mixer, (x,)).module()(x), mixer(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(mixer, concrete_args={"offset": None})(x), mixer(x))


def test_offsets_of_any_tokens():
    layer = OffsetFC(6, 3, axes=3)
    x = random(2, 4, 3, 5, 6)
    assert torch.equal(layer(x).flatten(1, 2), layer(x.flatten(1, 2)))
    assert axes_of(layer(x)) == "wht"


def fail(function, *arguments, error=ValueError, match: str) -> None:
    with pytest.raises(error, match=match):
        function(*arguments)


def test_what_does_not_fit():
    line, image, clip = (random(*SIZES[axes]) for axes in SIZES)
    fail(axial_gather, line, line, "h", match=r"axis must be 'w' \(along the row\) of x \[2, 9, 6\].*got 'h'")
    fail(axial_gather, image, image, "t", match="axis must be 'w' .* or 'h' .*got 't'")
    fail(axial_gather, clip, image, "t", match=r"offset must be x's.*\[2, 4, 3, 5, 6\].*got \[2, 4, 5, 6\]")
    for axes in (1, 2, 3):
        others = [
            make(OPERATORS[name], Shape(2, 3, 4, 3, 2), torch.float32, "cpu") for name in ("token_mix_1d", "token_mix", "token_mix_3d")
        ]
        x, offset = others[axes - 1][:2]
        for other, (_, _, w, wb, *weights) in enumerate(others, 1):
            if other == axes:
                continue
            weights = (None, None, *weights) if other == 1 else weights
            name = "weight_h" if 1 in (axes, other) else "weight_t"
            fail(mix, x, offset, w, wb, *weights, match=f"{name} must be {'given' if other < axes else 'None'} for tokens with the axes")
    fail(offset_fc, clip[None], *[torch.zeros(6)] * 2, torch.zeros(4, 6), torch.zeros(4), match=r"x must be \[B, W, C\], \[B, H, W, C\] or")
    fail(ActiveTokenMixer(6, axes=3), image, match=r"x must be \[B, T, H, W, 6\] \(channels last\), got \[2, 4, 5, 6\]")
    fail(ActiveTokenMixer1d(4), line, match=r"x must be \[B, 4, W\] \(NCW\), got \[2, 9, 6\]")
    fail(ActiveTokenMixer3d(6), clip, match=r"x must be \[B, 6, T, H, W\]")
    fail(ActiveTokenMixer(6, axes=3, own_offset=False), clip, match=r"pass offset \[B, T, H, W, 3 \* dim // share\]")
    fail(lambda: ActiveTokenMixer(6, axes=4), match="axes must be 1 .* 2 .* or 3 .*got 4")
