"""The Inception v3 that defines FID; it reads the weights file that the FID libraries share.

It is not torchvision's: the network of 2015-12-05 ignores padding in its average pools, takes a maximum in its last
block, and was never trained by PyTorch. The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, which
torch-fidelity and torchmetrics download as `weights-inception-2015-12-05-6726825d.pth`. Here it is read as tensors
only. The libraries themselves would bring torchvision, whose binaries must match those of torch.

Architecture: Szegedy et al. 2015 (arXiv 1512.00567). Parameter names are those of the file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kosmosg.checkpoint.state_dict import open_weights
from kosmosg.errors import CheckpointError
from kosmosg.eval.features.base import Features, as_features, device
from kosmosg.eval.features.preprocessing import INCEPTION_SIZE, Framing

FILE = "pt_inception-2015-12-05-6726825d.pth"


class InceptionImages:
    """Pooled features of FID's Inception, (N, 2048); a framing that is not given is that of clean-fid."""

    def __init__(self, source: str, framing: Framing | None = None) -> None:
        self.framing = framing or Framing("clean")
        self.model = Inception.load(source).to(device())

    @staticmethod
    def find(source: str) -> str:
        """The path of the weights file. Raises CheckpointError where there is none."""
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(
                f"evaluate.weights.inception: there is no file {source}; give the path of {FILE} (of pytorch-fid)"
            )
        return str(path.absolute())

    def images(self, images: Sequence[Image.Image]) -> Features:
        """(N, 2048), one row an RGB image of any size."""
        pixels = torch.stack([self.framing(image) for image in images])
        return as_features(self.model(pixels.to(device())))


class Inception(nn.Module):
    """Images to pooled features, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3))
        blocks = {
            "Mixed_5b": Mixed(192, _fine(32)),
            "Mixed_5c": Mixed(256, _fine(64)),
            "Mixed_5d": Mixed(288, _fine(64)),
            "Mixed_6a": Mixed(288, _HALVE_TO_17),
            "Mixed_6b": Mixed(768, _factored(128)),
            "Mixed_6c": Mixed(768, _factored(160)),
            "Mixed_6d": Mixed(768, _factored(160)),
            "Mixed_6e": Mixed(768, _factored(192)),
            "Mixed_7a": Mixed(768, _HALVE_TO_8),
            "Mixed_7b": Mixed(1280, _coarse("mean")),
            "Mixed_7c": Mixed(2048, _coarse("max")),  # a maximum where the paper and the other blocks average
        }
        for name, block in blocks.items():
            self.add_module(name, block)
        self._blocks = list(blocks)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From the weights file. Raises CheckpointError for any other file."""
        weights = open_weights(path)
        network = cls()
        wanted = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
        for name, value in wanted.items():
            if name not in weights or weights[name].shape != value.shape:
                found = tuple(weights[name].shape) if name in weights else "absent"
                raise CheckpointError(
                    f"{path} is not the Inception of FID: {name} should be {tuple(value.shape)}, it is {found}; "
                    f"give {FILE} (pytorch-fid, torch-fidelity)"
                )
        network.load_state_dict({name: weights[name].float() for name in wanted}, strict=False)
        return network

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels (B, 3, 299, 299)` with values in 0..255 to features (B, 2048)."""
        if pixels.shape[1:] != (3, INCEPTION_SIZE, INCEPTION_SIZE):
            raise ValueError(
                f"pixels are {tuple(pixels.shape)}, needed is (B, 3, 299, 299); see kosmosg.eval.features.preprocessing"
            )
        x = (pixels - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name in self._blocks:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


@dataclass(frozen=True)
class Step:
    """One convolution of a branch. At stride 1 it keeps the size of the map, at stride 2 it has no padding."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


@dataclass(frozen=True)
class Branch:
    """Convolutions one after the other, behind a pool (`mean` or `max` keep the size, `halve` is a maximum of stride 2)
    if there is one; `fork` are two last ones side by side."""

    steps: tuple[Step, ...] = ()
    pool: str = ""
    fork: tuple[Step, ...] = ()


class Mixed(nn.Module):
    """Branches side by side, their channels joined in order."""

    def __init__(self, inputs: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = inputs
            for step in branch.steps:
                self.add_module(step.name, _convolution(width, step))
                width = step.outputs
            for step in branch.fork:
                self.add_module(step.name, _convolution(width, step))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part for branch in self.branches for part in self._walk(branch, x)], dim=1)

    def _walk(self, branch: Branch, x: Tensor) -> list[Tensor]:
        if branch.pool:
            x = _POOLS[branch.pool](x)
        for step in branch.steps:
            x = self.get_submodule(step.name)(x)
        return [self.get_submodule(step.name)(x) for step in branch.fork] or [x]


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)  # TensorFlow leaves padding out of a mean


def _max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


_POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "max": _max, "halve": _halve}


def _convolution(inputs: int, step: Step) -> Convolution:
    padding = (step.kernel[0] // 2, step.kernel[1] // 2) if step.stride == 1 else (0, 0)
    return Convolution(inputs, step.outputs, step.kernel, step.stride, padding)


def _fine(pooled: int) -> list[Branch]:
    """A block on 35 x 35."""
    return [
        Branch((Step("branch1x1", 64),)),
        Branch((Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))),
        Branch(
            (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3))),
        ),
        Branch((Step("branch_pool", pooled),), pool="mean"),
    ]


_HALVE_TO_17 = [
    Branch((Step("branch3x3", 384, (3, 3), stride=2),)),
    Branch(
        (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), stride=2))
    ),
    Branch(pool="halve"),
]


def _factored(inner: int) -> list[Branch]:
    """A block on 17 x 17: 7 x 7 as 1 x 7 and 7 x 1."""
    across, down = (1, 7), (7, 1)
    return [
        Branch((Step("branch1x1", 192),)),
        Branch((Step("branch7x7_1", inner), Step("branch7x7_2", inner, across), Step("branch7x7_3", 192, down))),
        Branch(
            (
                Step("branch7x7dbl_1", inner),
                Step("branch7x7dbl_2", inner, down),
                Step("branch7x7dbl_3", inner, across),
                Step("branch7x7dbl_4", inner, down),
                Step("branch7x7dbl_5", 192, across),
            )
        ),
        Branch((Step("branch_pool", 192),), pool="mean"),
    ]


_HALVE_TO_8 = [
    Branch((Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), stride=2))),
    Branch(
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)),
            Step("branch7x7x3_4", 192, (3, 3), stride=2),
        )
    ),
    Branch(pool="halve"),
]


def _coarse(pool: str) -> list[Branch]:
    """A block on 8 x 8."""
    across, down = (1, 3), (3, 1)
    return [
        Branch((Step("branch1x1", 320),)),
        Branch(
            (Step("branch3x3_1", 384),),
            fork=(Step("branch3x3_2a", 384, across), Step("branch3x3_2b", 384, down)),
        ),
        Branch(
            (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3))),
            fork=(Step("branch3x3dbl_3a", 384, across), Step("branch3x3dbl_3b", 384, down)),
        ),
        Branch((Step("branch_pool", 192),), pool=pool),
    ]
