"""Runs that torch traces or transforms bring no spikes: nothing is counted, and `step` goes on."""

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from snn_homeostasis import ArgumentError, Cell, LinearHomeostasis


class Net(nn.Module):
    """One layer and one neuron, which has no autograd Function of its own: `torch.func` takes none."""

    def __init__(self, neuron: nn.Module):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), neuron

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        output = self.lif(current) if self.is_hidden else self.lif(current, torch.zeros_like(current))
        return (output if isinstance(output, Tensor) else output[0]).sum()

    @property
    def is_hidden(self) -> bool:
        return isinstance(self.lif, snn.StateLeaky) or self.lif.init_hidden


NEURONS = {
    "explicit": lambda: snn.Leaky(beta=0.9, surrogate_disable=True),
    "hidden": lambda: snn.Leaky(beta=0.9, init_hidden=True, surrogate_disable=True),
    "sequence": lambda: snn.StateLeaky(0.9, 3, surrogate_disable=True),
}


def by_parameters(net: nn.Module, x: Tensor) -> object:
    return torch.func.grad(lambda params: torch.func.functional_call(net, params, (x,)))(
        {name: value.detach() for name, value in net.named_parameters()}
    )


def in_fake_mode(net: nn.Module, x: Tensor) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return net(mode.from_tensor(x))


TRANSFORMS = {
    "func.grad": by_parameters,
    "func.jvp": lambda net, x: torch.func.jvp(net, (x,), (x,)),
    "func.jacrev": lambda net, x: torch.func.jacrev(net)(x),
    "jit.trace": lambda net, x: torch.jit.trace(net, (x,), check_trace=False),
    "export": lambda net, x: torch.export.export(net, (x,), strict=False),
    "make_fx": lambda net, x: make_fx(lambda x: net(x))(x),
    "fake tensors": in_fake_mode,
}


def observed(neuron: str):
    net = Net(NEURONS[neuron]())
    homeostasis = LinearHomeostasis(0.1, 0.2, "bias")
    homeostasis.register_cell("cell", Cell(net.fc, net.lif))
    x = torch.rand(5, 2, 4) if neuron == "sequence" else torch.rand(2, 4)
    run(net, x)
    return net, homeostasis, x


@torch.no_grad()
def run(net: nn.Module, x: Tensor) -> None:
    if isinstance(net.lif, snn.Leaky):
        net.lif.reset_mem()
    net(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_transformed_run_is_not_observed(neuron, transform):
    net, homeostasis, x = observed(neuron)
    rate = homeostasis.units["cell"].rate
    steps, total, before = rate.steps, rate.total.clone(), net.fc.bias.detach().clone()
    if neuron == "hidden":
        net.lif.reset_mem()
    result = TRANSFORMS[transform](net, x)
    assert rate.steps == steps
    assert torch.equal(rate.total, total)
    if transform in ("export", "make_fx"):
        assert not [node for node in result.graph.nodes if ".add_" in str(node.target)]
    run(net, x)
    homeostasis.step()
    assert torch.isfinite(net.fc.bias).all()
    assert not torch.equal(net.fc.bias, before)


def test_a_run_under_vmap_is_refused_by_name():
    net, homeostasis, x = observed("explicit")
    with pytest.raises(ArgumentError, match=r"under `torch\.vmap`"):
        torch.vmap(net)(torch.stack([x, x]))
    homeostasis.step()


def test_a_run_that_is_only_counted_is_observed():
    net, homeostasis, x = observed("hidden")
    with FlopCounterMode(display=False):
        run(net, x)
    assert homeostasis.units["cell"].rate.steps == 2


def test_a_run_with_other_parameters_is_observed():
    net, homeostasis, x = observed("explicit")
    torch.func.functional_call(net, {"fc.bias": torch.full((3,), 9.0)}, (x,))
    assert homeostasis.rates()["cell"].min() >= 0.5
