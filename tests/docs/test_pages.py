"""What the pages of the documentation say can be typed, and their links lead somewhere."""

import re

import numpy
import pytest
from support.guides import DOCS, PAGES, blocks, commands, guide, write_files

from mtl.config import check, load

ROOT = DOCS.parent
README = (ROOT / "README.md").read_text()
OWN = ("heads", "own_data")  # pages with configurations of the reader, which are trained below
FIRST_LINES = [line for line in README.splitlines() if line.startswith("    mtl-train")]
TRAINED = {
    " ".join(words): words
    for page in PAGES
    if page.stem not in (*OWN, "new_project")  # tests/test_new.py has that
    for program, words in commands(page.read_text())
    if program == "mtl-train" or "-m mtl.train" in program
    if not any(" ".join(words) in line for line in FIRST_LINES)  # tests/test_readme.py has these
}
SOURCES = {
    "mtl-predict": ["predict.py"], "mtl-export": ["export.py"], "mtl-eval": ["evaluate.py"],
    "mtl-report": ["report/command.py"],
}  # fmt: skip
TINY = ["trainer.max_steps=4", "trainer.val_every=2", "trainer.limit_val_batches=1", "tracker=jsonl", "device=cpu"]


@pytest.mark.parametrize("command", TRAINED)
def test_every_command_composes(command):
    words = [word for word in TRAINED[command] if word not in ("-m", "--help", "--cfg", "job", "…")]
    words = [word for word in words if "<date>" not in word and not word.startswith("hydra")]
    if "-cd" in words:  # a folder that one of our commands writes, and tests/data compose; here the data it inherits
        position = words.index("-cd")
        words = words[:position] + words[position + 2 :]
        words += ["data.root=x", "data.targets=[y]"] if "data=mine" in words else []
        words = [word.replace("data=mine", "data=table") for word in words if word not in ("heads=mine", "losses=mine")]
    check(load([first_of_sweep(word) for word in words]))


def first_of_sweep(word):
    """Of a sweep its first job: commas outside of brackets and braces part the jobs; of a search the first value."""
    if searched := re.search(r"=.*(?:interval|choice)\((\{.*?\}|[^,()]+)", word):
        return f"{word.partition('=')[0]}={searched[1]}"
    return (
        re.split(r",(?![^\[{]*[\]}])", word)[0]
        if not word.partition("=")[2].startswith("[")
        else re.split(r"(?<=\]),", word)[0]
    )


def test_every_option_of_the_other_commands_exists():
    named = {(program, word) for page in PAGES for program, words in commands(page.read_text()) for word in words}
    options = {(program, word) for program, word in named if word.startswith("--") and "mtl.train" not in program}
    assert len(options) > 10
    for program, option in options - {("mtl-train", "--help"), ("mtl-train", "--cfg")}:
        files = SOURCES.get(program) or [f"{program.removeprefix('python -m mtl.').replace('.', '/')}.py"]
        text = "".join(
            (ROOT / "mtl" / file).read_text() for file in [*files, "data/fixtures.py", "data/table_command.py"]
        )
        assert f'"{option}"' in text, f"{program} {option}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem in ("balance", "own_trainer", "rules")], ids=lambda p: p.stem
)
def test_every_snippet_runs(page):
    for code in blocks(page.read_text(), "python"):
        exec(code, {})


def test_a_session_of_onnxruntime_is_called_as_the_page_says(tmp_path, monkeypatch):
    onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    values = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3])
        for name in ("images", "left", "right")
    }
    nodes = [helper.make_node("Identity", ["images"], ["left"]), helper.make_node("Neg", ["images"], ["right"])]
    graph = helper.make_graph(nodes, "model", [values.pop("images")], list(values.values()))
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx"
    )
    monkeypatch.chdir(tmp_path)
    scope = {"pixels": numpy.ones((2, 3), numpy.float32)}
    (code,) = blocks(guide("export"), "python")
    exec(code, scope)
    assert (scope["left"] == -scope["right"]).all()


@pytest.mark.parametrize("name", OWN)
def test_the_readers_own_configurations_are_trained(name, tmp_path, forked):
    """To the end, in processes of their own: a class is found in the current folder, as the page says."""
    write_files(guide(name), tmp_path)
    runs = [words for program, words in commands(guide(name)) if program == "mtl-train"]
    assert len(runs) >= 3
    for words in runs:
        words = [word for word in words if not word.startswith("backbone.pretrained")]  # from a network
        done = forked("mtl.train", *words, *TINY)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./#?=&%~-]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text):
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_what_is_read_of_a_page():
    assert commands("    mtl-train a=1 \\\n        b=2  # words\n") == [("mtl-train", ["a=1", "b=2"])]
    assert first_of_sweep("a=1,2") == "a=1" and first_of_sweep("tasks=[a],[b]") == "tasks=[a]"
    assert first_of_sweep("x.y=[1,2]") == "x.y=[1,2]" and anchors("## One *thing*, two\n") == {"one-thing-two"}
