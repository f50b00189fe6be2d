"""Tables as other tools write them are read as the plain one; what is not certain is one sentence with the remedy."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from mtl.data.image_paths import find_images
from mtl.data.image_table import ImageTable

COLOURS, N = ("grün", "rot", "weiß"), 24


def rows(name="images/ü{}.png", decimal=".", index=None):
    for i in range(N):
        number = f"{(5 + i / 3):.2f}".replace(".", decimal)
        yield [*([str(i + index)] if index is not None else []), name.format(i), COLOURS[i % 3], number]


def lines(header="file,colour,weight", separator=",", end="\n", **others):
    own = [header.replace(",", separator), *(separator.join(row) for row in rows(**others))]
    return (end.join(own) + end).encode()


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(N):
        Image.fromarray(np.full((6, 8, 3), 8 * i, np.uint8)).save(tmp_path / "images" / f"ü{i}.png")

    def write(content, name="labels.csv"):
        (tmp_path / name).write_bytes(content)
        return ImageTable(str(tmp_path), name)

    return write


def content(data):
    """The images' paths and labels of each split, and what the targets are."""
    return data.columns, [[(name, {k: v.tolist() for k, v in own.items()}) for name, own in split._items]
                          for split in (data.train, data.val, data.test)]  # fmt: skip


FORMS = {
    "semicolons": lines(separator=";"),
    "semicolons and decimal commas": lines(separator=";", decimal=","),
    "tabs": lines(separator="\t"),
    "tabs and decimal commas": lines(separator="\t", decimal=","),
    "bars": lines(separator="|"),
    "quoted decimal commas":
        "\n".join(["file,colour,weight", *(f'{a},{b},"{c}"' for a, b, c in rows(decimal=","))]).encode(),
    "index of pandas": lines(header=",file,colour,weight", index=0),
    "id first": lines(header="id,file,colour,weight", index=1),
    "carriage returns": lines(end="\r\n"),
    "backslashes": lines(name="images\\ü{}.png"),
    "a dot before": lines(name=".\\images\\ü{}.png"),
    "no suffix": lines(name="images/ü{}"),
    "other suffix case": lines(name="images/ü{}.PNG"),
    "other Unicode form": unicodedata.normalize("NFD", lines().decode()).replace(
        unicodedata.normalize("NFD", "grün"), "grün").encode(),
    "byte order mark": b"\xef\xbb\xbf" + lines(),
    "UTF-16": lines().decode().encode("utf-16"),
    "UTF-16, big-endian": b"\xfe\xff" + lines().decode().encode("utf-16-be"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_another_tool_is_read_as_the_plain_one(write, form):
    expected = content(write(lines()))
    assert content(write(FORMS[form])) == expected
    assert expected[0]["weight"].kind == "number" and expected[0]["colour"].classes == COLOURS


@pytest.mark.parametrize("name", ["LABELS.CSV", "labels.tsv", "labels.txt"])
def test_endings(write, name):
    assert content(write(lines(), name)) == content(write(lines()))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (lines().decode().encode("latin-1"), "line 2 is not UTF-8; save the table as UTF-8"),
        (b"file,size\n" + "".join(f'images/ü{i}.png,"1,{i + 100}"\n' for i in range(N)).encode(),
         "size has 1,100, whose comma may be that of decimals or of thousands"),
        (lines(name="images/u{}.png"), r"row 2: .*u0.png does not exist \(24 of 24 images are missing\)"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_a_sentence(write, table, words):
    with pytest.raises(ValueError, match=words):
        write(table)


def test_a_wrong_image_column_names_the_right_one(write, tmp_path):
    write(lines(header="name,file,colour,weight", index=1000))
    with pytest.raises(ValueError, match=r"the column file has files: data\.image=file"):
        ImageTable(str(tmp_path), image="name")


def test_numbers_that_are_no_index_stay_a_target(write):
    """Negative control: only a column that is named as an index and counts the rows is left out."""
    assert "id" in write(lines(header="id,file,colour,weight", index=5)).targets
    assert "age" in write(lines(header="age,file,colour,weight", index=0)).targets


def test_a_name_of_two_files_is_none(tmp_path):
    for name in ("a.png", "A.PNG", "b.png", "b.jpg"):
        (tmp_path / name).touch()
    assert find_images(["a.png", "A.PNG", "a.PNG", "b", "b.JPG", "", "../a.png"], tmp_path) == [
        "a.png", "A.PNG", None, None, "b.jpg", None, None]  # fmt: skip
