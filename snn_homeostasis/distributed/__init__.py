"""Several processes that train one model: who they are, and what they sum."""

from .groups import AUTO, Group, ProcessGroups
from .processes import Processes

__all__ = ["AUTO", "Group", "ProcessGroups", "Processes"]
