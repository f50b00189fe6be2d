import pytest
from support.what_works import BEGIN, END, README, table


@pytest.mark.slow
def test_the_table_in_the_readme_is_what_works():
    assert README.read_text().split(BEGIN)[1].split(END)[0] == table()
