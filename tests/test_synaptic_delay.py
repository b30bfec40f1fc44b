"""`attach` works through the SynapticDelay of later releases of snntorch, and takes it as the delay."""

import pytest
import torch
from models import Loop, leaky
from torch import nn

from snn_homeostasis import ArgumentError, FoundCell, LinearHomeostasis, find_cells


class SynapticDelay(nn.Module):
    """What the later releases document: a ring buffer, ``[B, C]`` per step, one delay for each channel."""

    def __init__(self, max_delay, delay=0.0, channels=None, learn_delay=False):
        super().__init__()
        value = torch.as_tensor(delay, dtype=torch.float32)
        value = value if channels is None else value.expand(channels).clone()
        self.max_delay = max_delay
        if learn_delay:
            self.delay = nn.Parameter(value)
        else:
            self.register_buffer("delay", value)
        self.reset()

    def reset(self):
        self.ring, self.now = None, 0

    def forward(self, x):
        length = self.max_delay + 2
        if self.ring is None or self.ring.shape[1:] != x.shape:
            self.ring = torch.zeros(length, *x.shape)
        self.ring = self.ring.index_copy(0, torch.tensor([self.now]), x.unsqueeze(0))
        delay = self.delay.clamp(0, self.max_delay).expand(x.shape[1])
        lag = delay.detach().floor().long()
        early, late = self._at(lag), self._at(lag + 1)
        self.now = (self.now + 1) % length
        return early + (delay - lag) * (late - early)

    def _at(self, lag):
        index = (self.now - lag) % len(self.ring)
        return self.ring.gather(0, index.expand(1, *self.ring.shape[1:])).squeeze(0)


def chain(**kwargs):
    delay = SynapticDelay(max_delay=4, **kwargs)
    return nn.Sequential(nn.Linear(3, 2), delay, leaky(), nn.Linear(2, 2), leaky())


def test_the_restated_class_delays_each_channel():
    delay = SynapticDelay(4, torch.tensor([0.0, 1.0, 2.5]), channels=3)
    impulse = [delay(torch.full((1, 3), 1.0 if step == 0 else 0.0)).squeeze(0) for step in range(5)]
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    assert torch.stack(impulse).tolist() == expected


@pytest.mark.parametrize("example", [None, torch.rand(5, 3)])
@pytest.mark.parametrize("kwargs", [{}, {"channels": 2}, {"learn_delay": True}])
def test_attach_works_through_a_delay_of_any_kind(kwargs, example):
    model = chain(delay=2.0, **kwargs)
    assert find_cells(model, example)[0] == FoundCell("2", "0", "2")
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, example)
    model(torch.zeros(5, 3))
    homeostasis.step()


@pytest.mark.parametrize("example", [None, torch.rand(5, 3)])
def test_a_trainable_delay_is_the_delay_of_the_cell(example):
    model = chain(delay=2.0, channels=2, learn_delay=True)
    cell = find_cells(model, example)[0]
    assert cell == FoundCell("2", "0", "2", delay="1")
    homeostasis = LinearHomeostasis(0.5, 0.5, "delay").attach(model, example, include="2")
    with torch.no_grad():
        model(torch.zeros(5, 3))
    homeostasis.step()
    assert (model[1].delay != 2.0).all()


class InALoop(Loop):
    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.lif = nn.Linear(3, 2), nn.BatchNorm1d(2), leaky()
        self.delay = SynapticDelay(4, 3.0, channels=2, learn_delay=True)

    def start(self, x):
        self.delay.reset()

    def step(self, x):
        return self.lif(self.delay(self.bn(self.fc(x))))


def test_norm_and_delay_between_are_both_seen():
    for steps in (1, 2, 8):  # also where nothing arrives before the end
        (cell,) = find_cells(InALoop(), torch.rand(steps, 5, 3))
        assert (cell.layer, cell.norm, cell.delay) == ("fc", "bn", "delay")


def test_the_run_leaves_the_ring_as_it_was():
    model = InALoop()
    model(torch.rand(2, 5, 3))
    ring, now = model.delay.ring, model.delay.now
    before = ring.clone()
    find_cells(model, torch.rand(8, 5, 3))
    assert model.delay.ring is ring
    assert model.delay.now == now
    assert torch.equal(ring, before)


def test_mixed_channels_in_front_of_a_delay_are_still_seen():
    class Flipped(InALoop):
        def step(self, x):
            return self.lif(self.delay(self.fc(x).flip(1)))

    with pytest.raises(ValueError, match=r"`fc`, of shape \[5, 2\], reaches it .*reordered"):
        find_cells(Flipped(), torch.rand(2, 5, 3))


def test_a_delay_that_is_not_trainable_cannot_be_regulated():
    with pytest.raises(ArgumentError, match="None is there for `2`, `4`"):
        LinearHomeostasis(0.1, 0.1, "delay").attach(chain(delay=2.0, channels=2))
