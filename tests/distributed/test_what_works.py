import pytest
from support.what_works import BEGIN, END, PAGE, table


@pytest.mark.slow
def test_the_table_in_the_guide_is_what_works():
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == table()
