import pytest
from support.what_works import (
    ARCHITECTURES,
    OF_ARCHITECTURES,
    TABLES,
    TOGETHER_OF_ARCHITECTURES,
    attempt,
    parts_of_page,
    table,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_the_table_in_the_guide_is_what_works(name):
    assert parts_of_page(name)[1] == table(*TABLES[name])


def test_what_the_guide_says_no_to_is_refused_under_architectures(tmp_path):
    """And works under hard sharing. The rest of the table takes minutes."""
    lines = parts_of_page("what architectures work with")[1].splitlines()
    head, _, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert [own[0] for own in cells] == [*ARCHITECTURES]
    assert head[1:] == [*OF_ARCHITECTURES, *TOGETHER_OF_ARCHITECTURES]
    refused = {(own[0], column) for own in cells for column, cell in zip(head, own, strict=True) if cell == "–"}
    refused -= {("`rotograd`", "FSDP all")}  # takes two processes
    columns = {column: OF_ARCHITECTURES[column] for _, column in refused}
    assert len(columns) == 2
    for column, chosen in columns.items():
        rows = {row for row, own in refused if own == column} | {"`hard`"}
        works = attempt(tmp_path / column[:4], {row: ARCHITECTURES[row] for row in rows}, {column: chosen})
        assert works == {(row, column): row == "`hard`" for row in rows}
