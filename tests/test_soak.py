"""The short version of the long run; `python tests/soak.py` is the whole."""

from soak import soak


def test_nothing_grows_or_drifts_in_300_iterations():
    soaked = soak(300)
    assert soaked.drift < 1e-5
    assert soaked.growth < 8
    assert 0 < soaked.state <= 4 * 7 * (8 + 3)
