"""Pictures of a report's page, section by section, by the machine's Chromium.

python experiments/digits_strategies/picture.py outputs/digits_strategies/report.html
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path


def main() -> None:
    """One PNG a section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--sections", nargs="+", default=["tradeoffs", "conflict"], help="the sections' ids")
    parser.add_argument("--width", type=int, default=1240)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--without", nargs="*", default=[], help="plots to leave out, as cost after runs under load")
    parser.add_argument("--strategy", help="whose gradients the section on conflict shows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": options.width, "height": 900}, color_scheme=options.scheme)
        page.goto(options.page.resolve().as_uri())
        page.wait_for_function("window.Plotly")
        if options.strategy:
            page.locator("#conflict > .controls select").select_option(label=options.strategy)
        page.evaluate("async () => { for (const p of panels) if (!p.hidden) { p.show(); await p.drawn; } }")
        for plot in options.without:
            page.locator(f"[data-plot={plot}]").evaluate("plot => plot.remove()")
        page.wait_for_timeout(500)  # the others take their place
        for section in options.sections:
            page.locator(f"#{section}").screenshot(path=options.out / f"{section}.png")
            print(options.out / f"{section}.png")
        browser.close()


if __name__ == "__main__":
    main()
