"""The table of the parts of a step still finds them; this runs with the other tests."""

from torch import nn

from .models import Model, leaky
from .parts import PARTS, TOTAL, parts_of_a_step


def test_the_parts_of_a_step_are_found_and_do_not_overlap():
    seconds = parts_of_a_step(Model(lambda: nn.Sequential(nn.Linear(4, 4), leaky()), (4,)), batch=128)
    assert list(seconds) == [*PARTS, TOTAL]
    assert min(seconds.values()) > 0
    assert sum(seconds[name] for name in PARTS) < 1.1 * seconds[TOTAL]
