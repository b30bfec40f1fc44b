"""What a copied or pickled model carries in place of a hook."""

from typing import Any

from torch.utils.hooks import RemovableHandle

__all__ = ["Unobserved"]


class Unobserved:
    """Stands where a hook was, and does nothing, until a copied cell takes it off by its handles."""

    handles: tuple[RemovableHandle, ...] = ()

    def __call__(self, *_: Any) -> None:
        pass

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return Unobserved, ()
