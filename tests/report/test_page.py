"""The page in a real browser: two widths, both colour schemes, and hostile runs."""

import base64
import json
import re
import shutil

import pytest
from support.report_runs import accuracies, write_run, write_sharing, write_study

from mtl.report.command import report
from mtl.report.page import POINTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLOTS = ("tradeoff", "cost", "curves", "cosines", "fraction", "norms", "weights")
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")
EVIL = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with example predictions, a failed run, and markup in its names."""
    root = write_study(tmp_path_factory.mktemp("report") / "study")
    write_run(root / "failed", strategy="mgda", seed=9, status="failed", error=f"{EVIL} ${{7*7}}", rows=2)
    write_run(root / "evil", seed=0, test=accuracies(0.9, 0.9), backbone={"name": EVIL}, optimizer={"lr": 0.2})
    examples = root / "23" / "examples"  # equal weighting at the selected learning rate
    examples.mkdir()
    (examples / "0_image.png").write_bytes(PIXEL)
    tasks = {"left": {"kind": "class", "target": "3", "prediction": EVIL}}
    tasks["right"] = {"kind": "map", "target": "0_image.png", "prediction": "../../secret.png"}
    listed = [{"index": 0, "split": "test", "image": "0_image.png", "tasks": tasks}]
    (examples / "examples.json").write_text(json.dumps(listed))
    (root / "secret.png").write_bytes(PIXEL)
    _, folder = report([root], tune=["optimizer.lr"])
    return folder / "report.html"


def opened(browser, path, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else page.complaints.append(request.url),
    )
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn_and_nothing_hangs_over(browser, study, width, scheme):
    page = opened(browser, study, width, scheme)
    for name in PLOTS:
        marks = page.locator(f"[data-plot={name}] svg :is(path, circle, rect)")
        assert marks.count() > 0, name
        for mark in marks.all()[:3]:
            box = mark.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width + 1, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('svg text')].every(t => parseFloat(getComputedStyle(t).fontSize) > 11)"
    )
    bright = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    assert (bright > 600) if scheme == "light" else (bright < 150)
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_what_architectures_decide_is_drawn_for_the_chosen_row(browser, tmp_path, width):
    gates = {"gate/left/0": (0.5, 0.9), "gate/left/1": (0.5, 0.1), "gate_entropy/left": (0.7, 0.3)}
    write_sharing(tmp_path / "0", 0, gates, {"_target_": "mtl.architectures.MMoE"})
    alpha = {"alpha/left~right/1": (0.1, 0.2)}
    write_sharing(tmp_path / "1", 0, alpha, {"_target_": "mtl.architectures.CrossStitch"})
    _, folder = report([tmp_path])
    page = opened(browser, folder / "report.html", width, "light")
    page.locator("#sharing select").select_option(label="Detached MMoE")
    shown = page.locator("#sharing figure:visible")
    assert shown.locator(".chip").all_inner_texts() == ["left/0", "left/1", "left"]
    assert page.locator("[data-plot=sharing-gate] svg path").count() == 2
    page.locator("#sharing select").select_option(label="Detached CrossStitch")
    assert shown.locator(".chip").all_inner_texts() == ["left~right/1"] and shown.locator("svg path").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.complaints == []
    page.close()


def test_what_comes_from_a_run_is_text_and_never_markup(browser, study):
    page = opened(browser, study, 1280, "light")
    page.evaluate("document.querySelectorAll('#runs > div > details').forEach(d => { d.open = true; })")
    page.locator("#runs pre").last.wait_for()
    assert page.title() == "study" and page.locator("img[src=x]").count() == 0
    assert page.get_by_text("onerror").count() > 0  # it is there, as text
    assert page.locator("#examples img").count() == 2  # the input and the target; no file from another folder
    assert page.locator("#examples").get_by_text("../../secret.png").count() == 1
    assert page.complaints == []
    page.close()


def test_the_table_sorts_and_the_controls_redraw(browser, study):
    page = opened(browser, study, 1280, "light")
    column = page.locator("#results .scroll").first.locator("thead button", has_text="left/accuracy")
    cells = page.locator("#results .scroll").first.locator("tbody tr")
    index = page.locator("#results .scroll").first.locator("thead th").all_inner_texts()
    place = next(i for i, text in enumerate(index) if "left/accuracy" in text)

    def values():
        texts = [row.locator("td").nth(place).inner_text() for row in cells.all()]
        return [float(text.split()[0]) for text in texts if text != "–"]

    before = values()
    column.click()
    assert values() == sorted(before) != before
    column.click()
    assert values() == sorted(before, reverse=True)
    matrix = page.locator("[data-plot=cosines]")
    late = matrix.inner_text()
    matrix.locator("input").fill("0")
    assert matrix.inner_text() != late and "step 10;" in matrix.inner_text()
    curves = page.locator("[data-plot=curves]").first
    lines = curves.locator("svg path").count()
    page.locator("#curves .chip[aria-pressed=true]").first.click()
    assert curves.locator("svg path").count() < lines
    page.set_viewport_size({"width": 500, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert page.complaints == []
    page.close()


def sentences(page):
    """All captions and paragraphs of the page, as one text."""
    return "\n".join(page.locator("p.soft, figcaption, #notes li, h3").all_inner_texts())


def shade(page, index):
    """How strong the colour of a cell of the cosine matrix is, from 0 to 1."""
    fill = page.locator("[data-plot=cosines] svg rect:not(.scale)").nth(index).get_attribute("fill")
    return float(fill.rpartition(",")[2].strip(" )"))


def test_cosines_have_a_fixed_scale_and_a_small_one_is_read_and_not_painted(browser, tmp_path):
    for seed in range(2):
        run = write_run(tmp_path / str(seed), seed=seed, test=accuracies(0.5, 0.5), rows=1)
        lines = (
            (run / "metrics.jsonl")
            .read_text()
            .replace('"conflict/cos/left~right": 0.05', '"conflict/cos/left~right": -0.04')
        )
        (run / "metrics.jsonl").write_text(lines)
    page = opened(browser, report([tmp_path])[1] / "report.html", 1280, "light")
    matrix = page.locator("[data-plot=cosines]")
    assert "−0.040" in matrix.inner_text() and "−1" in matrix.inner_text()
    assert shade(page, 1) < 0.05 and matrix.locator("rect.scale").count() > 10
    assert "a cosine below −0.05" in page.locator("[data-plot=fraction] h3").inner_text()
    page.get_by_text("What these numbers are").click()
    assert page.locator("#conflict td", has_text="share of the pairs with a cosine below").count() == 1
    text = sentences(page)
    assert "cosines are small by nature" in text
    # what is not drawn is not said: two seeds have no intervals, equal weighting alone no front
    assert not any(word in text for word in ("bars", "Grey", "Bold", "Pareto", "interval (Student"))
    assert page.locator("td.best").count() == 0 and page.complaints == []
    page.close()


def test_a_clear_winner_is_bold_also_where_lower_is_better(browser, tmp_path):
    for i in range(6):
        error = (0.3 if i % 2 else 0.5) + 0.01 * (i // 2)
        test = {
            "loss/left": 1.0,
            "loss/right": 1.0,
            "loss/total": 2.0,
            "left/error": error,
            "right/accuracy": 0.5 + 0.01 * (i % 3),
        }
        recorded = {"higher_is_better": {"left/error": False, "right/accuracy": True}}
        start = 10 * i  # at once
        write_run(tmp_path / str(i), ("naive", "mgda")[i % 2], i // 2, test, start=start, recorded=recorded)
    page = opened(browser, report([tmp_path])[1] / "report.html", 1280, "light")
    assert [text[:4] for text in page.locator("td.best").all_inner_texts()] == ["0.31"]
    text = sentences(page)
    assert "shared the machine with another run" in text and "Not drawn, because" in text
    assert "no step times that could be compared" in page.locator("[data-plot=cost]").inner_text()
    assert page.complaints == []
    page.close()


def test_a_page_of_one_unfinished_run_and_one_of_two_data_sets(browser, tmp_path):
    write_run(tmp_path / "one", status="running", rows=1)
    page = opened(browser, report([tmp_path / "one"])[1] / "report.html", 390, "light")
    assert "is running, or was killed" in page.locator("#notes").inner_text() and page.complaints == []
    page.close()
    write_run(tmp_path / "two", test=accuracies(0.5, 0.5), data={"_target_": "mtl.data.scenes.Scenes"})
    page = opened(browser, report([tmp_path])[1] / "report.html", 1280, "light")
    assert page.locator("h2").first.inner_text() == "Digits: test metrics"
    page.get_by_label("data").select_option("1")
    assert page.locator("h2").first.inner_text() == "Scenes: test metrics" and page.complaints == []
    page.close()


def test_long_curves_are_thinned_to_means_of_neighbours(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5), rows=1000)
    content = (report([tmp_path])[1] / "report.html").read_text()
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', content, re.DOTALL)
    (found,) = json.loads(text)["comparisons"]
    curve = found["rows"][0]["curves"]["train/loss/left"]
    assert len(curve["y"]) == POINTS[1] and found["steps"][curve["x"]][-1] == 10000
    # five neighbours each: 2 / i for i = 1 ... 5
    assert curve["y"][0] == pytest.approx(sum(2 / i for i in range(1, 6)) / 5, rel=1e-3)


def test_every_metric_of_train_and_val_has_a_curve(tmp_path):
    run = write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "epoch": 0.5, "split": "train", "anything/new": 1.0}\n')
        file.write('{"step": 50, "epoch": 0.5, "split": "test", "loss/left": 1.0}\n')
    content = (report([tmp_path])[1] / "report.html").read_text()
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', content, re.DOTALL)
    curves = json.loads(text)["comparisons"][0]["rows"][0]["curves"]
    assert "train/anything/new" in curves and "test/loss/left" not in curves
