"""The miniature's autoencoder: an ordinary AutoencoderKL whose encoder is *solved*, not trained.

The encoder is a whitened PCA of 4x4 patches (16 of 48 components), so it keeps the fine, low-contrast textures that
tell materials apart, which an autoencoder trained for minutes would blur away. It is written exactly into
AutoencoderKL's convolutions:

- two strided 3x3 convolutions of which a 2x2 window is used make the 4x4 patch, the second applies the PCA;
- every residual block is the identity (its last convolution is zero);
- the final GroupNorm divides by a constant, since constant channels of +-K dominate each group's variance;
- the final SiLU is linear on pairs: silu(u) - silu(-u) = u.

The decoder cannot be solved the same way (nearest-neighbour upsampling has no memory of where a pixel was), so it is
trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CHANNELS = 16
PATCH = 4
_K = 300.0


def build() -> AutoencoderKL:
    """An untrained f4, 16-channel AutoencoderKL (0.4 M parameters)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def patch_pca(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened PCA of 4x4 patches: images (N, 3, H, W) in [-1, 1] -> basis (16, 48), offset (16,), variance kept.

    The code of a patch p (48,), in order (channel, row, column), is ``basis @ p + offset``: mean 0, variance 1 per
    component; the last value is the share of the patches' variance that the 16 components hold.
    """
    patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    values, vectors = values.flip(0), vectors.flip(1)
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # a sign that does not depend on the solver
    basis = (vectors[:, :CHANNELS] / values[:CHANNELS].sqrt()).T
    return basis, -(basis @ mean), values[:CHANNELS].sum() / values.sum()


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, basis: Tensor, offset: Tensor) -> None:
    """Write the linear code into the encoder of `vae` (see the module's docstring)."""
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
    patch = basis.reshape(CHANNELS, 3, PATCH, PATCH)
    for c in range(3):
        for y in range(PATCH):
            for x in range(PATCH):
                second.weight[:CHANNELS, c * 4 + (y % 2) * 2 + x % 2, y // 2, x // 2] = patch[:, c, y, x]
    second.bias[:CHANNELS] = offset
    # groups of 8 channels: u, -u, v, -v, K, -K, K, -K
    spread = enc.down_blocks[2].resnets[0].conv_shortcut
    positive = torch.tensor([8 * (j // 2) + 2 * (j % 2) for j in range(CHANNELS)])
    for j, p in enumerate(positive.tolist()):
        spread.weight[p, j], spread.weight[p + 1, j] = 1, -1
    for group in range(CHANNELS // 2):
        spread.bias[8 * group + 4 : 8 * group + 8] = torch.tensor([_K, -_K, _K, -_K])
    enc.conv_norm_out.weight.fill_(_K / 2**0.5)
    for j, p in enumerate(positive.tolist()):
        enc.conv_out.weight[j, p, 1, 1], enc.conv_out.weight[j, p + 1, 1, 1] = 1, -1
    enc.conv_out.bias[CHANNELS:] = -10  # log-variance: the posterior is its mode
