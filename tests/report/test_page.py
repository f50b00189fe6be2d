"""The page in a real browser: two widths, both colour schemes, and hostile runs."""

import base64
import json
import shutil
import threading

import pytest
from support.report_runs import accuracies, write_run, write_sharing, write_study

from mtl.report import watch as watching
from mtl.report.command import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLOTS = ("tradeoffs", "cost", "curves", "cosines", "conflict", "norms", "weights")
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
        lambda request: (
            None if request.url.startswith(("file:", "data:", "blob:")) else page.complaints.append(request.url)
        ),
    )
    page.goto(path.as_uri())
    return page


def drawn(page):
    """Draw all figures, also those that no reader has scrolled to; returns how many there are."""
    return page.evaluate(
        "async () => { const all = [...panels].filter(p => !p.hidden); all.forEach(p => p.show());"
        " await Promise.all(all.map(p => p.drawn)); return all.length; }"
    )


def visible(page, name):
    """The names of the visible traces of a panel's figure, each once."""
    of = "p.querySelector('.plot').data.filter(t => t.visible === true).map(t => t.legendgroup ?? t.name)"
    found = page.evaluate(f"[...panels].filter(p => p.dataset.plot === '{name}').map(p => {of})")
    return list(dict.fromkeys(found[0]))


def test_fronts_have_a_legend_of_their_methods(browser, tmp_path):
    for i, (left, right) in enumerate([(0.9, 0.5), (0.8, 0.8), (0.5, 0.9)]):
        write_run(tmp_path / f"slow{i}", weights={"left": 1.0 + i}, test=accuracies(left, right))
        write_run(tmp_path / f"fast{i}", weights={"left": 1.0 + i}, test=accuracies(left, 0.4), optimizer={"lr": 0.2})
    page = opened(browser, report([tmp_path])[1] / "report.html", 1280, "light")
    drawn(page)
    shown = page.locator("figure[data-plot=fronts] .legend button")
    assert shown.all_text_contents() == ["front of Static optimizer.lr=0.2", "front of Static optimizer.lr=0.1"]
    swatches = page.locator("figure[data-plot=fronts] .legend .swatch")
    assert swatches.count() == 2 and len({swatches.nth(i).get_attribute("style") for i in range(2)}) == 2
    assert not page.complaints
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn_and_nothing_hangs_over(browser, study, width, scheme):
    page = opened(browser, study, width, scheme)
    assert drawn(page) == page.locator("figure:visible .plot > .plot-container").count() > len(PLOTS)
    for name in PLOTS:
        marks = page.locator(f"[data-plot={name}] :is(.scatterlayer, .heatmaplayer) :is(path, image)")
        assert marks.count() > 0, name
        for mark in page.locator(f"[data-plot={name}] .main-svg").all():
            box = mark.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width + 1, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    bright = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    assert (bright > 600) if scheme == "light" else (bright < 150)
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_serious_fault(browser, study, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = opened(browser, study, width, scheme)
    drawn(page)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
    if scheme == "light":  # the same finds a button without a name
        page.evaluate("document.body.replaceChildren(document.createElement('button'))")
        assert "button-name" in [v["id"] for v in Axe().run(page).response["violations"]]
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
    drawn(page)
    shown = page.locator("#sharing figure:visible")
    assert shown.locator(".chip").all_inner_texts() == ["left/0", "left/1", "left"]
    assert page.locator("[data-plot=gates] .scatterlayer .trace").count() == 2
    page.locator("#sharing select").select_option(label="Detached CrossStitch")
    drawn(page)
    assert shown.locator(".chip").all_inner_texts() == ["left~right/1"] and shown.locator(".trace").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.complaints == []
    page.close()


def test_what_comes_from_a_run_is_text_and_never_markup(browser, study):
    page = opened(browser, study, 1280, "light")
    page.evaluate("document.querySelectorAll('#runs > div > details').forEach(d => { d.open = true; })")
    page.locator("#runs pre").last.wait_for()
    drawn(page)
    assert page.title() == "study" and page.locator("img[src=x]").count() == 0
    assert page.get_by_text("onerror").count() > 0  # it is there, as text
    assert page.locator("#examples img").count() == 2  # the input and the target; no file from another folder
    assert page.locator("#examples").get_by_text("../../secret.png").count() == 1
    assert page.complaints == []
    page.close()


def test_the_table_sorts_and_the_controls_redraw(browser, study):
    page = opened(browser, study, 1280, "light")
    drawn(page)
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
    late = matrix.locator(".heatmap-label").all_text_contents()
    matrix.locator("input").fill("0")
    assert "10" in matrix.locator(".slider").inner_text()
    shown = "[...document.querySelectorAll('.heatmap-label')].map(t => t.textContent).join()"
    page.wait_for_function(f"late => {shown} !== late", arg=",".join(late))
    curves = visible(page, "curves")
    page.locator("#filter .chip[aria-pressed=true]", has_text=curves[-1]).first.click()
    assert visible(page, "curves") == curves[:-1]
    picture = page.evaluate("Plotly.toImage(document.querySelector('#curves .plot'), { format: 'png' })")
    assert picture.startswith("data:image/png;base64,") and len(picture) > 5000
    buttons = page.locator("#curves .modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert buttons[0].lower() == "download plot as a png"
    assert not [name for name in buttons if "share" in name.lower() or "cloud" in name.lower()]  # these would upload it
    page.set_viewport_size({"width": 500, "height": 900})
    fits = "[...document.querySelectorAll('.main-svg')].every(svg => svg.getBoundingClientRect().right <= 500)"
    page.wait_for_function(f"() => {fits}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert page.complaints == []
    page.close()


def test_search_and_filters_act_on_tables_figures_and_runs(browser, study):
    page = opened(browser, study, 1280, "light")
    drawn(page)
    everything = visible(page, "tradeoffs")
    page.get_by_label("search").fill("mgda")
    assert page.locator("#results .scroll").first.locator("tbody tr:visible").count() == 1
    assert {label for label in visible(page, "tradeoffs") if "static" not in label} == {"MGDA"}
    assert visible(page, "curves") == ["MGDA"]
    assert all("MGDA" in text for text in page.locator("#runs summary").all_inner_texts())
    said = page.locator("#filter [role=status]").inner_text()
    assert said.startswith("1 of ") and "means are those of all seeds" in said
    page.get_by_label("search").fill("")
    page.locator("#filter select").nth(1).select_option("9")
    assert ["seed 9" in text for text in page.locator("#runs summary").all_inner_texts()] == [True]
    page.locator("#filter select").nth(1).select_option("")
    page.locator("#filter select").first.select_option("CAGrad")
    assert visible(page, "curves") == ["CAGrad"]
    page.locator("#filter select").first.select_option("")
    assert visible(page, "tradeoffs") == everything and page.complaints == []
    page.close()


def test_a_printed_page_is_light_and_holds_every_figure(browser, study):
    page = opened(browser, study, 1280, "dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("() => [...panels].filter(p => !p.hidden).every(p => p.querySelector('.main-svg'))")
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible() and page.locator("#results details[open]").count() > 0
    colour = page.evaluate("[...panels][0].querySelector('.plot').layout.paper_bgcolor")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert colour == "#ffffff" != page.evaluate("[...panels][0].querySelector('.plot').layout.paper_bgcolor")
    assert page.complaints == []
    page.close()


def sentences(page):
    """All captions and paragraphs of the page, as one text."""
    return "\n".join(page.locator("p.soft, figcaption, #notes li, h3").all_inner_texts())


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
    drawn(page)
    matrix = page.locator("[data-plot=cosines]")
    assert "-0.040" in matrix.locator(".heatmap-label").all_text_contents()
    trace = page.evaluate("document.querySelector('[data-plot=cosines] .plot').data[0]")
    assert (trace["zmin"], trace["zmax"]) == (-1, 1)
    assert "a cosine below −0.05" in page.locator("[data-plot=conflict] h3").inner_text()
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
    drawn(page)
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
    page.get_by_label("data").select_option("Scenes")
    assert page.locator("h2").first.inner_text() == "Scenes: test metrics" and page.complaints == []
    page.close()


def test_a_page_of_runs_that_go_on_is_renewed_where_the_reader_is(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "REST", 0)
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    going = write_run(tmp_path / "1", "mgda", status="running", rows=2, trainer={"max_steps": 100})
    server = watching.watch([tmp_path], "runs", [], "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        line = page.locator("#live tbody tr")
        line.wait_for()
        assert "20 of 100 steps" in line.inner_text() and line.locator("progress").get_attribute("value") == "20"
        assert page.locator("#live [role=status]").inner_text() == "1 finished, 1 running"
        page.locator("#curves select").first.select_option("train/loss/left")
        page.get_by_label("search").fill("mgda")
        (going / "status.json").write_text('{"status": "failed", "error": "ValueError: <b>no</b>"}')
        page.locator("#runs summary", has_text="failed").wait_for()
        assert "ValueError: <b>no</b>" in line.inner_text()
        assert page.locator("#curves select").first.input_value() == "train/loss/left"
        assert page.get_by_label("search").input_value() == "mgda" and page.locator("#runs summary").count() == 1
        assert drawn(page) > 0
        server.shutdown()
        server.server_close()
        page.get_by_text("The server does not answer").wait_for()
    finally:
        page.close()
        server.shutdown()
        thread.join()
        server.server_close()
