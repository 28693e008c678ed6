"""What Editor from Model finds and takes on ComfyUI's own model classes at full size, with random weights, here.

    COMFYUI_PATH=~/ComfyUI python -m benchmarks.native_models [--only TEXT] [--tiny] [--device cuda] [--json]

Needs a ComfyUI and its requirements. Each model is made as core's loaders would hand it out and connected to Editor
from Model; texts are random numbers in a conditioning's place. A row holds the doctor's figures (how far the gradient
is from finite differences, and the features from core's own run), seconds of an iteration of SIFM and of an edit
by core's sampler, the most allocated bytes, and whether every weight is as before.
Of memory, four forms: "whole", with room for all; "partly", where ComfyUI sees room for three fifths of the weights
and little of the work; "streamed" (ComfyUI's dynamic VRAM, its default on NVIDIA), where the pack takes a copy that
does not stream; and "bare" after either of the last two: without the pack's cures, which shows what they are for.
A case that fails is named, and the next one runs; when the seconds are over, those that are left are named too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch

from benchmarks.gradient_cost import spread
from sifm_core.memory import peak
from sifm_core.methods import sifm
from sifm_core.pgd import pgd

VAE = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
SD3 = {"in_channels": 16, "patch_size": 2, "depth": 24, "input_size": None, "adm_in_channels": 2048}
SD3 |= {"num_patches": 36864, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None}
SD3 |= {"context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}}
FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768}
FLUX |= {"context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19}
FLUX |= {"depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10_000, "qkv_bias": True}
FLUX |= {"guidance_embed": True, "txt_ids_dims": []}


class Kind(NamedTuple):
    """A class of ``comfy.supported_models``, its network, what makes it tiny, and text as (tokens, width, pooled)."""

    name: str
    unet: dict[str, Any]
    tiny: dict[str, Any]
    text: tuple[int, int, int]


PATIENCE = 15
"""Seconds that the cases with dynamic VRAM are waited for."""
SLOW = 3.0
"""Seconds from which on the first iteration counts, since nothing that is set up in it does."""
KINDS = {
    "sd3-medium": Kind("SD3", SD3, {"depth": 3}, (154, 4096, 2048)),
    "flux-kontext": Kind("Flux", FLUX, {"hidden_size": 256, "num_heads": 2, "depth": 2}, (512, 4096, 768)),
}
KINDS["sd3-medium"].tiny["context_embedder_config"] = {
    "target": "torch.nn.Linear",
    "params": {"in_features": 4096, "out_features": 192},
}
KINDS["flux-kontext"].tiny["depth_single_blocks"] = 2


class Case(NamedTuple):
    """One row of the table."""

    model: str
    dtype: str
    memory: str
    timesteps: tuple[int, ...] = ()
    edit: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} {self.memory}"


CASES = (
    Case("sd3-medium", "bfloat16", "whole", (4, 10), True),
    Case("sd3-medium", "float32", "partly"),
    Case("sd3-medium", "float32", "partly, bare"),
    Case("flux-kontext", "bfloat16", "whole", (4, 10), True),
    Case("sd3-medium", "float32", "whole"),
    Case("sd3-medium", "float32", "streamed"),
    Case("sd3-medium", "float32", "streamed, bare"),
)
"""What matters most first; those that stream run in a process of their own, beside what is not clocked."""


def built(case: Case, tiny: bool) -> tuple[Any, Any]:
    """MODEL and VAE with random weights, off the device or where core would keep them."""
    import comfy.model_patcher
    import comfy.supported_models as supported
    from comfy import model_management

    kind, dtype = KINDS[case.model], getattr(torch, case.dtype)
    config = getattr(supported, kind.name)(kind.unet | (kind.tiny if tiny else {}))
    config.set_inference_dtype(dtype, None)
    device, offload = model_management.get_torch_device(), model_management.unet_offload_device()

    def patcher(disable_dynamic: bool = False) -> Any:
        with torch.inference_mode():
            model = config.get_model({}, "", device=device)
            fill(model.diffusion_model)
            if case.memory != "whole":
                model.to(offload)
        plain = disable_dynamic or case.memory == "whole"
        form = comfy.model_patcher.ModelPatcher if plain else comfy.model_patcher.CoreModelPatcher
        made = form(model, load_device=device, offload_device=offload)
        made.cached_patcher_init = (patcher, ())
        return made

    model = patcher()
    with torch.inference_mode():
        return model, autoencoder(16, 32 if tiny else 128, dtype)


def autoencoder(latents: int, channels: int, dtype: torch.dtype) -> Any:
    """A VAE of the Stable Diffusion kind with random weights, which can be loaded again."""
    import comfy.sd
    from comfy import model_management
    from comfy.ldm.models.autoencoder import AutoencoderKL

    params = {"ddconfig": VAE | {"ch": channels, "z_channels": latents}, "embed_dim": latents}
    network = AutoencoderKL(**params).to(model_management.get_torch_device())
    fill(network)
    weights = {name: weight.cpu() for name, weight in network.state_dict().items()}

    def made() -> Any:
        vae = comfy.sd.VAE(sd=dict(weights), config={"params": params}, dtype=dtype)
        vae.latent_channels = latents
        vae.patcher.cached_patcher_init = (lambda disable_dynamic=False: made().patcher, ())
        return vae

    return made()


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights under which the network neither blows up nor forgets its input."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        if not weight.is_floating_point() or "sigmas" in name:
            continue
        draw = generators.setdefault(weight.device, torch.Generator(weight.device).manual_seed(seed))
        if weight.ndim < 2:
            weight.normal_(float("norm" in name and not name.endswith("bias")), 0.1, generator=draw)
        else:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=draw)


def conditioning(tokens: int, width: int, pooled: int, seed: int) -> list[Any]:
    """Core's conditioning of random numbers in place of a text."""
    draw = torch.Generator().manual_seed(seed)
    about = {"pooled_output": torch.randn(1, pooled, generator=draw), "guidance": 2.5}
    return [[torch.randn(1, tokens, width, generator=draw), about]]


def picture(size: int) -> torch.Tensor:
    """(1, 3, size, size): smooth, as a drawing is."""
    draw = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (1, 3, max(2, size // 32), max(2, size // 32)), generator=draw).div(255)
    return torch.nn.functional.interpolate(small, (size, size), mode="bilinear").mul(255).round().div(255)


def sums(editor: Any) -> list[tuple[int, int]]:
    """Of every weight's bytes, the sum and that of the squares: any single change shows."""
    found, model, vae = [], editor.model, editor.vae
    for weight in (*model.model.state_dict().values(), *vae.first_stage_model.state_dict().values()):
        numbers = (
            weight.to(editor.device)
            .contiguous()
            .view(-1)
            .view(torch.int16 if weight.element_size() == 2 else torch.int32)
        )
        parts = [(int(part.long().sum()), int(part.long().square().sum())) for part in numbers.split(1 << 26)]
        found.append((sum(a for a, _ in parts), sum(b for _, b in parts)))
    return found


def measure(case: Case, size: int, tiny: bool, left: Any) -> Iterator[dict[str, Any]]:
    """The row of one case, as far as it has come; ``left`` () seconds until time is over."""
    from nodes.from_model import SifmEditorFromModel

    started = time.perf_counter()
    model, vae = built(case, tiny)
    given = {"cfg": 0.0, "steps": 0, "denoise": 0.0, "size": size}
    text = KINDS[case.model].text
    given |= {"positive": conditioning(*text, seed=1), "negative": conditioning(*text, seed=2)}
    bare = "bare" in case.memory
    with torch.inference_mode(), without_cures() if bare else nullcontext():
        managed = SifmEditorFromModel.execute(model, vae, "auto", **given)[0]
    editor = managed.editor
    row: dict[str, Any] = {**case._asdict(), "size": size, "built": time.perf_counter() - started}
    x = picture(size)
    rooms = [torch.inference_mode(), without_cures() if bare else nullcontext()]
    if case.memory == "partly":
        rooms.append(little_room(managed, x))
    with ExitStack() as stack:
        for room in rooms:
            stack.enter_context(room)
        bytes_ = stack.enter_context(peak(editor.device))
        with managed.at_work([""], x) as engine:
            x = x.to(engine.device)
            before = sums(editor)
            row["doctor"] = managed.examine(x, "", "deep")
            row["row gigabytes"] = engine.row_bytes(size, size) / 1e9
            cond = engine.prepare([""], x)
            for timesteps in case.timesteps:
                if left() < 0:
                    row["problem"] = "not all of it: the seconds are over"
                    break
                row[f"T={timesteps}"] = iteration(engine, x, cond, timesteps)
            if case.edit and left() > 0:
                engine.edit(x, cond, seed=0, steps=1)
                start = now(engine.device)
                engine.edit(x, cond, seed=0)
                row["edit s"], row["edit steps"] = now(engine.device) - start, editor.settings["steps"]
            row["unchanged"] = sums(editor) == before
    row["gigabytes"] = None if bytes_[0].value is None else bytes_[0].value / 1e9
    yield row


@contextmanager
def little_room(managed: Any, x: torch.Tensor) -> Iterator[None]:
    """ComfyUI sees room for three fifths of the weights and little of the work, as beside another program."""
    from comfy import model_management

    free = model_management.get_free_memory
    left = int(0.6 * sum(patcher.model_size() for patcher in managed.patchers()) + 0.3 * managed.working(x))
    taken = max(0, free(managed.device) - left) if managed.device.type == "cuda" else 0

    def less(dev: Any = None, torch_free_too: bool = False) -> Any:
        found = free(dev, torch_free_too)
        return (found[0] - taken, found[1]) if torch_free_too else found - taken

    model_management.get_free_memory = less
    try:
        yield
    finally:
        model_management.get_free_memory = free


@contextmanager
def without_cures() -> Iterator[None]:
    """The pack, but for what it does where weights are not wholly on the device; three fifths of them are then."""
    from comfy import model_management

    import nodes.from_model
    from nodes.native import gradients
    from nodes.native.managed import NativeManaged

    places: list[tuple[Any, str, Any]] = [
        (NativeManaged, "settle", lambda self: None),
        (NativeManaged, "fit", lambda self, memory: (free() - weights(self) * 3 // 5, False)),
        (nodes.from_model, "resident", lambda patcher: patcher),
        (gradients, "own_memory", model_management.get_offload_stream),
    ]

    def weights(managed: Any) -> int:
        return sum(patcher.model_size() for patcher in managed.patchers())

    def free() -> int:
        return int(model_management.get_free_memory(model_management.get_torch_device()))

    before = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


def iteration(engine: Any, x: torch.Tensor, cond: Any, timesteps: int) -> float:
    """Seconds of one, the faster of two where that is quick."""
    step = sifm.build(engine, x, cond, timesteps=spread(timesteps), aggregation="per_layer", seed=0)

    def run() -> float:
        start = now(x.device)
        pgd(x, step, eps=0.03, alpha=2 / 255, steps=1, random_start=True)
        return now(x.device) - start

    first = run()
    return first if first > SLOW else min(run() for _ in range(2))


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def begin(device: str, streams: bool, tiny: bool) -> None:
    """ComfyUI in this process, as its ``main`` would set it up."""
    sys.path.append(os.path.expanduser(os.environ["COMFYUI_PATH"]))
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    if streams and device == "cpu":
        raise RuntimeError("dynamic VRAM needs a GPU")
    if streams:
        import comfy_aimdo.control as control

        control.init()
        import comfy.memory_management
        import comfy.model_patcher
        from comfy import model_management

        if not control.init_devices((d.index, 0) for d in model_management.get_all_torch_devices()):
            raise RuntimeError("no dynamic VRAM on this machine")
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    if tiny:
        from comfy_extras import nodes_flux

        nodes_flux.PREFERRED_KONTEXT_RESOLUTIONS[:] = [(64, 64)]


def table(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, one after the other: measured, or with the "problem" that there was."""
    end = time.perf_counter() + chosen.seconds
    wanted = [case for case in CASES if not chosen.only or any(words in str(case) for words in chosen.only)]
    mine = [case for case in wanted if ("streamed" in case.memory) == chosen.streams]
    theirs = [case for case in wanted if case not in mine]
    other = None if chosen.streams or not theirs else Streams(chosen, theirs)
    try:
        begin(chosen.device, chosen.streams, chosen.tiny)
    except Exception as error:
        for case in mine:
            yield {**case._asdict(), "problem": f"{type(error).__name__}: {error}"[:300]}
        mine = []
    if chosen.streams:
        sys.stdin.readline()  # the other process clocks nothing now
    for case in mine:
        if time.perf_counter() > end:
            yield {**case._asdict(), "problem": "not run: the seconds are over"}
            continue
        if other is not None and case.timesteps:
            yield from other.rows()
        elif other is not None:
            other.go()
        size = chosen.size or (64 if chosen.tiny else 512 if case.dtype == "float32" else 1024)
        try:
            yield from measure(case, size, chosen.tiny, lambda: end - time.perf_counter())
        except Exception as error:
            yield {**case._asdict(), "problem": f"{type(error).__name__}: {error}"[:400]}
        finally:
            tidy()
    if other is not None:
        other.go()
        yield from other.rows()


class Streams:
    """The cases with dynamic VRAM, which ComfyUI turns on for a whole process; it waits until it may :meth:`go`."""

    def __init__(self, chosen: argparse.Namespace, wanted: Sequence[Case]) -> None:
        given = [part for words in chosen.only for part in ("--only", words)] + ["--tiny"] * chosen.tiny
        given += ["--size", str(chosen.size), "--seconds", str(chosen.seconds), "--device", chosen.device]
        command = [sys.executable, "-m", "benchmarks.native_models", "--streams", "--json", *given]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, **pipes)
        self._wanted, self._went, self._over = wanted, False, False

    def go(self) -> None:
        if not self._went and self._process.stdin is not None:
            self._went = True
            with suppress(BrokenPipeError):
                self._process.stdin.write("\n")
                self._process.stdin.flush()

    def rows(self) -> list[dict[str, Any]]:
        """What came out, once it has gone and is over; nothing before, and nothing twice."""
        if not self._went or self._over:
            return []
        self._over = True
        try:
            out, errors = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
            errors += f"ended after {PATIENCE} s"
        found = [json.loads(text) for text in out.splitlines() if text.startswith("{")]
        missing = [
            case for case in CASES[-2:] if str(case) not in {str(Case(*map(row.get, Case._fields))) for row in found}
        ]
        return [*found, *({**case._asdict(), "problem": errors[-300:]} for case in missing)]


def tidy() -> None:
    """Nothing of a case stays on the device."""
    from comfy import model_management

    model_management.unload_all_models()
    model_management.current_loaded_models.clear()
    gc.collect()
    model_management.soft_empty_cache()


def line(row: dict[str, Any]) -> str:
    """A row as text."""

    def shown(name: str, form: str = "8.3f") -> str:
        value = row.get(name)
        return " " * (int(form.split(".")[0]) - 1) + "-" if value is None else f"{value:{form}}"

    head = f"{row['model']:<13}{row['dtype']:<10}{row['memory']:<15}"
    times = "".join(shown(name) for name in ("T=4", "T=10", "edit s"))
    rest = f"{times}{shown('gigabytes', '7.2f')}  {row.get('unchanged', '-')!s:<6}"
    return "\n    ".join([head + rest, *(str(row[name]) for name in ("doctor", "problem") if name in row)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json an object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same classes, to try it all")
    parser.add_argument(
        "--size", type=int, default=0, help="of the picture; default 1024, 512 in float32, or 64 with --tiny"
    )
    parser.add_argument("--seconds", type=float, default=90, help="after which no further work is started")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--streams", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not os.environ.get("COMFYUI_PATH"):
        parser.error("COMFYUI_PATH names no ComfyUI checkout")
    if not chosen.json:
        card = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
        print(f"{card}, torch {torch.__version__}; seconds of an iteration, and of an edit")
        print(f"{'model':<13}{'numbers':<10}{'memory':<15}{'T=4':>8}{'T=10':>8}", end="")
        print(f"{'edit':>8}{'GB':>7}  same")
    for row in table(chosen):
        print(json.dumps(row) if chosen.json else line(row), flush=True)


if __name__ == "__main__":
    main()
