"""Take the picture of the page that docs/tutorials/deploy.md shows: serve.png.

python -m atmnet serve --checkpoint RUN &
PYTHONPATH=.:models:tests python docs/assets/shoot_serve.py http://127.0.0.1:7860 PHOTO

It needs Chromium and its driver, as the tests of the page do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from browsers import start_chromium
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By

WIDTH, HEIGHT = 1240, 900


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a page of python -m atmnet serve.")
    parser.add_argument("url")
    parser.add_argument("photo", type=Path)
    parser.add_argument(
        "--at", default="0.5,0.5", help="where to click the photo, as shares of its width and height (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("serve.png"))
    args = parser.parse_args()
    across, down = map(float, args.at.split(","))
    with tempfile.TemporaryDirectory() as profile:
        browser = start_chromium(Path(profile))
        browser.set_window_size(WIDTH, HEIGHT)
        browser.implicitly_wait(60)
        browser.get(args.url)
        browser.find_element(By.CSS_SELECTOR, "#photo input[type=file]").send_keys(str(args.photo.resolve()))
        browser.find_element(By.CSS_SELECTOR, "#looks img")
        photo = browser.find_element(By.CSS_SELECTOR, "#photo img")
        x, y = ((share - 0.5) * photo.size[side] for share, side in ((across, "width"), (down, "height")))
        ActionChains(browser).move_to_element_with_offset(photo, round(x), round(y)).click().perform()
        time.sleep(5)  # for what the click shows
        browser.set_window_size(WIDTH, HEIGHT + browser.execute_script("return document.body.scrollHeight - innerHeight"))
        time.sleep(2)
        browser.save_screenshot(str(args.output))
        browser.quit()


if __name__ == "__main__":
    main()
