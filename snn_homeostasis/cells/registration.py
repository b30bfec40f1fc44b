"""The cells of a homeostasis: they come, they go, and they are copied along with their model."""

import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from ..errors import require
from ..following import Release, when_collected
from ..state import CopiedAlong
from .cell import Cell
from .habits import Habits
from .registry import count_layers, key_of, require_new, require_own_rate, select, set_bounds
from .settings import PARAMS, Settings
from .state import CHANGEABLE
from .targets import targets_of
from .unit import Unit

__all__ = ["Registration"]

ALIVE: "weakref.WeakSet[Registration]" = weakref.WeakSet()


class Registration(CopiedAlong):
    """The part of a homeostasis that holds its cells.

    Args:
        defaults: the settings of cells that do not override them.
    """

    params: ClassVar[tuple[str, ...]] = PARAMS  # the kinds of parameter that the rule can regulate
    ties: ClassVar[frozenset[str]] = frozenset({"_releases"})
    training: bool

    def __init__(self, defaults: Settings) -> None:
        super().__init__()
        self.defaults = defaults
        self.registered = nn.ModuleDict()  # what a checkpoint holds of the units
        self._units: dict[str, Unit] = {}
        self._habits = Habits()
        self._tie()

    @property
    def units(self) -> Mapping[str, Unit]:
        """The registered units by name, in order of registration."""
        return MappingProxyType(self._units)

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The registered cells by name, in order of registration."""
        return MappingProxyType({name: unit.cell for name, unit in self._units.items()})

    def register_cell(self, name: str, cell: Cell, **overrides: Any) -> Unit:
        """Adds one cell, and returns its unit: ``unit.cell``, ``unit.state``, ``unit.rate``.

        Args:
            name: identifies it in `rates`, `cells` and errors.
            cell: the cell.
            **overrides: any argument of the constructor, for this cell alone.

        Raises:
            ArgumentError: if the name, or the cell with this param, is registered already;
                if the layer lacks the param; or for a value that cannot work.
            UnsupportedLayerError: if the param cannot change in place.
        """
        settings = self._overridden(overrides)
        require_new(self._units, name, cell, settings.param)
        unit = Unit(name, cell, settings)
        require_own_rate(self._units.values(), unit)
        self._watch(unit)
        try:
            set_bounds(self._units.values(), unit, settings.bounds)
            self._admit(unit)
            unit.rate.train(self.training)
            self.registered[key_of(name)] = unit.saved()
            self._units[name] = unit
            unit.listen()
            count_layers(self._units.values())
        except BaseException:  # also an interruption: a cell is registered or it is not
            self._forget(unit)
            raise
        return unit

    def set(self, *, cells: Iterable[str] | None = None, **settings: Any) -> None:
        """Changes settings of cells, from their next step on; a checkpoint holds them.

        Args:
            cells: names of the cells; by default all, and those that are registered later.
            **settings: plasticity, target, param, batch_reduction, dt or population. A target may be a
                dict by name of a cell or type of its layer, which has to name each of the cells.

        Raises:
            ArgumentError: for a value that cannot work, or an unknown name. Nothing is changed then.

        >>> import snntorch as snn, torch
        >>> from snn_homeostasis import LinearHomeostasis
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
        >>> homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
        >>> homeostasis.set(plasticity=0.001, target=0.05)
        >>> homeostasis.units["1"].state.target
        0.05
        """
        units = select(self._units, cells)
        for name in settings:
            known, remedy = ", ".join(CHANGEABLE), "Bounds are set on a slot: `unit.slot.bounds = ...`."
            require(name in CHANGEABLE, "settings", f"be among {known}", name, remedy)
        targets = targets_of(settings, [(unit.name, unit.connection.layer) for unit in units])
        defaults = self._overridden(settings)
        for unit in units:
            unit.state.require_offered(defaults.param if "param" in settings else unit.state.param)
        for unit in units:
            for name in settings:
                setattr(unit.state, name, getattr(defaults, name))
            if targets:
                unit.state.target = targets[unit.name]
        if cells is None:
            self.defaults = defaults

    def remove_cell(self, name: str) -> None:
        """Takes the hook of one cell off and forgets the cell, and what its rule has left in the slots."""
        (unit,) = select(self._units, [name])
        self._forget(unit)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Observes nothing inside the ``with`` block; the hooks are off.

        For code that runs the model more often than once for each `step`, such as the closure of
        LBFGS. `step` still works inside, with what was observed before.
        """
        this = object()
        with ExitStack() as stack:
            for unit in self._units.values():
                stack.callback(unit.resume, this)  # first, because an interruption may come in between
                unit.pause(this)
            yield

    def _overridden(self, overrides: dict[str, Any]) -> Settings:
        settings, rule = self.defaults.override(overrides), type(self).__name__
        expected = f"be {' or '.join(map(repr, self.params))} for {rule}"
        require(settings.param in self.params, "param", expected, settings.param, "Leave it out.")
        return settings

    @abstractmethod
    def _admit(self, unit: Unit) -> None:
        """Prepares a new unit; raises ArgumentError for settings that cannot work here."""

    def _note_step(self, stepped: Sequence[Unit]) -> None:
        """Warns of habits that make a step do something else than it seems to."""
        self._habits.watch_observations(stepped, self._units)
        if self._habits.cells != len(self._units):
            others = [each for each in ALIVE if type(each) is type(self) and each is not self]
            self._habits.watch_others(self._units, (each.units for each in others if each._habits.cells))

    def _tie(self) -> None:
        ALIVE.add(self)
        self._releases: dict[str, Release] = {}
        for unit in self._units.values():
            self._watch(unit)
            unit.listen()

    def _watch(self, unit: Unit) -> None:
        """Lets a unit leave its cell when it is forgotten, or when this object is gone."""
        self._releases[unit.name] = when_collected(self, unit.leave)

    def _forget(self, unit: Unit) -> None:
        self._releases.pop(unit.name)()
        self._units.pop(unit.name, None)
        if key_of(unit.name) in self.registered:
            del self.registered[key_of(unit.name)]
        count_layers(self._units.values())
