"""Offsets collected from a model, and the pictures, histograms and page of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import atmnet
import numpy as np
import pytest
import timm
import torch
from atmnet.offsets import Histograms, collect, draw_histograms, draw_panel, layers, page_entry, samples, write_page
from browsers import start_chromium
from PIL import Image
from torch import Tensor

LAYERS = ["layer 1_1", "layer 2_1-2", "layer 2_3-4"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(**options: Any) -> torch.nn.Module:
    sizes = dict(depths=(1, 4), dims=(8, 8), share=(2, 4), mlp_ratios=(1, 1), num_classes=2)
    return timm.create_model("atmnet_xt", **sizes | options).eval()


def random_offsets(height: int, width: int, groups: int = 3) -> Tensor:
    return torch.randn(height, width, 2 * groups) * 2


def picture(height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_layers_are_named_by_the_blocks_that_use_their_offsets() -> None:
    assert list(layers(small())) == list(layers(small(offsets="three"))) == LAYERS
    with torch.device("meta"):
        model = timm.create_model("atmnet_l")
    expected = ["1_1-3", "2_1-4", "3_1-6", "3_7-12", "3_13-18", "3_19-24", "4_1-3"]
    assert list(layers(model)) == [f"layer {name}" for name in expected]


def test_collected_offsets_are_those_of_the_layers() -> None:
    model, images = small(), torch.randn(2, 3, 24, 40)
    offsets = collect(model, images)
    assert {name: list(offset.shape) for name, offset in offsets.items()} == {
        "layer 1_1": [2, 6, 10, 8],
        "layer 2_1-2": [2, 3, 5, 4],
        "layer 2_3-4": [2, 3, 5, 4],
    }
    first = model.stages[0]
    tokens = model.stem(images).permute(0, 2, 3, 1)
    tokens = first.peg(tokens.flatten(1, 2), 6).unflatten(1, (6, 10))
    torch.testing.assert_close(offsets["layer 1_1"], first.blocks[0].offset(tokens))
    assert not any(layer._forward_hooks for layer in layers(model).values())


SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), mlp_ratios=(2, 2, 2, 2), share=(2, 4, 4, 4))


@pytest.mark.parametrize("create", [atmnet.create_segmenter, partial(atmnet.create_detector, dim=16)], ids=["segmenter", "detector"])
def test_offsets_of_other_tasks_are_their_backbones(create: Any) -> None:
    model, images = create("atmnet_xt", num_classes=2, **SMALL).eval(), torch.randn(2, 3, 64, 96)
    net = next(module for module in model.modules() if isinstance(module, atmnet.ATMNet))
    assert list(layers(model)) == list(layers(net)) == ["layer 1_1", "layer 2_1", "layer 3_1", "layer 4_1"]
    offsets = collect(model, images)
    for name, expected in collect(net, images).items():
        assert torch.equal(offsets[name], expected)
    assert offsets["layer 1_1"].shape[1:3] == (16, 24) and offsets["layer 4_1"].abs().max() > 0
    with pytest.raises(ValueError, match="offsets are an ATMNet's: .* has none"):
        layers(create("resnet18", num_classes=2))


@pytest.mark.parametrize("options,message", [(dict(offsets="zero"), "predicts none"), (dict(offsets="planar"), "offsets='planar'")])
def test_models_without_such_offsets(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layers(small(**options))


def test_other_models_and_broken_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear has none"):
        layers(torch.nn.Linear(2, 2))
    model = small()
    model.stages[1].blocks[2].offset.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="layer 2_3-4 predicts offsets that are infinite or NaN"):
        collect(model, torch.zeros(1, 3, 16, 16))


def test_samples_count_where_a_token_reads() -> None:
    offset = torch.zeros(3, 5, 8)
    offset[1, 2] = torch.tensor([-2.4, 0.4, 0.6, 2.6, -1.0, -1.4, 1.0, 9.0])
    along_w, along_h = samples(offset, 1, 2)
    assert along_w.tolist() == [1, 0, 1, 1, 0]  # 2.6 leaves the image, as 9 does
    assert along_h.tolist() == [2, 0, 1]


def test_histograms_count_the_centre_token() -> None:
    histograms = Histograms()
    offsets = torch.full((2, 4, 6, 4), 100.0)
    offsets[0, 2, 3] = torch.tensor([-3.4, 0.1, 1.6, 0.0])  # two along each axis
    offsets[1, 2, 3] = torch.tensor([2.49, 2.5, -2.6, -2.5])
    histograms.update({"layer": offsets})
    w, h = histograms.counts["layer", "w"], histograms.counts["layer", "h"]
    assert w.edges.tolist() == [-3.5 + i / 4 for i in range(25)] and h.edges.tolist() == [-2.5 + i / 4 for i in range(17)]
    for found, values, outside in ((w, [-3.4, 0.1, 2.49], [0, 1]), (h, [0.0, -2.5], [1, 1])):
        assert found.counts.tolist() == np.histogram(values, found.edges)[0].tolist()
        assert found.outside.tolist() == outside


def test_histograms_add_up_and_keep_their_size(tmp_path: Path) -> None:
    batches = [torch.randn(n, 4, 6, 8) * 2 for n in (3, 1, 2)]
    parts, whole = Histograms(), Histograms()
    for batch in batches:
        parts.update({"layer 1_1": batch})
    whole.update({"layer 1_1": torch.cat(batches)})
    parts.save(tmp_path / "histograms.npz")
    with np.load(tmp_path / "histograms.npz") as saved:
        assert saved["images"] == 6
        for axis, bins in (("w", 24), ("h", 16)):
            counts, outside, edges = (saved[f"layer 1_1/{axis}/{name}"] for name in ("counts", "outside", "edges"))
            assert counts.tolist() == whole.counts["layer 1_1", axis].counts.tolist()
            assert counts.sum() + outside.sum() == 6 * 4 and len(edges) == bins + 1 and counts.dtype == np.int64
    with pytest.raises(ValueError, match="layer 1_1 had 6 tokens along w before, now 8: give images of one size"):
        parts.update({"layer 1_1": torch.zeros(1, 4, 8, 8)})


def coloured(path: Path) -> tuple[int, int]:
    """Numbers of pixels of a picture that are reddish, and bluish."""
    red, _, blue = np.asarray(Image.open(path).convert("RGB")).astype(int).transpose(2, 0, 1)
    return int((red - blue > 100).sum()), int((blue - red > 60).sum())


def test_panels_show_both_axes(tmp_path: Path) -> None:
    grey = picture().convert("L").convert("RGB")
    still, wide = torch.zeros(5, 5, 8), torch.zeros(5, 5, 8)
    wide[2, 2, :4] = -2  # all along the row
    for name, offset in (("still", still), ("wide", wide)):
        draw_panel(tmp_path / name, grey, {"layer 1_1": offset})
    draw_panel(tmp_path / "two", grey, {"layer 1_1": wide, "layer 2_1": random_offsets(1, 3)}, [(0.5, 0.5), (1.0, 0.0)])
    (still_red, still_blue), (wide_red, wide_blue) = coloured(tmp_path / "still"), coloured(tmp_path / "wide")
    assert wide_red > still_red + 500 and wide_blue >= still_blue > 300
    one, two = (Image.open(tmp_path / name).size for name in ("wide", "two"))
    assert two[0] > 1.5 * one[0] and two[1] > 1.5 * one[1]  # more columns for layers, more rows for tokens


def test_histograms_are_drawn(tmp_path: Path) -> None:
    histograms = Histograms()
    histograms.update({name: torch.randn(2, 4, 6, 8) for name in LAYERS + ["layer 3_1", "layer 4_1"]})
    draw_histograms(tmp_path / "histograms.png", histograms)
    assert min(coloured(tmp_path / "histograms.png")) > 1000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driven = start_chromium(tmp_path_factory.mktemp("browser"))
    yield driven
    driven.quit()


def shown(browser: Any, axis: str) -> dict[tuple[int, int], int]:
    """Samples that the page shows, by column and row, and how many."""
    found = browser.execute_script(
        f"return [...document.querySelectorAll('.sample.{axis}')].map(s => [s.dataset.x, s.dataset.y, s.dataset.count])"
    )
    return {(int(x), int(y)): int(count) for x, y, count in found}


def assert_shows(browser: Any, offset: Tensor, row: int, column: int) -> None:
    along_w, along_h = samples(offset, row, column)
    assert shown(browser, "w") == {(x, row): count for x, count in enumerate(along_w.tolist()) if count}
    assert shown(browser, "h") == {(column, y): count for y, count in enumerate(along_h.tolist()) if count}


def test_the_page_shows_a_clicked_tokens_samples(tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    names = ("layer 1_1", "layer 2_1-2", "layer 3_1")
    images = [{name: random_offsets(*size) for name, size in zip(names, ((6, 9), (3, 5), (2, 135)), strict=True)} for _ in range(2)]
    images[0]["layer 1_1"][4, 1] = torch.tensor([1.0, 1.0, -1.0, 0.4, 900.0, -900.0])
    entries = [page_entry(name, picture(60, 90), offsets) for name, offsets in zip(("</script>cat", "dog"), images, strict=True)]
    size = write_page(tmp_path / "offsets.html", "Tokens <of> a test", entries)
    assert size == (tmp_path / "offsets.html").stat().st_size

    browser.get((tmp_path / "offsets.html").as_uri())
    assert browser.title == "Tokens <of> a test"
    overlay = browser.find_element(By.ID, "overlay")

    def click(row: int, column: int, rows: int, columns: int) -> None:
        width, height = overlay.size["width"], overlay.size["height"]
        x, y = (column + 0.5) / columns * width - width / 2, (row + 0.5) / rows * height - height / 2
        ActionChains(browser).move_to_element_with_offset(overlay, round(x), round(y)).click().perform()

    assert_shows(browser, images[0]["layer 1_1"], 3, 4)  # the centre
    click(4, 1, 6, 9)
    assert_shows(browser, images[0]["layer 1_1"], 4, 1)
    opacity = browser.execute_script(
        "return [...document.querySelectorAll('.sample.w')].map(s => [s.dataset.count, s.getAttribute('opacity')])"
    )
    assert {count: float(alpha) for count, alpha in opacity} == {"2": 1.0, "1": 0.5}
    told = browser.find_element(By.ID, "told").text
    assert (
        told.startswith("</script>cat, layer 1_1: the token in column 1, row 4 of 9 × 6 has 3 offsets") and "0 along its row and 2" in told
    )

    ActionChains(browser).send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT).perform()
    assert_shows(browser, images[0]["layer 1_1"], 3, 2)
    ActionChains(browser).send_keys(*[Keys.ARROW_LEFT] * 9).perform()  # stays in the image
    assert_shows(browser, images[0]["layer 1_1"], 3, 0)
    layer_buttons = browser.find_elements(By.CSS_SELECTOR, "#layers button")
    layer_buttons[1].click()
    click(2, 4, 3, 5)
    assert_shows(browser, images[0]["layer 2_1-2"], 2, 4)
    ActionChains(browser).send_keys("]").perform()  # whose offsets need more than a byte
    assert_shows(browser, images[0]["layer 3_1"], 1, 121)
    browser.find_elements(By.CSS_SELECTOR, "#images button")[1].click()
    assert_shows(browser, images[1]["layer 3_1"], 1, 121)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0


def test_a_page_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        write_page("offsets.html", "", [])
