"""What the package is measured against: the same rule written plainly, parts of it, and other packages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .models import pairs_of

__all__ = ["BareCount", "BareUpdate", "BatchBias", "Inferno", "Naive", "l1_sparsity", "rate_loss"]

PLASTICITY, TARGET = 1e-5, 0.1


class Naive:
    """The rule written as its formulas read: each hook keeps a running mean, and nothing is in place."""

    def __init__(self, net: nn.Sequential) -> None:
        self.pairs = pairs_of(net)
        self.rates: list[Tensor | float] = [0.0] * len(self.pairs)
        self.steps = [0] * len(self.pairs)
        for number, (_, neuron) in enumerate(self.pairs):
            neuron.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(neuron: nn.Module, args: object, output: Tensor) -> None:
            self.steps[number] += 1
            rate = self.rates[number]
            self.rates[number] = rate + ((output != 0).float() - rate) / self.steps[number]

        return hook

    @torch.no_grad()
    def step(self) -> None:
        for (layer, _), rate in zip(self.pairs, self.rates, strict=True):
            weight = layer.weight
            rows = rate.reshape(len(rate), len(weight), *(1,) * (weight.ndim - 1), -1)
            k = PLASTICITY * ((TARGET - rows) / TARGET).mean(-1)
            pos, neg = k.clamp_min(0).mean(0), k.clamp_max(0).mean(0)
            weight.copy_(weight + pos + neg)


class BareCount:
    """A hook that adds spikes to a count, and no more."""

    def __init__(self, net: nn.Sequential) -> None:
        self.counts: dict[nn.Module, Tensor] = {}
        for _, neuron in pairs_of(net):
            neuron.register_forward_hook(self._hook)

    def _hook(self, neuron: nn.Module, args: object, output: Tensor) -> None:
        count = self.counts.get(neuron)
        if count is None:
            count = self.counts[neuron] = torch.zeros_like(output)
        count.add_(output.detach())


class BareUpdate:
    """The floor of an update: sums the counts and adds a row to each weight."""

    def __init__(self, net: nn.Sequential, counting: BareCount) -> None:
        self.pairs, self.counts = pairs_of(net), counting.counts
        weights = [layer.weight for layer, _ in self.pairs]
        self.rows = [weight.new_zeros(len(weight), *(1,) * (weight.ndim - 1)) for weight in weights]

    @torch.no_grad()
    def step(self) -> None:
        for (layer, neuron), row in zip(self.pairs, self.rows, strict=True):
            self.counts[neuron].sum()
            layer.weight.add_(row)


class BatchBias:
    """A bias that follows the mean over the batch at each step, as BindsNET and spikingjelly adapt.

    It keeps no state per sample, so it has no rate to show.
    """

    def __init__(self, net: nn.Sequential) -> None:
        for layer, neuron in pairs_of(net):
            neuron.register_forward_hook(self._hook(layer))

    def _hook(self, layer: nn.Module) -> Callable[..., None]:
        @torch.no_grad()
        def hook(neuron: nn.Module, args: object, output: Tensor) -> None:
            others = [dim for dim in range(output.ndim) if dim != 1]
            layer.bias.add_((TARGET - output.mean(others)) * (PLASTICITY / TARGET))

        return hook


class Inferno:
    """Inferno's layers in the sizes of "fc", with its own rule or without."""

    def __init__(self, batch: int, *, regulated: bool) -> None:
        learn = pytest.importorskip("inferno.learn")
        self.layers = [self._layer(*sizes, batch) for sizes in ((784, 1000), (1000, 1000), (1000, 10))]
        self.trainers = []
        for layer in self.layers if regulated else ():
            # one for each layer, since the cells of a trainer share a monitor
            self.trainers.append(learn.LinearHomeostasis(PLASTICITY, TARGET, "weight"))
            self.trainers[-1].register_cell("cell", layer.cell)

    def _layer(self, inputs: int, outputs: int, batch: int) -> nn.Module:
        from inferno import neural

        connection = neural.LinearDense(
            inputs,
            outputs,
            1.0,
            synapse=neural.DeltaCurrent.partialconstructor(1.0),
            bias=True,
            batch_size=batch,
            weight_init=lambda weight: nn.init.uniform_(weight, -0.03, 0.03),
        )
        connection.updater = connection.defaultupdater()
        potentials = {"rest_v": 0.0, "reset_v": 0.0, "thresh_v": 1.0}
        neuron = neural.LIF(outputs, 1.0, **potentials, refrac_t=0.0, time_constant=10.0, batch_size=batch)
        return neural.Serial(connection, neuron)

    def present(self, inputs: Tensor, *, every: bool, once: bool) -> Callable[[], None]:
        @torch.no_grad()
        def call() -> None:
            for layer in self.layers:
                layer.connection.clear()
                layer.neuron.clear()
            for x in inputs:
                for layer in self.layers:
                    x = layer(x)
                if every:
                    self.step()
            if once:
                self.step()

        return call

    def step(self) -> None:
        for trainer, layer in zip(self.trainers, self.layers, strict=True):
            trainer()
            layer.cell.updater()
            layer.cell.updater.clear()


class Gathered:
    """Collects the spikes of all neurons until a penalty takes them."""

    def __init__(self, net: nn.Sequential) -> None:
        self.spikes: dict[nn.Module, list[Tensor]] = {neuron: [] for _, neuron in pairs_of(net)}
        for neuron in self.spikes:
            neuron.register_forward_hook(self._hook)

    def _hook(self, neuron: nn.Module, args: object, output: Tensor) -> None:
        self.spikes[neuron].append(output)

    def take(self) -> list[Tensor]:
        taken = [torch.stack(each) for each in self.spikes.values()]
        for each in self.spikes.values():
            each.clear()
        return taken


def rate_loss(net: nn.Sequential) -> Callable[[], Tensor]:
    """The squared distance of all rates from their target."""
    gathered = Gathered(net)
    return lambda: sum((each.mean(0) - TARGET).square().mean() for each in gathered.take())


def l1_sparsity(net: nn.Sequential) -> Callable[[], Tensor]:
    """snntorch's `l1_rate_sparsity` of all spikes."""
    from snntorch.functional import reg

    gathered, penalty = Gathered(net), reg.l1_rate_sparsity(1e-7)
    return lambda: sum(penalty(each) for each in gathered.take())
