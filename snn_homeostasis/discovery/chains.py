"""Links of an `nn.Sequential`, whose order of calls is known without a run."""

from collections.abc import Iterator
from dataclasses import replace

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
# drivers: links whose neuron is to come
NO_LAYER = Link("", problem="no layer precedes it")
UNKNOWN_ORDER = Link(
    "", problem="the model's own code calls it, in an order that only a run shows: pass `example=`"
)


def chain_links(model: nn.Module) -> list[Link]:
    """The links of each `nn.Sequential` in a model, and of layers inside neurons."""
    links: list[Link] = []
    seen: set[nn.Module] = set()
    for chain, driver in _chains(model, ""):
        for path, module in chain:
            if not is_neuron(module):
                driver = _after(driver, path, module)
                continue
            if module in seen:
                links.append(Link(path, problem="one neuron object is used in two places"))
            seen.add(module)
            links += inner_links(path, module, [replace(driver, neuron=path)])
            driver = NO_LAYER
    return links


def _chains(module: nn.Module, path: str) -> Iterator[tuple[list[tuple[str, nn.Module]], Link]]:
    """Runs of modules that call one another in order, each with the driver at its start."""
    if is_neuron(module):
        yield [(path, module)], UNKNOWN_ORDER
    elif _is_plain_sequential(module):
        chain = list(_flattened(module, path))
        yield chain, NO_LAYER
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


def _after(driver: Link, path: str, module: nn.Module) -> Link:
    """The driver behind one more module, which is no neuron."""
    if isinstance(module, NORMS):
        return replace(driver, norm=path)
    if is_layer(module):
        return Link("", path)
    keeps_batch = isinstance(module, nn.Flatten) and module.start_dim == 1
    if keeps_batch or isinstance(module, KEEP_CHANNELS):
        return driver
    return Link("", problem=f"{describe(path, module)} precedes it and may mix channels")


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
