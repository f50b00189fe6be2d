from pathlib import Path

from support.examples import EXAMPLES


def test_every_script_has_a_test_of_its_own():
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tests - {"every_example"}
