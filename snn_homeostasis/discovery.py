"""Which layer drives which neuron of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from .cells import Cell
from .connections import is_layer
from .errors import HomeostasisError, UnpairedNeuronError
from .inner import inner_layers
from .neurons import is_neuron

__all__ = ["FoundCell", "build_cells", "find_cells", "named_cells"]

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
UNKNOWN_ORDER = "its model calls it from code of its own"


@dataclass(frozen=True)
class FoundCell:
    """Module paths of a neuron and of a layer that drives it.

    Attributes:
        name: of the cell: the neuron's path, followed by the layer's if it has several.
        layer: path of the layer.
        neuron: path of the neuron.
        norm: path of the normalisation between the two, or None.
    """

    name: str
    layer: str
    neuron: str
    norm: str | None = None

    def build(self, model: nn.Module) -> Cell:
        """The cell of these modules."""
        norm = None if self.norm is None else model.get_submodule(self.norm)
        return Cell(model.get_submodule(self.layer), model.get_submodule(self.neuron), norm)


def find_cells(model: nn.Module) -> list[FoundCell]:
    """Finds the cells of a model whose order of calls is known: that of `nn.Sequential`.

    Between layer and neuron may stand norms, pooling, flatten, dropout and padding. Layers
    inside a neuron are found in any model.

    Args:
        model: `nn.Sequential`, nested or inside other modules.

    Raises:
        UnpairedNeuronError: naming every neuron whose layer cannot be known, and why.
    """
    found: list[FoundCell] = []
    problems: list[str] = []
    seen: set[int] = set()
    for path, neuron, driver in _neurons(model):
        if id(neuron) in seen:
            problems.append(f"{_title(path, neuron)}: one neuron object stands in two places")
        seen.add(id(neuron))
        inner = inner_layers(neuron)
        layers = [_join(path, name) for name, each in inner.items()]
        if all(each.recurrent for each in inner.values()):
            if driver.layer is None:
                problems.append(f"{_title(path, neuron)}: {driver.reason}")
                continue
            layers.insert(0, driver.layer)
        norms = {driver.layer: driver.norm}
        found += [
            FoundCell(_name(path, layer, len(layers)), layer, path, norms.get(layer)) for layer in layers
        ]
    if problems or not found:
        raise UnpairedNeuronError(_describe(model, problems))
    return found


def named_cells(model: nn.Module, pairs: Mapping[str, str | Sequence[str]]) -> list[FoundCell]:
    """The cells that a user names: neuron → layer or list of layers, by module path.

    Raises:
        UnpairedNeuronError: naming every path that is not a neuron or not a module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: list[FoundCell] = []
    problems: list[str] = []
    for neuron, names in pairs.items():
        layers = [names] if isinstance(names, str) else list(names)
        if neuron not in modules or not is_neuron(modules[neuron]):
            problems.append(f"`{neuron}`: no neuron of the model has this path")
        problems += [
            f"`{layer}`: no module of the model has this path" for layer in layers if layer not in modules
        ]
        found += [FoundCell(_name(neuron, layer, len(layers)), layer, neuron) for layer in layers]
    if problems or not found:
        raise UnpairedNeuronError(_describe(model, problems))
    return found


def build_cells(model: nn.Module, found: Sequence[FoundCell]) -> list[tuple[FoundCell, Cell]]:
    """Builds all cells, or raises for all that cannot be built at once."""
    cells: list[tuple[FoundCell, Cell]] = []
    errors: list[HomeostasisError] = []
    for each in found:
        try:
            cells.append((each, each.build(model)))
        except HomeostasisError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else HomeostasisError
        raise kind("\n".join(dict.fromkeys(map(str, errors))))
    return cells


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
            yield from _chains(child, _join(path, name))


def _flattened(sequential: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    # not named_children, which leaves out a module that stands in two places
    for name, child in sequential._modules.items():
        assert child is not None
        if _is_plain_sequential(child):
            yield from _flattened(child, _join(path, name))
        else:
            yield _join(path, name), child


def _after(driver: _Driver, path: str, module: nn.Module) -> _Driver:
    """The driver behind one more module that is no neuron."""
    if isinstance(module, NORMS):
        return _Driver(driver.layer, path, driver.reason)
    if is_layer(module):
        return _Driver(path)
    if isinstance(module, KEEP_CHANNELS) or _is_batch_flatten(module):
        return driver
    return _Driver(reason=f"{_title(path, module)} stands in front of it and may mix channels")


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _is_batch_flatten(module: nn.Module) -> bool:
    return isinstance(module, nn.Unflatten) or (isinstance(module, nn.Flatten) and module.start_dim == 1)


def _name(neuron: str, layer: str, number: int) -> str:
    name = neuron or "neuron"
    return name if number == 1 else f"{name}:{layer}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _title(path: str, module: nn.Module) -> str:
    return f"`{path or 'model'}` ({type(module).__name__})"


def _describe(model: nn.Module, problems: Sequence[str]) -> str:
    layers = [name for name, module in model.named_modules() if name and is_layer(module)]
    lines = "\n".join(f"  {problem}" for problem in problems) or "  the model has no spiking neuron"
    return (
        f"`model` should tell which layer drives each neuron. Found {type(model).__name__}, where this "
        f"cannot be known:\n{lines}\nName them by module path: attach(model, pairs={{'neuron': 'layer'}}). "
        f"The layers are {', '.join(f'`{name}`' for name in layers) or 'none'}."
    )
