"""A Lightning callback that attaches, steps, logs and resumes a homeostasis."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import require
from ..homeostasis import Homeostasis

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "lightning should be installed for this callback. Found none. Call "
        "`pip install 'snn-homeostasis[lightning]'`."
    ) from error

__all__ = ["HomeostasisCallback"]


class HomeostasisCallback(Callback):
    """Runs a homeostasis in a training by Lightning.

    It makes the homeostasis in `setup`, steps after each training batch in which the optimizer has
    stepped, logs its metrics, and goes on from a checkpoint. Validation and test change nothing.
    Under DDP pass ``DDPStrategy(broadcast_buffers=False)``: snntorch's membranes are buffers.

    Args:
        homeostasis: one that is attached already, or a function that makes one for the
            LightningModule.
        optimizer: the name of the optimizer to follow where a training has several, as
            `LearningRateMonitor` names them: the class, with ``-1`` for the second of its class. By
            default any of them.
        log: whether to log `Homeostasis.metrics`, as often as the trainer logs.

    Raises:
        ArgumentError: when the training starts, if no optimizer has the name.
        ModuleNotFoundError: at import, without Lightning.

    >>> from snn_homeostasis import LinearHomeostasis
    >>> callback = HomeostasisCallback(lambda module: LinearHomeostasis(0.01, 0.1, "bias").attach(module.net))
    """

    def __init__(
        self,
        homeostasis: Homeostasis | Callable[[LightningModule], Homeostasis],
        optimizer: str | None = None,
        log: bool = True,
    ) -> None:
        super().__init__()
        self.homeostasis = homeostasis if isinstance(homeostasis, Homeostasis) else None
        self.optimizer, self.log_metrics = optimizer, log
        self._make = homeostasis
        self._handles: list[RemovableHandle] = []
        self._has_stepped = False

    @property
    def state_key(self) -> str:
        """Tells the callbacks of several optimizers apart in a checkpoint."""
        key: str = self._generate_state_key(optimizer=self.optimizer)
        return key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the homeostasis, before a wrapper such as DDP is put around the module."""
        if self.homeostasis is None and stage == "fit":
            self.homeostasis = self._make(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follows the optimizer, which exists from now on."""
        named = dict(zip(_names(trainer.optimizers), trainer.optimizers, strict=True))
        is_there = self.optimizer is None or self.optimizer in named
        require(is_there, "optimizer", f"be one of {', '.join(named)}", self.optimizer, "Take one of these.")
        chosen = named.values() if self.optimizer is None else [named[self.optimizer]]
        self._handles = [each.register_step_post_hook(self._note_step) for each in chosen]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Steps if the optimizer has. No graph waits for its backward any more."""
        if not self._has_stepped or self.homeostasis is None:
            return  # gradients accumulate
        self._has_stepped = False
        self.homeostasis.step()
        if self.log_metrics and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self.homeostasis.metrics())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the homeostasis, for a checkpoint."""
        return {} if self.homeostasis is None else dict(self.homeostasis.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint. Lightning calls it after `setup`."""
        if self.homeostasis is not None:
            self.homeostasis.load_state_dict(state_dict)

    def _note_step(self, *_: Any) -> None:
        self._has_stepped = True


def _names(optimizers: Iterable[Optimizer]) -> list[str]:
    """Names optimizers by class, as `LearningRateMonitor` does: Adam, SGD, Adam-1."""
    seen: Counter[str] = Counter()
    names = []
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        names.append(f"{kind}-{seen[kind]}" if seen[kind] else kind)
        seen[kind] += 1
    return names
