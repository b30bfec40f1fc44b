"""The short version of the soak: `python tests/soak.py` runs the long one."""

from soak import soak


def test_nothing_grows_or_drifts_in_500_iterations():
    soaked = soak(500)
    assert soaked.drift < 1e-5
    assert soaked.growth < 8
    assert soaked.state <= 4 * 7 * (8 + 3) + 64
