import importlib.util
import json

import pytest

from mtl.errors import ConfigError, first_line, reason_of


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("lr=-1 must be above 0."), "lr=-1 must be above 0."),
        (RuntimeError("\n  first\nsecond"), "first"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_quoted_in_one_line(error, line):
    assert first_line(error) == line
    assert isinstance(ConfigError(), ValueError)


def fails(text, where):
    """The error of a module with this text."""
    where.write_text(text)
    specification = importlib.util.spec_from_file_location("theirs", where)
    module = importlib.util.module_from_spec(specification)
    with pytest.raises(Exception) as caught:
        specification.loader.exec_module(module)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return {}['key']\nf()\n", "KeyError: 'key' (theirs.py, line 2)"),
        ("import nobody\n", "ModuleNotFoundError: No module named 'nobody' (theirs.py, line 1)"),
        ("import math\n\nmath.sqrt(-1)\n", "ValueError: math domain error (theirs.py, line 3)"),
        ("import textwrap\n\ntextwrap.wrap('a', 0)\n", "ValueError: invalid width 0 (must be > 0) (theirs.py, line 3)"),
    ],
)  # fmt: skip
def test_an_error_in_the_users_own_code_names_its_file_and_line(tmp_path, monkeypatch, text, expected):
    error = fails(text, tmp_path / "theirs.py")
    assert str(tmp_path / "theirs.py") in reason_of(error)
    monkeypatch.chdir(tmp_path)
    assert reason_of(error) == expected


def test_an_error_of_installed_code_is_its_first_line_alone():
    def raised(function):
        try:
            function()
        except Exception as error:
            error.__traceback__ = error.__traceback__.tb_next.tb_next  # without this file, which is the user's own
            return error

    assert reason_of(raised(lambda: json.loads("["))) == "Expecting value: line 1 column 2 (char 1)"
    assert reason_of(KeyError("a")) == "KeyError: 'a'", "a bare key says little"
