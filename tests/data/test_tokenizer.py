"""Texts as tokens, against transformers' own call of a tokenizer."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
import transformers
from support.exactness import assert_same
from tokenizers import Tokenizer as Library

from mtl.config.instantiate import make
from mtl.data.tokenizer import Tokenizer, learn, tokenizer_content

TEXTS = ["The cat sat on the mat.", "A dog!", "", "unheard-of words, and the cat " * 5, "ÄRGER ☃ 中文"]
PAIRS = [("The cat sat", "on the mat"), ("a", "the cat and the mat " * 6), ("cat " * 30, "mat " * 9), ("", "")]
CONTENT = learn([*TEXTS, *TEXTS])


@pytest.mark.parametrize("length", [8, 24])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_the_tokens_are_those_of_transformers(texts, length):
    own = Library.from_str(CONTENT)
    kinds = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    library = transformers.PreTrainedTokenizerFast(tokenizer_object=own, **kinds)
    options = dict(padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    right = library(texts, return_token_type_ids=True, **options)
    found = Tokenizer(CONTENT, length).encode(texts)
    assert torch.equal(found["tokens"], right["input_ids"])
    assert torch.equal(found["mask"], right["attention_mask"].bool())
    assert ("segments" in found) == (texts is PAIRS)
    if texts is PAIRS:
        assert torch.equal(found["segments"], right["token_type_ids"]) and found["segments"].any()


def test_a_texts_tokens_depend_on_nothing_but_itself():
    tokenizer = Tokenizer(CONTENT, 12)
    batch = tokenizer.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        assert_same(tokenizer(text), {name: own[row] for name, own in batch.items()})
    assert not torch.equal(batch["tokens"][0], batch["tokens"][1])


def test_the_same_vocabulary_is_learnt_in_every_process():
    """The library's own trainer of word pieces learns another one every time."""
    script = f"from mtl.data.tokenizer import learn; print(learn({[*TEXTS, *TEXTS]!r}), end='')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == CONTENT


def test_a_new_word_is_what_it_begins_with_and_letters_and_a_known_one_itself():
    own = Library.from_str(CONTENT)
    assert own.encode("Cat").tokens == ["[CLS]", "cat", "[SEP]"]
    assert own.encode("cats").tokens == ["[CLS]", "cat", "##s", "[SEP]"]
    assert own.encode("☂").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    vocabulary = own.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))) and vocabulary["[PAD]"] == 0
    assert len(json.loads(learn(TEXTS * 2, vocabulary=20))["model"]["vocab"]) == 20


def test_what_is_cut_or_empty_is_counted(caplog):
    with caplog.at_level("INFO", logger="mtl.data.tokenizer"):
        Tokenizer(CONTENT, 16).say_cut(TEXTS)
        assert "of 5 training texts, 1 have more than data.length=16 tokens and are cut" in caplog.text
        assert "of 5 training texts, 1 are empty" in caplog.text
        caplog.clear()
        Tokenizer(CONTENT, 100).say_cut(TEXTS[:2])
        assert "the longest has 9 tokens; all are padded to data.length=100" in caplog.text
        assert "cut" not in caplog.text and "empty" not in caplog.text
        caplog.clear()
        Tokenizer(CONTENT, 16).say_cut([TEXTS[3], "a cat"] * 10_000)
        assert "of 10,000 training texts looked at, " in caplog.text


def test_raw_inputs_are_texts_files_pairs_and_rows(tmp_path):
    alone, pair = Tokenizer(CONTENT, 12), Tokenizer(CONTENT, 12, ["one", "two"])
    (tmp_path / "text.txt").write_text("The cat")
    assert_same(alone(tmp_path / "text.txt"), alone("The cat"))
    row = {"two": "the mat", "one": "The cat", "more": 3}
    assert_same(pair(row), pair(("The cat", "the mat")))
    rows = pd.DataFrame([row, {"one": "a", "two": "b"}])
    assert_same({name: own[0] for name, own in pair.batch(rows).items()}, pair(row))
    for tokenizer, raw in ((alone, "a dog"), (pair, ["a", "dog"])):
        again = make("preprocess", tokenizer.state())
        assert_same(again(raw), tokenizer(raw))
        assert again.takes == tokenizer.takes == ("text" if tokenizer is alone else "row")


@pytest.mark.parametrize(
    ("columns", "raw", "words"),
    [
        ([], 3, "an input must be a text, but it is a int"),
        ([], ("a", "b"), "an input must be a text, but it is a tuple"),
        (["one", "two"], "a", "an input must be a pair of texts, one and two, but it is a str"),
        (["one", "two"], {"one": "a"}, "a row must have one and two; this one lacks two"),
        (["one", "two"], {"one": "a", "two": 2.5}, "an input must be a pair of texts, one and two"),
    ],
    ids=["number", "pair", "text", "row", "cell"],
)
def test_another_raw_input_is_refused(columns, raw, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer(CONTENT, 12, columns)(raw)


def test_a_text_without_special_tokens_has_one_token_at_least():
    """So that no mean is over nothing."""
    content = json.loads(CONTENT) | {"post_processor": None}
    found = Tokenizer(json.dumps(content), 6).encode(["", "cat"])
    assert found["mask"].sum(1).tolist() == [1, 1] and found["tokens"][0, 0] == 0


def test_a_tokenizer_is_read_from_its_file_or_folder_without_its_own_padding(tmp_path):
    own = Library.from_str(CONTENT)
    own.enable_padding(length=3)
    own.enable_truncation(3)
    own.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = Tokenizer(tokenizer_content(str(path), []), 9)
        assert_same(found(TEXTS[0]), Tokenizer(CONTENT, 9)(TEXTS[0]))


@pytest.mark.parametrize("content", [None, "{", b"\xff\xfe\x00"], ids=["none", "broken", "binary"])
def test_a_tokenizer_that_is_none_is_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    words = (
        "there is no .*tokenizer.json; give a tokenizer.json or a folder" if content is None else "is no tokenizer: "
    )
    with pytest.raises(ValueError, match=words) as caught:
        tokenizer_content(str(tmp_path), [])
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"tokenizer={tmp_path}: ")


def test_a_length_that_holds_no_pair_is_refused():
    with pytest.raises(ValueError, match="length=4 must be 5 or more"):
        Tokenizer(CONTENT, 4)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"texts need the extra text, as in pip install 'mtl-torch\[text\]'"):
        Tokenizer(CONTENT, 12)
