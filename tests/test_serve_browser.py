"""The page of python -m atmnet serve in a browser."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import start_chromium
from PIL import Image
from test_serve import Server, classifier

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driven = start_chromium(tmp_path_factory.mktemp("browser"))
    yield driven
    driven.quit()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    classifier().save_pretrained(tmp_path / "saved")
    (tmp_path / "temporary").mkdir()
    serving = Server(tmp_path / "saved", tmp_path / "temporary")
    yield serving
    assert serving.end(signal.SIGTERM) == (0, "")


def wait(found: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    from selenium.common.exceptions import WebDriverException

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if value := found():
                return value
        except (WebDriverException, AttributeError):  # an element that is just replaced, or not there yet
            pass
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s")


def test_a_photo_is_dropped_and_clicked(browser: Any, server: Server, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((600, 400)).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def one(selector: str) -> Any:
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    browser.get(server.url)
    wait(lambda: one("#photo input[type=file]"), "the page")
    assert "What atmnet_xt sees" in browser.find_element(By.TAG_NAME, "h1").text
    one("#photo input[type=file]").send_keys(str(tmp_path / "photo.png"))
    label = wait(lambda: one("#classes") and "%" in one("#classes").text and one("#classes").text, "the classes")
    assert "ant" in label and "<b>bee</b>" in label  # a name, not markup
    middle = wait(lambda: one("#looks img").get_attribute("src"), "where the middle looks")

    clicked = one("#photo img")
    ActionChains(browser).move_to_element_with_offset(clicked, -clicked.size["width"] // 2 + 5, 0).click().perform()
    wait(lambda: one("#looks img").get_attribute("src") != middle, "where the clicked token looks")

    outside = "return performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith(location.origin))"
    assert [name for name in browser.execute_script(outside) if not name.startswith(("data:", "blob:"))] == []

    browser.find_element(By.CSS_SELECTOR, "#photo button[aria-label='Clear'], #photo button[aria-label='Remove Image']").click()
    wait(lambda: one("#photo input[type=file]"), "room for another photo").send_keys(str(tmp_path / "broken.png"))
    told = wait(lambda: one(".toast-body") and one(".toast-body").text, "the message")
    assert "This photo cannot be shown: cannot identify image file 'broken.png'" in told
