"""Links of an `nn.Sequential`, whose order of calls is known without a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # base of all batch and instance norms; no public name yet

from ..layers import is_layer
from ..observe import is_neuron
from .links import Link, describe, inner_links, join

__all__ = ["NORMS", "chain_links"]

NORMS = (_NormBase, nn.GroupNorm)
PER_DIMENSION = (
    "AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "LPPool", "MaxPool",
    "ConstantPad", "ReflectionPad", "ReplicationPad", "Dropout",
)  # fmt: skip
KEEP_CHANNELS = (
    *(getattr(nn, f"{kind}{axes}d") for kind in PER_DIMENSION for axes in (1, 2, 3)),
    nn.AlphaDropout, nn.Dropout, nn.FeatureAlphaDropout, nn.Identity, nn.ReLU, nn.Unflatten, nn.Upsample,
)  # fmt: skip
UNKNOWN_ORDER = "the model's own code calls it, in an order that only a run shows: pass `example=`"


def chain_links(model: nn.Module) -> list[Link]:
    """The links of each `nn.Sequential` in a model, and of layers inside neurons.

    Norms, pooling, flatten, dropout and padding may separate a layer from its neuron.
    """
    links: list[Link] = []
    seen: set[int] = set()
    for path, neuron, driver in _neurons(model):
        if id(neuron) in seen:
            links.append(Link(path, problem="one neuron object is used in two places"))
        seen.add(id(neuron))
        outer = Link(path, driver.layer, driver.norm, problem=None if driver.layer else driver.reason)
        links += inner_links(path, neuron, [outer])
    return links


@dataclass(frozen=True)
class _Driver:
    """The layer and the norm that drive the next neuron of a chain, or why they are unknown."""

    layer: str | None = None
    norm: str | None = None
    reason: str = "no layer precedes it"


def _neurons(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Driver]]:
    for chain, driver in _chains(model, ""):
        for path, module in chain:
            if is_neuron(module):
                yield path, module, driver
                driver = _Driver()
            else:
                driver = _after(driver, path, module)


def _chains(module: nn.Module, path: str) -> Iterator[tuple[list[tuple[str, nn.Module]], _Driver]]:
    """Runs of modules that call one another in order, each with the driver at its start."""
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
    # `named_children` skips a module that is used twice
    for name, child in sequential.named_modules(remove_duplicate=False):
        if not name or "." in name:
            continue
        if _is_plain_sequential(child):
            yield from _flattened(child, join(path, name))
        else:
            yield join(path, name), child


def _after(driver: _Driver, path: str, module: nn.Module) -> _Driver:
    """The driver behind one more module, which is no neuron."""
    if isinstance(module, NORMS):
        return _Driver(driver.layer, path, driver.reason)
    if is_layer(module):
        return _Driver(path)
    keeps_batch = isinstance(module, nn.Flatten) and module.start_dim == 1
    if keeps_batch or isinstance(module, KEEP_CHANNELS):
        return driver
    return _Driver(reason=f"{describe(path, module)} precedes it and may mix channels")


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
