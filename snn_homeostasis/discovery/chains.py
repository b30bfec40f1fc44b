"""Links of a model whose order of calls is known without running it: that of `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.activation import ReLU
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from ..layers.connections import is_layer
from ..observe.neurons import is_neuron
from .links import Link, inner_links, join, title

__all__ = ["NORMS", "chain_links"]

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
KEEP_CHANNELS = (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _ConstantPadNd,
    _DropoutNd,
    _LPPoolNd,
    _MaxPoolNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
    nn.Identity,
    nn.Upsample,
    ReLU,
)
UNKNOWN_ORDER = "its model calls it from code of its own; `example=` lets it be watched"


def chain_links(model: nn.Module) -> list[Link]:
    """The links of an `nn.Sequential`, nested or inside other modules.

    Between layer and neuron may stand norms, pooling, flatten, dropout and padding. Layers
    inside a neuron are found in any model.
    """
    links: list[Link] = []
    seen: set[int] = set()
    for path, neuron, driver in _neurons(model):
        if id(neuron) in seen:
            links.append(Link(path, problem="one neuron object stands in two places"))
        seen.add(id(neuron))
        outer = Link(path, driver.layer, driver.norm, problem=None if driver.layer else driver.reason)
        links += inner_links(path, neuron, [outer])
    return links


@dataclass(frozen=True)
class _Driver:
    """What drives the next neuron of a chain, as far as it is known."""

    layer: str | None = None
    norm: str | None = None
    reason: str = "no layer stands in front of it"


def _neurons(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Driver]]:
    for chain, driver in _chains(model, ""):
        for path, module in chain:
            if is_neuron(module):
                yield path, module, driver
                driver = _Driver()
            else:
                driver = _after(driver, path, module)


def _chains(module: nn.Module, path: str) -> Iterator[tuple[list[tuple[str, nn.Module]], _Driver]]:
    """Runs of modules that call one another in the order in which they stand."""
    if is_neuron(module):
        yield [(path, module)], _Driver(reason=UNKNOWN_ORDER)
    elif _is_plain_sequential(module):
        chain = list(_flattened(module, path))
        yield chain, _Driver()
        for name, each in chain:
            if not is_neuron(each):
                yield from _chains(each, name)
    else:
        for name, child in module.named_children():
            yield from _chains(child, join(path, name))


def _flattened(sequential: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    # not named_children, which leaves out a module that stands in two places
    for name, child in sequential._modules.items():
        assert child is not None
        if _is_plain_sequential(child):
            yield from _flattened(child, join(path, name))
        else:
            yield join(path, name), child


def _after(driver: _Driver, path: str, module: nn.Module) -> _Driver:
    """The driver behind one more module that is no neuron."""
    if isinstance(module, NORMS):
        return _Driver(driver.layer, path, driver.reason)
    if is_layer(module):
        return _Driver(path)
    if isinstance(module, KEEP_CHANNELS) or _is_batch_flatten(module):
        return driver
    return _Driver(reason=f"{title(path, module)} stands in front of it and may mix channels")


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _is_batch_flatten(module: nn.Module) -> bool:
    return isinstance(module, nn.Unflatten) or (isinstance(module, nn.Flatten) and module.start_dim == 1)
