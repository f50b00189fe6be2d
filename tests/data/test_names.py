"""The number of a sample's name, and the split that it falls into."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from mtl.data.names import hash_names, share_out


def test_a_name_has_one_number_whatever_the_others():
    names = ["a.png", "b/ü.png", "c\udce4.png"]
    digests = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    expected = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    assert hash_names(names).tolist() == expected and hash_names(names[1:]).tolist() == expected[1:]
    assert hash_names([]).shape == (0,)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_split_that_would_be_empty_takes_one_image_and_says_so(caplog, count):
    names = [f"{i}.png" for i in range(200)]
    train = [
        name for name, part in share_out(names, {"test": 0.1, "val": 0.1}, Path("t.csv")).items() if part == "train"
    ]
    assert not caplog.records, "the negative control: none is empty"
    found = share_out(train[:count], {"test": 0.1, "val": 0.1}, Path("t.csv"))
    assert Counter(found.values()) == {"train": count - 2, "val": 1, "test": 1}
    assert [r.getMessage().split("into ")[1].split(",")[0] for r in caplog.records] == ["test", "val"]
