"""Links of an `nn.Sequential`, whose order of calls is known without a run."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # base of all batch and instance norms; no public name yet

from ..delays import is_delay
from ..errors import HomeostasisError
from ..layers import connect, has_bias_per_feature, is_layer
from ..observe import is_neuron
from .links import Link, describe, inner_links, join, norm_inside, quoted
from .readouts import out_of_reach

__all__ = ["NORMS", "chain_links", "keeps_channels"]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
PER_DIMENSION = (
    "AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "LPPool", "MaxPool",
    "ConstantPad", "ReflectionPad", "ReplicationPad", "Dropout",
)  # fmt: skip
KEEP_CHANNELS = (
    *(getattr(nn, f"{kind}{axes}d") for kind in PER_DIMENSION for axes in (1, 2, 3)),
    nn.AlphaDropout, nn.Dropout, nn.FeatureAlphaDropout, nn.Identity, nn.ReLU, nn.Unflatten, nn.Upsample,
)  # fmt: skip
# drivers: links whose neuron is to come
NO_LAYER = Link("", problem="no layer precedes it", is_open=True)
UNKNOWN_ORDER = Link(
    "",
    problem="the model's own code calls it, in an order that only a run shows: pass `example=`",
    is_open=True,
)


def chain_links(model: nn.Module) -> list[Link]:
    """The links of each `nn.Sequential` in a model, and of layers inside neurons."""
    modules = dict(model.named_modules(remove_duplicate=False))
    links: list[Link] = []
    for chain, driver in _chains(model, ""):
        for path, module in chain:
            if is_neuron(module):
                links += _neuron_links(path, module, driver)
                driver = NO_LAYER
            else:
                driver = _after(driver, path, modules)
    return _of_reused_neurons(links, modules)


def keeps_channels(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a norm or a delay behind a layer has an entry for each of the layer's channels."""
    try:
        return has_bias_per_feature(module, connect(layer))
    except HomeostasisError:  # the cell raises it again, with more detail
        return True


def _neuron_links(path: str, neuron: nn.Module, driver: Link) -> list[Link]:
    norms = [join(path, name) for name, module in neuron.named_modules() if isinstance(module, NORMS)]
    outer = replace(driver, neuron=path) if not norms else Link(path, problem=norm_inside(norms))
    readout = out_of_reach(neuron)
    return [replace(link, readout=readout) for link in inner_links(path, neuron, [outer])]


def _of_reused_neurons(links: list[Link], modules: dict[str, nn.Module]) -> list[Link]:
    """Gives the links of one neuron object one path, and says that it is used in several places."""
    places: dict[nn.Module, list[str]] = {}
    for path in dict.fromkeys(link.neuron for link in links):
        places.setdefault(modules[path], []).append(path)
    result = []
    for link in links:
        paths = places[modules[link.neuron]]
        if len(paths) > 1:
            reuse = f"one neuron object is used in several places: {quoted(paths)}"
            link = replace(link, neuron=paths[0], reuse=reuse)
        result.append(link)
    return result


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
        place = join(path, name)
        if isinstance(compiled := getattr(child, "_orig_mod", None), nn.Module):
            place, child = join(place, "_orig_mod"), compiled
        if _is_plain_sequential(child):
            yield from _flattened(child, place)
        else:
            yield place, child


def _after(driver: Link, path: str, modules: Mapping[str, nn.Module]) -> Link:
    """The driver behind one more module, which is no neuron."""
    module = modules[path]
    is_kept = driver.layer is not None and keeps_channels(module, modules[driver.layer])
    if is_delay(module):
        return replace(driver, delay=path)
    if isinstance(module, NORMS) and (is_kept or not is_layer(module)):
        return replace(driver, norm=path)
    if is_layer(module):
        return Link("", path)
    keeps_batch = isinstance(module, nn.Flatten) and module.start_dim == 1
    if keeps_batch or isinstance(module, KEEP_CHANNELS):
        return driver
    return Link("", problem=f"{describe(path, module)} precedes it and may mix channels", is_open=True)


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
