"""The method `calibrate`, which every rule has."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn

from ..cells import Unit, require_ready, select
from ..distributed import Processes
from ..errors import ArgumentError, require
from .changing import Ledger
from .choosing import populations_of
from .presenting import Presentation, Run, batches_of, runner
from .progress import progressing
from .report import CalibrationReport
from .reporting import report_of
from .settling import AUTO, Scale, Settling

__all__ = ["Calibrating"]


class Calibrating(ABC):
    """Base of what brings its cells to their targets before training."""

    relative: ClassVar[bool]

    @property
    @abstractmethod
    def units(self) -> Mapping[str, Unit]:
        """The registered units by name."""

    @abstractmethod
    def pause(self) -> AbstractContextManager[None]:
        """Observes nothing inside the ``with`` block."""

    @abstractmethod
    def clear(self) -> None:
        """Forgets the rate estimates and what waits in the slots."""

    @abstractmethod
    def _all_processes(self) -> Processes:
        """Returns the processes that train the model; finds a wrapper that has not run yet, too."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def calibrate(
        self,
        inputs: Any,
        *,
        num_steps: int | None = None,
        run: Run | None = None,
        scale: Scale = AUTO,
        gradients: bool = False,
        progress: bool = True,
    ) -> CalibrationReport:
        """Brings every cell to its target before training, without plasticity and without gradients.

        One forward records what reaches a neuron. The neuron alone, run on the recording, is asked by
        bisection for the shift of its input at which it fires at its target; the shift goes into the
        regulated parameter. So it goes from layer to layer, in the order in which the model calls
        its neurons: two forwards more than there are layers. What acts back on earlier layers is
        shifted together, round after round. Recordings are kept for one layer at a time.

        Use some hundreds of samples as they come in training: with ten, up to half of the neurons
        are silent on the next ten. Parameters change in place; all else is left as it was, with
        membranes reset, and with estimates and slots cleared. After an error, parameters are as before.

        Several processes that train one model calibrate it together: each brings inputs of its own,
        equally many batches, if only empty ones, and what comes out is what one process makes of all
        of them. Norms in training mode see the batch of their process, as in training. What fails in
        one process is raised in all.

        The largest thing in memory is a recording: the inputs of one neuron in all samples, 4 · T · B · N
        bytes in float32, twice as much for weights; where later layers act back on earlier ones, it is
        those of every neuron. A batch is never split, since only the model knows along which dimension
        its samples lie, and norms may need them together; with a loader, whose batches are smaller, the
        model itself needs less.

        Args:
            inputs: a batch for the model, a tuple of its arguments, a dict of them by name, or a
                loader of batches, of which some are taken until there are 512 samples, counted over
                all processes. Of the lists and tuples of a loader the first item counts, as labels
                follow.
            num_steps: calls of the model on each batch, for a model that takes one time step; None
                for a model that runs a whole sequence in one call.
            run: runs one batch, as ``inputs`` gives it, as one sequence; in place of ``num_steps``.
            scale: what happens to weights. ``"auto"`` mends those that cannot work: it subtracts the
                mean of each row where these means drown the rest, and scales a layer whose free
                membranes differ between samples by less than 0.1 or more than 3 thresholds. A
                number brings all but the last layer to that. None leaves weights alone.
            gradients: set the slope of each surrogate that has one, so that gradients reach the
                first layer. Neurons keep their family of surrogates. With ``scale=1.0`` nets of
                twelve layers learn, which rates alone do not bring about.
            progress: show a bar, where tqdm is installed; the first process shows it.

        Raises:
            ArgumentError: for an argument that cannot work, a cell without a target, or none at all,
                or parameters that `fully_shard` has spread.
            NonFiniteError: if NaN or infinity reaches a neuron.
            ProcessMismatchError: if processes that train one model differ in their cells, arguments,
                or numbers of batches.

        >>> import snntorch as snn, torch
        >>> from snn_homeostasis import LinearHomeostasis
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
        >>> homeostasis = LinearHomeostasis(0.01, target=0.1, param="bias").attach(net)
        >>> report = homeostasis.calibrate(torch.rand(200, 4), num_steps=25, progress=False)
        >>> report.forwards, round(report["1"].after, 3)
        (3, 0.1)
        """
        start, ledger, processes = time.perf_counter(), Ledger(), self._all_processes()
        call = f"calibrate(num_steps={num_steps}, scale={scale!r}, gradients={gradients})"
        with self.pause(), ledger.undone_on_error(), processes.together(call, self.units.values()):
            units = select(self.units, None)
            _require_scale(scale)
            _require_targets(units)
            _require_whole(units)
            require_ready(units)
            model = _only_model(units)
            present = Presentation(_modules_of(model, units), runner(model, num_steps, run))
            populations = populations_of(units, processes, relative=self.relative)
            settling = Settling(populations, present, processes, ledger, scale=scale, gradients=gradients)
            device = units[0].slot.reference.tensor.device
            with progressing(len(populations), progress and processes.rank == 0) as advance:
                settling.run(batches_of(inputs, run is not None, device), advance)
            present.reset()
            report = report_of(settling, time.perf_counter() - start)
        self.clear()
        return report


def _only_model(units: Iterable[Unit]) -> nn.Module | None:
    """Returns the model that all units were found in; None if there are several, or none is known."""
    places = [unit.cell.places for unit in units]
    models = {None if each is None else each.model for each in places}
    return next(iter(models)) if len(models) == 1 else None


def _modules_of(model: nn.Module | None, units: Iterable[Unit]) -> Iterator[nn.Module]:
    """Yields all modules that may have a state."""
    if model is not None:
        yield model
    for unit in units:
        modules = (unit.connection.layer, unit.connection.norm, unit.hook.module)
        yield from (module for module in modules if module is not None)


def _require_scale(scale: object) -> None:
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool) and scale > 0
    remedy = "A number is how far free membranes differ between samples, in thresholds, for example 1.0."
    require(scale in (None, AUTO) or is_number, "scale", "be 'auto', None or a number > 0", scale, remedy)


def _require_targets(units: Iterable[Unit]) -> None:
    for unit in units:
        if unit.state.target is None:
            unit.target_for(torch.zeros(()), None)  # raises


def _require_whole(units: Iterable[Unit]) -> None:
    if any(unit.slot.sharded for unit in units):
        raise ArgumentError(
            "`calibrate` should be called while each process has whole parameters. Found pieces of them, "
            "as `fully_shard` makes. Before `fully_shard`, attach with `process_group=torch.distributed."
            "group.WORLD`, calibrate and `remove()`; attach again after it."
        )
