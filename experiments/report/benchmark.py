"""How long mtl-report takes for a large sweep, and how long its page takes to open; the runs are made up.

python experiments/report/benchmark.py
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

TASKS = ("a", "b", "c")


def write_run(folder: Path, lr: float, seed: int, rows: int) -> None:
    """One finished run with ``rows`` lines of metrics."""
    folder.mkdir(parents=True)
    config = {"data": {"_target_": "made.up.Data"}, "heads": {task: {} for task in TASKS}, "optimizer": {"lr": lr}}
    config |= {"strategy": {"_target_": "mtl.strategies.Naive"}, "weighting": {"_target_": "mtl.weightings.Equal"}}
    (folder / "config.yaml").write_text(f"# overrides: []\n{yaml.safe_dump(config | {'seed': seed})}")
    (folder / "status.json").write_text('{"status": "finished"}')
    test = {f"{task}/accuracy": 0.8 + lr + 0.01 * seed for task in TASKS}
    summary = {"steps": rows, "test": test, "best": {"monitor": 1.0}, "higher_is_better": dict.fromkeys(test, True)}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = []
    for step in range(1, rows + 1):
        names = [f"{kind}/{task}" for kind in ("loss", "weight", "conflict/norm") for task in TASKS]
        names += [f"conflict/cos/{pair}" for pair in ("a~b", "a~c", "b~c")]
        names += [f"conflict/{n}" for n in ("cos_mean", "cos_min", "fraction", "rank", "stationarity", "cancellation")]
        names += ["loss/total", "grad_norm", "lr", "time/step", "time/data", "samples_per_second", "memory/peak"]
        values = {name: math.sin(step * (i + 1) + seed) for i, name in enumerate(names)}
        split = "val" if step % 20 == 0 else "train"
        lines.append(json.dumps({"step": step, "epoch": step / 100, "split": split, **values}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def open_page(page: Path) -> tuple[float, float, float]:
    """Seconds until Chromium shows the page, until its first figures, and those that the page's thread worked."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        devtools = shown.context.new_cdp_session(shown)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        start = time.perf_counter()
        shown.goto(page.as_uri())
        shown.locator("#tradeoffs").scroll_into_view_if_needed()
        shown.locator("#tradeoffs .main-svg").first.wait_for()
        seconds = time.perf_counter() - start
        painted = shown.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
        metrics = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
        browser.close()
    return painted, seconds, metrics["TaskDuration"]


def main() -> None:
    """Write the runs, run the command, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for i in range(options.runs):
            write_run(Path(name) / str(i), 0.001 * (1 + i // 3), i % 3, options.rows)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mtl.report.command", name], check=True, stdout=subprocess.DEVNULL)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu, megabytes = used.ru_utime + used.ru_stime, (Path(name) / "report.html").stat().st_size / 1e6
        print(f"{options.runs} runs of {options.rows} rows: {seconds:.1f} s, {cpu:.1f} s of CPU time,")
        print(f"{used.ru_maxrss / 1024:.0f} MiB, a page of {megabytes:.1f} MB")
        painted, seconds, worked = open_page(Path(name) / "report.html")
        print(f"open in {painted:.1f} s, with its first figures in {seconds:.1f} s, {worked:.1f} s of CPU time")


if __name__ == "__main__":
    main()
