"""The autoencoder of `miniature-qwen`: Qwen-Image-2.1's own class, its encoder *solved* as in :mod:`.codec`.

A PCA of 2x2 blocks of pixels, of 2x2 of those, and so on up to 16x16 pixels a latent, whitened at the end. The world's
pictures come at twice their size, so that little is lost. It is written exactly into AutoencoderKLQwenImage21:

- each residual block is the identity, or widens (its last convolution is zero);
- each strided convolution, of which a 2x2 window is used, applies a stage of the PCA less what the shortcut beside it
  adds;
- the final norm divides by a constant, since constant channels dominate it; its SiLU is linear on pairs.

The decoder is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import undo

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage21

CHANNELS = 40
_WIDTHS = (6, 24, 48, CHANNELS)
_BASE, _MULTIPLES = 6, (1, 4, 8, 16, 16)
_K = 300.0


class Code(NamedTuple):
    """Four linear maps of 2x2 blocks, ``stages`` (c, 4 b), then mean and standard deviation (CHANNELS,) of each."""

    stages: tuple[Tensor, ...]
    mean: Tensor
    std: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, CHANNELS, H / 16, W / 16)."""
        return (_staged(images, self.stages) - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, CHANNELS, h, w) -> the images (B, 3, 16 h, 16 w) that have them, of least norm."""
        z = latents * self.std[:, None, None] + self.mean[:, None, None]
        for stage in reversed(self.stages):
            z = undo(z, stage, 2)
        return z


def _staged(images: Tensor, stages: tuple[Tensor, ...]) -> Tensor:
    for stage in stages:
        images = F.conv2d(images, stage.unflatten(1, (-1, 2, 2)), stride=2)
    return images


def patch_pca(images: Tensor) -> tuple[Code, float]:
    """The code of images (N, 3, H, W) in [-1, 1], and the share of their variance that it keeps."""
    stages: list[Tensor] = []
    z = images
    for width in _WIDTHS:
        blocks = F.unfold(z, 2, stride=2).transpose(1, 2).flatten(0, 1)
        vectors = torch.linalg.eigh(torch.cov(blocks.T)).eigenvectors.flip(1)[:, :width]
        stages.append((vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)).T)
        z = _staged(z, (stages[-1],))
    # 1/8: latents of about the size of the pictures' values
    stages[-1] = stages[-1] / 8
    z = z / 8
    code = Code(tuple(stages), z.mean((0, 2, 3)), z.std((0, 2, 3)))
    some = images[:200]
    lost = (code.decode(code.encode(some)) - some).square().mean() / some.var()
    return code, float(1 - lost)


def build(code: Code) -> AutoencoderKLQwenImage21:
    """An untrained autoencoder of 16x16 pixels a latent (2 M parameters)."""
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21(
        base_dim=_BASE,
        decoder_base_dim=_BASE,
        z_dim=CHANNELS,
        dim_mult=list(_MULTIPLES),
        num_res_blocks=1,
        temperal_downsample=[False] * 4,
        latents_mean=code.mean.tolist(),
        latents_std=code.std.tolist(),
    )


@torch.no_grad()
def write_encoder(vae: AutoencoderKLQwenImage21, code: Code) -> None:
    """Write a code into the encoder of `vae`, so that (mode - mean) / std is the code."""
    encoder, last = vae.encoder, _BASE * _MULTIPLES[-1]
    for parameter in encoder.parameters():
        parameter.zero_()
    encoder.conv_in.weight[:3, :3, 1, 1] = torch.eye(3)
    stages = list(code.stages)
    # pairs u, -u, halved since the last block, a sum of two identities, doubles
    stages[-1] = torch.stack([stages[-1], -stages[-1]], dim=1).flatten(0, 1) / 2
    for block, stage in zip(encoder.down_blocks, stages, strict=False):
        for resnet in block.resnets:
            if hasattr(resnet.conv_shortcut, "weight"):
                entering = resnet.conv_shortcut.weight.shape[1]
                resnet.conv_shortcut.weight[:entering, :, 0, 0] = torch.eye(entering)
        convolution = block.downsampler.resample[1]
        entering = block.avg_shortcut.in_channels
        inputs = torch.eye(4 * entering).reshape(4 * entering, entering, 1, 2, 2)
        shortcut = block.avg_shortcut(inputs)[:, :, 0, 0, 0].T.reshape(-1, entering, 2, 2)
        convolution.weight[:, :entering, :2, :2] = -shortcut
        own = stage.unflatten(1, (-1, 2, 2))
        convolution.weight[: len(own), : own.shape[1], :2, :2] += own
    constant = last - 2 * CHANNELS
    signs = torch.tensor([1.0, -1.0]).repeat(constant // 2)
    encoder.down_blocks[3].downsampler.resample[1].bias[2 * CHANNELS :] = signs * _K / 2
    encoder.norm_out.gamma.fill_(_K * (constant / last) ** 0.5)
    for j in range(CHANNELS):
        encoder.conv_out.weight[j, 2 * j, 1, 1], encoder.conv_out.weight[j, 2 * j + 1, 1, 1] = 1, -1
    encoder.conv_out.bias[CHANNELS:] = -10  # log-variance: the posterior is its mode
    for convolution, width in ((vae.quant_conv, 2 * CHANNELS), (vae.post_quant_conv, CHANNELS)):
        convolution.weight.copy_(torch.eye(width)[:, :, None, None])
        convolution.bias.zero_()
