"""The miniatures' autoencoders: ordinary AutoencoderKLs whose encoder is *solved*, not trained.

The encoder is a whitened PCA of 4x4 patches (16 or more of 48 components), so it keeps the fine, low-contrast textures
that tell materials apart, which an autoencoder trained for minutes would blur away. It is written exactly into
AutoencoderKL's convolutions:

- two strided 3x3 convolutions of which a 2x2 window is used make the 4x4 patch, the second applies the PCA;
- every residual block is the identity (its last convolution is zero);
- the final GroupNorm divides by a constant, since constant channels of +-K dominate each group's variance;
- the final SiLU is linear on pairs: silu(u) - silu(-u) = u.

The decoder cannot be solved the same way (nearest-neighbour upsampling has no memory of where a pixel was), so it is
trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PATCH = 4
_K = 300.0


class Code(NamedTuple):
    """A linear code of 4x4 patches: ``basis`` (channels, 48) and ``offset`` (channels,); mean 0, variance 1 each."""

    basis: Tensor
    offset: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, channels, H / 4, W / 4)."""
        patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH)
        z = self.basis @ patches + self.offset[:, None]
        return z.unflatten(-1, (images.shape[-2] // PATCH, images.shape[-1] // PATCH))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, channels, h, w) -> the images (B, 3, 4h, 4w) that have them, of least norm."""
        return undo(latents - self.offset[:, None, None], self.basis, PATCH)


def undo(z: Tensor, basis: Tensor, side: int) -> Tensor:
    """The pictures of least norm whose patches, ``side`` wide, ``basis`` makes ``z`` (B, c, h, w) of."""
    size = (z.shape[-2] * side, z.shape[-1] * side)
    return torch.nn.functional.fold(torch.linalg.pinv(basis) @ z.flatten(2), size, side, stride=side)


def build(channels: int = 16, *, scale: float = 1.0, shift: float | None = None) -> AutoencoderKL:
    """An untrained f4 AutoencoderKL (0.4 M parameters at 16 channels); ``scale``, ``shift`` as in its configuration."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(channels, 2 * channels, 4 * channels),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=channels // 2,
        sample_size=64,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def patch_pca(images: Tensor, channels: int = 16) -> tuple[Code, float]:
    """The whitened PCA of the 4x4 patches of images (N, 3, H, W) in [-1, 1], and the share of variance it keeps.

    The code of a patch p (48,), in order (channel, row, column), is ``basis @ p + offset``.
    """
    patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    values, vectors = values.flip(0), vectors.flip(1)
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # a sign that does not depend on the solver
    basis = (vectors[:, :channels] / values[:channels].sqrt()).T
    return Code(basis, -(basis @ mean)), float(values[:channels].sum() / values.sum())


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, code: Code) -> None:
    """Write a code into the encoder of `vae`, so that (mode - shift) * scale is the code."""
    channels = vae.config.latent_channels
    basis = code.basis / vae.config.scaling_factor
    offset = code.offset / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    enc = vae.encoder
    for parameter in enc.parameters():
        parameter.zero_()
    enc.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    first, second = enc.down_blocks[0].downsamplers[0].conv, enc.down_blocks[1].downsamplers[0].conv
    for c in range(3):
        for y in range(2):
            for x in range(2):
                first.weight[c * 4 + y * 2 + x, c, y, x] = 1
    enc.down_blocks[1].resnets[0].conv_shortcut.weight[:12, :12, 0, 0] = torch.eye(12)
    patch = basis.reshape(channels, 3, PATCH, PATCH)
    for c in range(3):
        for y in range(PATCH):
            for x in range(PATCH):
                second.weight[:channels, c * 4 + (y % 2) * 2 + x % 2, y // 2, x // 2] = patch[:, c, y, x]
    second.bias[:channels] = offset
    # groups of 8 channels: u, -u, v, -v, K, -K, K, -K
    spread = enc.down_blocks[2].resnets[0].conv_shortcut
    positive = torch.tensor([8 * (j // 2) + 2 * (j % 2) for j in range(channels)])
    for j, p in enumerate(positive.tolist()):
        spread.weight[p, j], spread.weight[p + 1, j] = 1, -1
    for group in range(channels // 2):
        spread.bias[8 * group + 4 : 8 * group + 8] = torch.tensor([_K, -_K, _K, -_K])
    enc.conv_norm_out.weight.fill_(_K / 2**0.5)
    for j, p in enumerate(positive.tolist()):
        enc.conv_out.weight[j, p, 1, 1], enc.conv_out.weight[j, p + 1, 1, 1] = 1, -1
    enc.conv_out.bias[channels:] = -10  # log-variance: the posterior is its mode
