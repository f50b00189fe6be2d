import re

import pytest
from support.soak import soak


@pytest.mark.slow
def test_a_sweep_under_random_faults_loses_nothing():
    table, wrong = soak(faults=12, seed=1)
    print(table)
    assert wrong == 0
    assert int(re.search(r"faults injected\*\* \| \*\*(\d+)", table)[1]) >= 12 and "| 4 of 4 |" in table
