"""A callback for Lightning; needs the extra ``lightning``. Nothing else imports this wing."""

from .callback import HomeostasisCallback

__all__ = ["HomeostasisCallback"]
