import os

import numpy as np
import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data.stdlib import Stdlib

TEXT = b"the cat sat on the mat, and the other cat on that. " * 40


@pytest.fixture(scope="module")
def library():
    return Stdlib()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_bytes(f"file {i}: ".encode() + bytes(rng.integers(97, 123, 400).tolist()))
    return tmp_path


def slow_encode(text, pairs):
    """Greedy encoding, byte by byte."""
    ids = {bytes(divmod(int(pair), 256)): 256 + i for i, pair in enumerate(pairs)}
    tokens, place = [], 0
    while place < len(text):
        token = ids.get(text[place : place + 2])
        tokens.append(text[place] if token is None else token)
        place += 1 if token is None else 2
    return tokens


def test_the_library_is_read_without_its_tests(library):
    everything = b"".join(library.decode(split.tokens.tolist()) for split in (library.val, library.test))
    everything += library.train.tokens.numpy().astype(np.uint8).tobytes()
    assert len(everything) > 5_000_000
    assert b"class OrderedDict" in everything and b"def namedtuple" in everything
    assert b"class TestOrderedDict" not in everything and b"import torch\n" not in everything
    assert library.input_info == {"vocabulary": 256, "context": 128}


def test_a_target_is_the_token_so_many_places_ahead(library):
    for split in (library.train, library.val):
        inputs, targets = split.batch([3, 5], epoch=0)
        assert inputs.shape == (2, 128) and list(targets) == [f"next_{k}" for k in range(1, 9)]
        for k in range(1, 9):
            assert torch.equal(targets[f"next_{k}"][:, :-8], inputs[:, k : 120 + k])
        assert torch.equal(targets["next_1"][:, 7:], targets["next_8"][:, :-7])
        assert torch.equal(split[5][0], inputs[1])
    assert library.train.batch([1], 0)[0][0, 0] == library.train.tokens[128]


def test_splits_share_no_file_and_are_the_same_again(folder):
    data, again = Stdlib(path=str(folder), context=16), Stdlib(path=str(folder), context=16)
    texts = {name: data.decode(getattr(data, name).tokens.tolist()) for name in ("train", "val", "test")}
    files = {p.read_bytes() for p in folder.iterdir()}
    assert {name: sum(file in text for file in files) for name, text in texts.items()} == {
        "train": 36,
        "val": 2,
        "test": 2,
    }
    assert sum(map(len, texts.values())) == sum(map(len, files))
    assert torch.equal(data.val.batch([0, 1], 0)[0], again.val.batch([0, 1], 0)[0])


def test_samples_for_validation_come_from_all_over_the_split(folder):
    data = Stdlib(path=str(folder), context=16)
    places = [bytes(data.val[i][0].tolist()) for i in range(len(data.val))]
    text = data.decode(data.val.tokens.tolist())
    order = [text.index(place) for place in places]
    assert sorted(order) == list(range(0, 16 * len(order), 16)) and order != sorted(order)


@pytest.mark.parametrize("vocabulary", [256, 257, 260, 270, 5000])
def test_pairs_are_taken_from_the_left(tmp_path, vocabulary):
    (tmp_path / "a.txt").write_bytes(TEXT)
    data = Stdlib(path=str(tmp_path), vocabulary=vocabulary, context=8)
    assert data.vocabulary == min(vocabulary, 256 + len(data.pairs)) and len(data.pairs) <= vocabulary - 256
    for text in (TEXT, b"aaaa", b"aaa the", b"t", "naïve".encode()):
        tokens = data.encode(text).tolist()
        assert tokens == slow_encode(text, data.pairs)
        assert data.decode(tokens) == text
    assert (len(data.encode(TEXT)) < len(TEXT)) == (vocabulary > 256)


def test_the_pairs_are_the_most_frequent_of_the_training_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ababab--" * 200)
    data = Stdlib(path=str(tmp_path), vocabulary=258, context=8)
    assert {data.decode([256]), data.decode([257])} == {b"ab", b"ba"}


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tmp_path):
    """Uniform predictions: log2 V bits per token, divided by its length of one or two bytes."""
    (tmp_path / "a.txt").write_bytes(TEXT)
    for vocabulary in (256, 270):
        data = Stdlib(path=str(tmp_path), vocabulary=vocabulary, context=8)
        metric = data.metrics("next_1")["bits_per_byte"]
        tokens = torch.from_numpy(data.encode(TEXT)).long()
        missing = torch.full((1, 3), -100)
        metric.update(torch.zeros(1, len(tokens) + 3, data.vocabulary), torch.cat([tokens[None], missing], 1))
        expected = len(tokens) * np.log2(data.vocabulary) / len(TEXT)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_what_came_of_the_text_is_said(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(TEXT)
    with caplog.at_level("INFO", logger="mtl.data.stdlib"):
        Stdlib(path=str(tmp_path / "a.txt"), vocabulary=260, context=8)
    assert f"{len(TEXT):,} bytes as" in caplog.text and "vocabulary 260: 256 bytes and 4 pairs" in caplog.text


def test_hidden_files_and_files_that_are_no_text_are_left_out(folder):
    before = len(Stdlib(path=str(folder), context=16).train)
    (folder / "image.bin").write_bytes(bytes(range(128, 256)) * 100)
    (folder / ".git").mkdir()
    (folder / ".git" / "text").write_bytes(TEXT)
    assert len(Stdlib(path=str(folder), context=16).train) == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"context": 0}, "context=0 must be 1 or more"),
        ({"futures": 0}, "futures=0 must be 1 or more"),
        ({"vocabulary": 255}, "vocabulary=255 must be 256 or more"),
        ({"path": "nowhere"}, "path=nowhere does not exist"),
    ],
)
def test_a_wrong_argument_is_named(argument, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        Stdlib(**argument)


def test_a_path_without_text_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no text: none of its 0 files is non-empty UTF-8"):
        Stdlib(path=str(tmp_path))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="has no text: none of its 1 files"):
        Stdlib(path=str(tmp_path))
    (tmp_path / "short.txt").write_bytes(b"short")
    with pytest.raises(ValueError, match="the text is too short, for one of its splits has 0 tokens"):
        Stdlib(path=str(tmp_path))


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(TEXT)
    # root may read anything, so that the refusal is made
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: os.open(tmp_path / "gone", os.O_RDONLY))
    with pytest.raises(ValueError, match=r"a.txt cannot be read \(No such file"):
        Stdlib(path=str(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_head_set_trains_and_all_its_heads_are_like_the_first(folder, count):
    overrides = [f"data.path={folder}", "data.context=16", "data.batch_size=2", "backbone.width=16", "device=cpu"]
    names = [f"next_{k}" for k in range(1, count + 1)]
    parts, state = build(
        load(
            [
                "data=stdlib",
                "backbone=causal_transformer",
                f"heads=next_{count}",
                "heads.next_1.layer=transformer",
                *overrides,
            ]
        )
    )
    result = state.strategy.step(state.model, state.tasks, *parts.data.train.batch([0, 1], 0), measure=True)
    assert list(result.losses) == names and result.gram.shape == (count, count)
    assert len({str(head) for head in state.model.heads.values()}) == 1
    assert "CausalBlock" in str(state.model.heads["next_1"])
    assert len({id(head.unembedding.weight) for head in state.model.heads.values()}) == count


def test_the_data_alone_chooses_four_heads_and_their_loss():
    cfg = load(["data=stdlib", "backbone=causal_transformer"])
    assert list(cfg.heads) == ["next_1", "next_2", "next_3", "next_4"]
    assert cfg.losses._target_ == "mtl.losses.TokenCrossEntropy"
