"""Scans to feature maps of five scales: a ResNet with bottlenecks, inflated to three dimensions (Carreira and Zisserman
2017, section 2.4; as in Merlin and Abn-BLIP)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import PositiveInt
from polymodal.errors import UserError
from polymodal.layers.projection_head import SyncBatchNorm3d

EXPANSION = 4  # output over inner width of a bottleneck
Maps = Float[Tensor, "batch _ _ _ _"]  # channels, depth, height, width


@dataclass(frozen=True)
class VolumeResNetConfig:
    """Configuration of the multi-scale encoder of volumes."""

    image_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (40, 48, 40)
    """Depth, height and width in voxels, to which scans are cropped and padded around their center."""
    width: PositiveInt = 16
    """Channels of the stem; those of the four groups of blocks are 4, 8, 16 and 32 times as many."""
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1, 1)
    """Bottlenecks of each group; 3, 8, 36 and 3 in ResNet-152."""
    stem_kernel: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 3, 3)
    """Kernel of the stem; 7, 7 and 3 across slices in the inflated ResNet."""
    stem_stride: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 2, 2)
    """Stride of the stem; 2, 2 and 1 across slices in the inflated ResNet."""

    def __post_init__(self) -> None:
        if any(kernel % 2 == 0 for kernel in self.stem_kernel):
            raise UserError(f"Kernels of the stem are odd numbers, not {self.stem_kernel}.")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the five feature maps."""
        return (self.width, *(EXPANSION * self.width * 2**group for group in range(4)))

    @property
    def last_size(self) -> tuple[int, ...]:
        """Depth, height and width of the last feature map: the stem, the pooling and three groups halve them."""
        sides = [-(-side // stride) for side, stride in zip(self.image_size, self.stem_stride, strict=True)]
        return tuple(-(-side // 16) for side in sides)


class Bottleneck3d(nn.Module):
    """1 x 1 x 1, 3 x 3 x 3 and 1 x 1 x 1 convolutions with a residual connection."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = EXPANSION * width
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = SyncBatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = SyncBatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False)
        self.bn3 = SyncBatchNorm3d(out)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), SyncBatchNorm3d(out))

    def forward(self, x: Maps) -> Maps:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class VolumeResNet(nn.Module):
    """ResNet of volumes; `forward` returns the feature maps of the stem and of the four groups of blocks."""

    def __init__(self, config: VolumeResNetConfig, num_contrasts: int):
        """num_contrasts: that a scan may have, such as the modalities of MRI; 1 for CT."""
        super().__init__()
        self.config = config
        deep, high, wide = (kernel // 2 for kernel in config.stem_kernel)
        self.conv1 = nn.Conv3d(
            num_contrasts, config.width, config.stem_kernel, config.stem_stride, (deep, high, wide), bias=False
        )
        self.bn1 = SyncBatchNorm3d(config.width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d(3, 2, padding=1)
        groups, channels = [], config.width
        for number, depth in enumerate(config.depths):
            width, blocks = config.width * 2**number, []
            for place in range(depth):
                blocks.append(Bottleneck3d(channels, width, 2 if place == 0 and number else 1))
                channels = EXPANSION * width
            groups.append(nn.Sequential(*blocks))
        self.layers = nn.ModuleList(groups)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, voxels: Float[Tensor, "batch contrasts deep high wide"]) -> list[Maps]:
        """voxels: standardized, 0 where a contrast is missing."""
        maps = [self.relu(self.bn1(self.conv1(voxels)))]
        x = self.maxpool(maps[0])
        for group in self.layers:
            x = group(x)
            maps.append(x)
        return maps
