"""Norms as layers: only their bias, since a larger scale need not raise a rate."""

from functools import cached_property
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .connections import ChannelConnection, Connection, DenseConnection, connect

__all__ = ["has_bias_per_feature"]

LAZY_NORMS = (nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d)


class NormConnection(ChannelConnection):
    """A batch norm, with one bias for each channel."""

    names: ClassVar[dict[str, str]] = {"bias": "bias"}
    layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

    @cached_property
    def features(self) -> int:
        return self.layer.num_features


for _norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, *LAZY_NORMS):
    connect.register(_norm, NormConnection)


@connect.register(nn.LayerNorm)
class LayerNormConnection(Connection):
    """A layer norm, with one bias for each entry of its normalised shape, the last axes of its output."""

    names: ClassVar[dict[str, str]] = {"bias": "bias"}
    layer: nn.LayerNorm

    @cached_property
    def features(self) -> int:
        return prod(self.layer.normalized_shape)

    def positions(self, x: Tensor) -> Tensor:
        shape, axes = self.layer.normalized_shape, len(self.layer.normalized_shape)
        if x.ndim > axes and x.shape[-axes:] == torch.Size(shape):
            return x.reshape(len(x), -1, self.features).movedim(1, 2)
        return x.reshape(len(x), self.features, 1)  # flattened

    def like_bias(self, k: Tensor) -> Tensor:
        return k.reshape(self.layer.normalized_shape)


def has_bias_per_feature(norm: nn.Module, connection: Connection) -> bool:
    """Whether a norm behind a layer has a bias for each feature of the layer, and not for each position."""
    if not isinstance(norm, nn.LayerNorm):
        return True
    return isinstance(connection, DenseConnection) and norm.normalized_shape == (connection.features,)
