"""Takes the README's pictures: python docs/screenshots.py FOLDER PAGE.html[#fragment]=NAME[@HEIGHT] ...

Each page is opened in headless Chromium, 1200 pixels wide and HEIGHT (default 760) high, and saved as FOLDER/NAME.png,
at most 300 KB. The README says which runs its pages come from. Needs Playwright (extra `test`)
and a Chromium from the system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LARGEST = 300_000  # bytes


def main(folder: Path, pages: list[str]) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("there is no Chromium on this machine (apt install chromium)")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for page in pages:
            address, name = page.rsplit("=", 1)
            name, _, height = name.partition("@")
            path, _, fragment = address.partition("#")
            tab = browser.new_page(viewport={"width": 1200, "height": int(height or 760)})
            tab.set_default_timeout(120_000)
            tab.goto(f"{Path(path).resolve().as_uri()}#{fragment}")
            tab.wait_for_timeout(3000)  # plots are drawn after the text
            target = folder / f"{name}.png"
            tab.screenshot(path=target)
            if target.stat().st_size > LARGEST:
                raise SystemExit(f"{target} has {target.stat().st_size} bytes, more than {LARGEST}")
            print(target, target.stat().st_size)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
