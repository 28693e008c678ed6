"""How exact Editor from Model's gradients are through files that core's own loaders read: numbers, LoRAs, checkpoints.

    COMFYUI_PATH=~/ComfyUI python -m benchmarks.native_files [--only TEXT] [--json]

Needs a ComfyUI and its requirements. Of each class whose small files core recognizes a random one is saved, loaded by
the functions behind UNETLoader, CheckpointLoaderSimple, VAELoader and LoraLoaderModelOnly, and connected to Editor from
Model. Off: how far the gradient at the pixels is from finite differences, as the doctor finds it before every
protection, and what it allows. Alike: the cosine of SIFM's gradient to the one of the same file in float32; a whole
checkpoint has a VAE of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.native_models import FLUX, SD3, autoencoder, conditioning, fill, picture

SIZE = 32
UNET = {"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1]}
UNET |= {"channel_mult": (1, 2), "transformer_depth": [1, 0], "transformer_depth_output": [0, 0, 1, 0], "num_heads": 8}
UNET |= {"transformer_depth_middle": 0, "use_spatial_transformer": True, "legacy": False, "context_dim": 768}
UNET |= {"num_head_channels": -1}
SMALL = {"hidden_size": 128, "num_heads": 1, "depth": 2, "depth_single_blocks": 2}

LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 192}}


class Kind(NamedTuple):
    """A class of ``comfy.supported_models``, its network, latents of its VAE, and text as (tokens, width, pooled)."""

    name: str
    unet: dict[str, Any]
    latents: int
    text: tuple[int, int, int]


KINDS = {
    "InstructPix2Pix": Kind("SD15_instructpix2pix", UNET, 4, (77, 768, 768)),
    "Stable Diffusion 3": Kind(
        "SD3",
        SD3 | {"depth": 3, "num_patches": 64, "pos_embed_max_size": 8, "context_embedder_config": LINEAR},
        16,
        (16, 64, 2048),
    ),
    "FLUX Kontext": Kind("Flux", FLUX | SMALL | {"context_in_dim": 64}, 16, (16, 64, 768)),
}
NUMBERS = ("float32", "bfloat16", "fp8 cast", "fp8 scaled", "int8 scaled", "float32 + LoRA", "fp8 scaled + LoRA")
QUANTIZED = {
    "fp8 scaled": ("float8_e4m3fn", torch.float8_e4m3fn, 448.0),
    "int8 scaled": ("int8_tensorwise", torch.int8, 127.0),
}


def weights_of(kind: Kind) -> dict[str, torch.Tensor]:
    """Random weights under the names that core expects of the bare network."""
    import comfy.supported_models as supported

    config = getattr(supported, kind.name)(dict(kind.unet))
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, "").diffusion_model
    fill(network)
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def saved(weights: dict[str, torch.Tensor], numbers: str, file: Path) -> None:
    """The file in those numbers; scaled ones with core's comfy_quant beside each matrix of the blocks."""
    from safetensors.torch import save_file

    made = dict(weights)
    if numbers in QUANTIZED:
        form, dtype, largest = QUANTIZED[numbers]
        for name, weight in weights.items():
            if weight.ndim == 2 and "block" in name and name.endswith(".weight") and min(weight.shape) >= 64:
                scale = weight.abs().max() / largest
                values = (weight / scale).round() if dtype is torch.int8 else weight / scale
                about = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
                place = name.removesuffix("weight")
                made |= {name: values.to(dtype), f"{place}weight_scale": scale, f"{place}comfy_quant": about}
    elif numbers == "bfloat16":
        made = {name: weight.bfloat16() if weight.is_floating_point() else weight for name, weight in weights.items()}
    save_file({name: weight.contiguous() for name, weight in made.items()}, file)


def lora(weights: dict[str, torch.Tensor], file: Path) -> None:
    """A LoRA of rank 4 on the attention of the blocks."""
    from safetensors.torch import save_file

    draw, made = torch.Generator().manual_seed(9), {}
    for name, weight in weights.items():
        if weight.ndim == 2 and name.endswith(("qkv.weight", "to_q.weight", "linear1.weight")):
            place = f"diffusion_model.{name.removesuffix('.weight')}"
            made[f"{place}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=draw) * weight.std()
            made[f"{place}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=draw) * 0.5
    save_file(made, file)


def loaded(numbers: str, file: Path, adapter: Path | None) -> Any:
    """The MODEL as UNETLoader and LoraLoaderModelOnly would hand it out."""
    import comfy.sd
    import comfy.utils

    options = {"dtype": torch.float8_e4m3fn} if numbers == "fp8 cast" else {}
    model = comfy.sd.load_diffusion_model(str(file), model_options=options)
    if adapter is not None:
        model, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(adapter)), 0.7, 0)
    return model


def gradient(model: Any, vae: Any, text: tuple[int, int, int]) -> tuple[Any, torch.Tensor]:
    """What the doctor finds of an editor from them, and SIFM's gradient at the pixels."""
    from nodes.from_model import SifmEditorFromModel
    from nodes.native.doctor import check
    from sifm_core.methods import sifm

    given = {"cfg": 0.0, "steps": 0, "denoise": 0.0, "size": SIZE}
    given |= {"positive": conditioning(*text, seed=1), "negative": conditioning(*text, seed=2)}
    managed = SifmEditorFromModel.execute(model, vae, "auto", **given)[0]
    x = picture(SIZE)
    with managed.at_work([""], x) as engine:
        cond = engine.prepare([""], x)
        found = check(engine, x, cond)
        step = sifm.build(engine, x, cond, timesteps=2, objective="norm", aggregation="per_layer", seed=0)
        return found, step(x, 0).grad


def rows(only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """One a class and numbers, and one of a whole checkpoint; inside ComfyUI's inference mode, as a prompt runs."""
    from comfy_extras import nodes_flux

    nodes_flux.PREFERRED_KONTEXT_RESOLUTIONS[:] = [(SIZE, SIZE)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, kind in KINDS.items():
            wanted = [n for n in (*NUMBERS, "checkpoint") if not only or any(word in f"{name} {n}" for word in only)]
            if not wanted:
                continue
            weights, vae = weights_of(kind), autoencoder(kind.latents, 32, torch.float32)
            adapter, exact = Path(folder, "lora.safetensors"), None
            lora(weights, adapter)
            for numbers in ("float32", *(n for n in wanted if n != "float32")):
                base, _, patched = numbers.partition(" + ")
                file, this = Path(folder, "model.safetensors"), vae
                if numbers == "checkpoint":
                    if kind.name != "SD15_instructpix2pix":
                        continue
                    model, this = checkpoint(weights, file)
                else:
                    saved(weights, base, file)
                    model = loaded(base, file, adapter if patched else None)
                found, grad = gradient(model, this, kind.text)
                exact = grad if exact is None else exact
                about = {
                    "model": name,
                    "numbers": numbers,
                    "off": found.gradient,
                    "allowed": 0.01 if found.exact else 0.2,
                }
                alike = None
                if this is vae:
                    alike = float(torch.nn.functional.cosine_similarity(exact.flatten(), grad.flatten(), dim=0))
                if numbers in wanted:
                    yield about | {"alike": alike, "weights": type(model.model).__name__, "features": found.features}


def checkpoint(weights: dict[str, torch.Tensor], file: Path) -> tuple[Any, Any]:
    """MODEL and VAE of one file with both, as CheckpointLoaderSimple hands them out; the VAE is of full size."""
    import comfy.sd
    from safetensors.torch import save_file

    network = autoencoder(4, 128, torch.float32).first_stage_model
    parts = {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}
    parts |= {f"first_stage_model.{name}": weight for name, weight in network.state_dict().items()}
    save_file({name: weight.to(torch.float16).contiguous() for name, weight in parts.items()}, file)
    model, _, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(file), output_clip=False)
    return model, vae


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json an object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows with this in their name")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args(arguments)
    if not os.environ.get("COMFYUI_PATH"):
        parser.error("COMFYUI_PATH names no ComfyUI checkout")
    sys.path.append(os.path.expanduser(os.environ["COMFYUI_PATH"]))
    from comfy.cli_args import args

    args.cpu = True
    if not chosen.json:
        print(f"{'model':<20}{'numbers':<20}{'off':>10}{'allowed':>9}{'alike':>10}")
    for row in rows(chosen.only):
        print(json.dumps(row) if chosen.json else line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    head = f"{row['model']:<20}{row['numbers']:<20}"
    if "problem" in row:
        return f"{head}{row['problem']}"
    alike = "" if row["alike"] is None else f"{row['alike']:>10.4f}"
    return f"{head}{row['off']:>10.2e}{row['allowed']:>9.0%}{alike}"


if __name__ == "__main__":
    main()
