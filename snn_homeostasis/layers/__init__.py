"""Layers: the receptive view of each kind, and the parameters behind it."""

from .connection import Connection
from .connections import ChannelConnection, DenseConnection, OneToOneConnection, connect, is_layer
from .inner import connect_cell, inner_layers
from .limits import Limits
from .norms import has_bias_per_feature
from .parameters import ParameterReference, refer
from .presynaptic import InputView, input_view
from .sharded import full, is_distributed, is_sharded, local, mesh_group, replicate_as
from .thresholds import add_threshold
from .upstream import register

__all__ = [
    "ChannelConnection",
    "Connection",
    "DenseConnection",
    "InputView",
    "Limits",
    "OneToOneConnection",
    "ParameterReference",
    "add_threshold",
    "connect",
    "connect_cell",
    "full",
    "has_bias_per_feature",
    "inner_layers",
    "input_view",
    "is_distributed",
    "is_layer",
    "is_sharded",
    "local",
    "mesh_group",
    "refer",
    "register",
    "replicate_as",
]
