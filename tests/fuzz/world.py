"""One random case: a homeostasis, its shadow in plain loops, and events that happen to both."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from oracle import as_array
from torch import Tensor

from fuzz import settings
from fuzz.shadows import EPS, Shadow, changed, shadows_of
from fuzz.subjects import Subject, subject
from snn_homeostasis import ArgumentError, Cell, LinearHomeostasis, NoSpikesError


class MismatchError(AssertionError):
    """The package and the plain loops differ."""


class World:
    """A homeostasis over one or two layers, and the shadow of each of its cells."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.draw = draw = Random(seed)
        self.subjects = [subject(draw) for _ in range(draw.choice([1, 1, 2]))]
        self.shadows: dict[str, Shadow] = {}
        self.log: list[str] = []
        self.batch, self.is_paused = draw.randint(1, 4), False
        self.one_cell = draw.random() < 0.5  # for all parameters of a layer and a neuron
        for place, each in enumerate(self.subjects):
            for module in each.neurons:
                module.register_forward_hook(self._recorder(each))
            for shadow in shadows_of(draw, each):
                self.shadows[f"{place}.{shadow.kind}.{shadow.number}"] = shadow
        self.homeostasis = self._registered()

    def _registered(self) -> LinearHomeostasis:
        """A new homeostasis with the settings of the shadows."""
        homeostasis = LinearHomeostasis(1.0)
        cells: dict[Any, Cell] = {}
        for name, shadow in self.shadows.items():
            cell = Cell(shadow.subject.layer, shadow.module, shadow.subject.norm, sign=shadow.sign)
            cell = cells.setdefault(shadow.module if self.one_cell else name, cell)
            homeostasis.register_cell(name, cell, **shadow.overrides)
        return homeostasis

    def _recorder(self, each: Subject) -> Callable[..., None]:
        """A plain hook that shows its spikes to the shadows of a neuron, which a copy may have taken over."""

        def record(module: Any, args: Any, output: Any) -> None:
            if self.is_paused or not (module.training and self.homeostasis.training):
                return
            frames = each.spikes(output).double().cpu().numpy()
            observed = [shadow.estimate for shadow in self.shadows.values() if shadow.module is module]
            for frame in frames if frames.size else ():
                for estimate in observed:
                    estimate.observe(frame)

        return record

    # ---- what is compared

    def play(self, events: int) -> None:
        """Lets events happen, and compares everything after each of them.

        Raises:
            MismatchError: if the package differs from the plain loops.
        """
        for event in [World.run, *self.draw.choices(EVENTS, WEIGHTS, k=events)]:
            parameters = self._parameters()
            before = [each.detach().clone() for each in parameters]
            self.old = {id(each): as_array(each) for each in parameters}
            self.expected: dict[int, tuple[np.ndarray, float]] = {}
            event(self)
            for each, old in zip(parameters, before, strict=True):
                if id(each) in self.expected:
                    require_close(each, *self.expected[id(each)], "a parameter")
                else:
                    require(torch.equal(each, old), "a parameter changed that should not have")
            for name, shadow in self.shadows.items():
                self._compare(name, shadow)

    def _compare(self, name: str, shadow: Shadow) -> None:
        unit = self.homeostasis.units[name]
        require(unit.rate.steps == shadow.estimate.steps, "the number of steps")
        require(unit.slot.pending == (shadow.pos is not None), "whether something waits")
        if shadow.pos is not None:
            for part, wanted in ((unit.slot.pos, shadow.pos), (unit.slot.neg, shadow.neg)):
                require_close(part.expand(shadow.parameter.shape), wanted, shadow.slack, "a part")
        if shadow.estimate.steps:
            require_close(unit.rate.rate, shadow.estimate.rate, shadow.rounding, "a rate")
        if all(each.estimate.steps for each in self.shadows.values()):
            mean = shadow.estimate.rate.mean(0)
            require_close(self.homeostasis.rates()[name], mean, shadow.rounding + 4 * EPS, "`rates()`")

    def _parameters(self) -> list[Tensor]:
        parameters = (each for one in self.subjects for module in one.modules for each in module.parameters())
        return list(dict.fromkeys(parameters))

    def _is_active(self, shadow: Shadow) -> bool:
        return self.homeostasis.training and shadow.module.training

    # ---- events

    def run(self) -> None:
        """Some calls of each model, in a batch that may have changed."""
        if self.draw.random() < 0.4:
            self.batch = self.draw.randint(1, 4)
        for each in self.subjects:
            self._run(each, self.batch, self.draw.randint(1, 3))
        self.log.append(f"run {self.batch}")

    def run_one(self) -> None:
        """The batches of the cells differ."""
        self._run(self.draw.choice(self.subjects), self.draw.randint(1, 4), 1)
        self.log.append("run one")

    def run_on_nothing(self) -> None:
        for each in self.subjects:
            if each.takes_none:
                self._run(each, 0, 1)
        self.log.append("run 0")

    def _run(self, each: Subject, batch: int, calls: int) -> None:
        each.reset()
        with torch.no_grad():
            for _ in range(calls):
                each.call(batch, self.draw.randint(1, 4))

    def step(self) -> None:
        if self._add("step", self.homeostasis.step):
            self._apply()

    def forward(self) -> None:
        self._add("forward", self.homeostasis)

    def update(self) -> None:
        self.log.append("update")
        self.homeostasis.update()
        self._apply()

    def _add(self, what: str, call: Callable[..., None]) -> bool:
        """Applies the rule on both sides; returns False where it has to raise."""
        target, names = self._arguments()
        with_target = (
            "" if target is None else " to a number" if isinstance(target, float) else " to a tensor"
        )
        self.log.append(f"{what} {names or 'all'}{with_target}")
        taken = [shadow for name in names or self.shadows if self._is_active(shadow := self.shadows[name])]
        if not all(shadow.estimate.steps for shadow in taken):
            require_raises(NoSpikesError, lambda: call(target, names))
            return False
        call(target, names)
        for shadow in taken:
            shadow.add(target)
        return True

    def _arguments(self) -> tuple[float | Tensor | None, list[str] | None]:
        """The target of a call, and the cells that it takes."""
        kind = self.draw.choice(["own", "own", "some", "number", "tensor"])
        names = list(self.shadows)
        if kind == "tensor":
            name = self.draw.choice(names)
            shadow = self.shadows[name]
            batch = len(shadow.estimate.frames[0]) if shadow.estimate.steps else None
            return settings.target(self.draw, shadow.subject.shape, batch), [name]
        target = self.draw.choice([0.2, 0.5]) if kind == "number" else None
        return target, self.draw.sample(names, self.draw.randint(1, len(names))) if kind == "some" else None

    def _apply(self) -> None:
        """Each parameter moves once, by all that waits for it in active cells."""
        waiting: dict[int, list[Shadow]] = {}
        for shadow in self.shadows.values():
            if shadow.pos is not None and self._is_active(shadow):
                waiting.setdefault(id(shadow.parameter), []).append(shadow)
        for key, shadows in waiting.items():
            self.expected[key] = changed(shadows, self.old[key])
            for shadow in shadows:
                shadow.empty()

    def clear(self) -> None:
        self.log.append("clear")
        self.homeostasis.clear()
        for shadow in self.shadows.values():
            shadow.forget()

    def retune(self) -> None:
        name, shadow = self.draw.choice(list(self.shadows.items()))
        setting = shadow.retune(self.draw)
        value = shadow.reduction.real if setting == "batch_reduction" else getattr(shadow, setting)
        setattr(self.homeostasis.units[name].state, setting, value)
        self.log.append(f"{setting} of {name}")

    def wrong_target(self) -> None:
        """A target that does not broadcast is refused, and nothing changes."""
        name, shadow = self.draw.choice(list(self.shadows.items()))
        if not shadow.estimate.steps or not self._is_active(shadow):
            return
        shape = shadow.estimate.frames[0].shape
        target = settings.rates(
            *self.draw.choice([(shape[0] + 1, *shape[1:]), (1, 1, *shape), (shape[-1] + 1,)])
        )
        self.log.append(f"wrong target for {name}")
        require_raises(ArgumentError, lambda: self.homeostasis.step(target, [name]))

    def pause(self) -> None:
        self.log.append("pause:")
        with self.homeostasis.pause():
            self.is_paused = True
            self._some()
            self.is_paused = False

    def freeze(self) -> None:
        """The model, a part of it, or the homeostasis is in eval mode for a while."""
        frozen = self.draw.choice(
            [[self.homeostasis], *([each] for one in self.subjects for each in one.modules)]
        )
        if self.draw.random() < 0.3:
            frozen = [module for one in self.subjects for module in one.modules]
        self.log.append(f"eval of {', '.join(type(each).__name__ for each in frozen)}:")
        for each in frozen:
            each.eval()
        self._some()
        for each in frozen:
            each.train()
        self.log.append("train")

    def _some(self) -> None:
        """What happens inside a block: at most one change of parameters, which `play` compares."""
        for event in self.draw.choices([World.run, World.run_one, World.forward, World.retune], k=2):
            event(self)
        self.draw.choice([World.step, World.update, World.run])(self)

    def save_and_load(self) -> None:
        """The state goes through a file into this homeostasis later, or into a new one."""
        self.log.append("save")
        file, kept = self._saved(), {name: each.saved() for name, each in self.shadows.items()}
        is_new = self.draw.random() < 0.5
        for event in (self.draw.choice([World.run, World.forward]), World.retune):
            event(self)
        if is_new:
            self.homeostasis.remove()
            self.homeostasis = self._registered()
        self.log.append("load into a new one" if is_new else "load")
        self.homeostasis.load_state_dict(file)
        for name, shadow in self.shadows.items():
            shadow.load(kept[name])

    def _saved(self) -> dict[str, Tensor]:
        file = io.BytesIO()
        torch.save(self.homeostasis.state_dict(), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def remove(self) -> None:
        """One cell, or all, leave; they start anew."""
        names = self.draw.choice([list(self.shadows), [self.draw.choice(list(self.shadows))]])
        self.log.append(f"remove {names}")
        if len(names) == len(self.shadows):
            self.homeostasis.remove()
            self.homeostasis = self._registered()
        else:
            each, cell = self.shadows[names[0]], self.homeostasis.cells[names[0]]
            self.homeostasis.remove_cell(names[0])
            self.homeostasis.register_cell(names[0], cell, **each.overrides)
        for name in names:
            self.shadows[name].forget()

    def copy(self) -> None:
        """The models are copied along with their homeostasis; the case goes on with one of the two."""
        subjects, homeostasis = copy.deepcopy([self.subjects, self.homeostasis])
        pairs = list(zip(self.subjects, subjects, strict=True))
        is_kept = self.draw.random() < 0.5
        self.log.append("copy" if is_kept else "go on with a copy")
        if not is_kept:
            self.subjects, self.homeostasis, homeostasis = subjects, homeostasis, self.homeostasis
            for shadow in self.shadows.values():
                shadow.subject = next(new for old, new in pairs if old is shadow.subject)
        for old, new in pairs:
            for each, other in zip(old.modules, new.modules, strict=True):
                require(all(map(torch.equal, each.parameters(), other.parameters())), "a copied parameter")
            self._run(new if is_kept else old, self.batch, 1)  # the other one must not notice
        homeostasis()
        homeostasis.clear()

    def __str__(self) -> str:
        cells = "\n  ".join(f"{name}: {shadow}" for name, shadow in self.shadows.items())
        return f"  {cells}\n  events: {'; '.join(self.log)}"


EVENTS, WEIGHTS = zip(
    (World.run, 8),
    (World.run_one, 2),
    (World.run_on_nothing, 1),
    (World.step, 8),
    (World.forward, 3),
    (World.update, 3),
    (World.clear, 1),
    (World.retune, 1),
    (World.wrong_target, 1),
    (World.pause, 1),
    (World.freeze, 2),
    (World.save_and_load, 2),
    (World.remove, 1),
    (World.copy, 1),
    strict=True,
)


def require(is_true: bool, what: str) -> None:
    if not is_true:
        raise MismatchError(what)


def require_close(found: Tensor, wanted: np.ndarray, slack: float, what: str) -> None:
    found = as_array(found)
    require(found.shape == np.shape(wanted), f"{what} has shape {found.shape}, not {np.shape(wanted)}")
    off = np.abs(found - wanted).max(initial=0.0)
    require(off <= slack, f"{what} is off by {off:.2g}, where {slack:.2g} is rounding")


def require_raises(error: type[Exception], call: Callable[[], None]) -> None:
    try:
        call()
    except error:
        return
    raise MismatchError(f"no {error.__name__}")
