import pytest

from mtl.errors import ConfigError, first_line


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
