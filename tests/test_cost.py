"""What observing and updating cost, counted in operations and bytes; no clocks."""

import pytest
import torch
from nets import leaky, spikes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from snn_homeostasis import CumulativeRate, ExponentialRate, LinearHomeostasis

VIEWS = ("detach", "view", "unsqueeze", "expand", "select", "alias", "squeeze", "t", "_unsafe_view")


class Operations(TorchDispatchMode):
    """Notes every operation, whether it is a view, and the bytes of what it newly allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        self.names.append(name)
        is_new = name not in VIEWS and not name.endswith("_")
        self.bytes += sum(
            each.numel() * each.element_size()
            for each in torch.utils._pytree.tree_leaves(output)
            if is_new and isinstance(each, torch.Tensor)
        )
        return output


def cost_of(call) -> Operations:
    with Operations() as operations:
        call()
    return operations


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("rate", "name"), [(CumulativeRate, "add_"), (lambda: ExponentialRate(9.0), "lerp_")]
)
def test_a_recorded_step_is_one_operation_in_place_for_each_neuron(rate, name, grad):
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2, rate=rate).attach(net)
    x = spikes(4, 6)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            net(x)
        observed = cost_of(lambda: net(x))
        homeostasis.remove()
        plain = cost_of(lambda: net(x))
    extra = list(observed.names)
    for each in plain.names:
        extra.remove(each)
    views = ["detach"] * 2 if grad else []
    assert sorted(extra) == sorted([name, name, *views])
    assert observed.bytes == plain.bytes


@torch.no_grad()
def test_nothing_is_left_of_an_observer_that_is_frozen_or_paused():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    net(spikes(4, 6))
    homeostasis.eval()
    assert not net[1]._forward_hooks
    homeostasis.train()
    with homeostasis.pause():
        assert not net[1]._forward_hooks
    assert net[1]._forward_hooks


@torch.no_grad()
@pytest.mark.parametrize("steps", [3, 300])
def test_state_does_not_grow_with_time(steps):
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    for _ in range(steps):
        net(spikes(4, 6))
    assert sum(buffer.numel() * buffer.element_size() for buffer in homeostasis.buffers()) == 4 * 4 * 8
