"""What a copied or pickled model carries in place of a hook, and the hooks that it leaves behind."""

from typing import Any

from torch.utils.hooks import RemovableHandle

__all__ = ["LeftBehind", "Unobserved"]


class Unobserved:
    """Stands where a hook was, and does nothing, until a copied cell takes it off by its handles."""

    handles: tuple[RemovableHandle, ...] = ()

    def __call__(self, *_: Any) -> None:
        pass

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return Unobserved, ()


class LeftBehind:
    """A hook that stays with its model: a copy or a pickle of the model carries an `Unobserved`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Unobserved:
        return Unobserved()  # a copied model must not feed what observes the original

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return Unobserved, ()
