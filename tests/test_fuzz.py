"""A short form of `python -m tests.fuzz`: random cases against plain loops."""

import pytest
from fuzz.playing import failure_of


@pytest.mark.parametrize("seed", range(40))
def test_a_random_case_agrees_with_plain_loops(seed):
    failure = failure_of(seed)
    assert failure is None, failure
