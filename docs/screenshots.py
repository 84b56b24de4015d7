"""Takes a picture of a page: python docs/screenshots.py PAGE.html[#fragment] PICTURE.png

The page is opened in headless Chromium and saved as a PNG of at most 300 KB. The README says which runs its pictures
come from. Needs Playwright (extra `test`) and a Chromium from the system.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LARGEST = 300_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="an HTML file, with what may follow # in its address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--top", action="store_true", help="from the page's top, wherever the fragment lands")
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("there is no Chromium on this machine (apt install chromium)")
    path, _, fragment = given.page.partition("#")
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page(
            viewport={"width": given.width, "height": given.height}, color_scheme="dark" if given.dark else "light"
        )
        tab.set_default_timeout(120_000)
        tab.goto(f"{Path(path).resolve().as_uri()}#{fragment}")
        tab.wait_for_timeout(3000)  # plots are drawn after the text
        if given.top:
            tab.evaluate("scrollTo(0, 0)")
            tab.wait_for_timeout(500)
        tab.screenshot(path=given.picture)
        browser.close()
    size = given.picture.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{given.picture} has {size} bytes, more than {LARGEST}")
    print(given.picture, size)


if __name__ == "__main__":
    main()
