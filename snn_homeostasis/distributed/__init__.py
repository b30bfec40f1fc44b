"""Several processes that train one model: who they are, and the one all-reduce of each update."""

from .groups import AUTO, Group, ProcessGroups
from .processes import Processes

__all__ = ["AUTO", "Group", "ProcessGroups", "Processes"]
