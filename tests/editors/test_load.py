"""Loading: names, folders, hub ids, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file

from fakes import images
from sifm_core import editors
from sifm_core.editors import load_editor
from sifm_core.editors.skeleton import skeleton
from sifm_core.errors import EditorError, InputError


@pytest.fixture
def folder(ip2p_folder: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(ip2p_folder, tmp_path / "editor"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_everything_is_frozen_and_where_it_was_asked_for(ip2p_folder: Path) -> None:
    editor = load_editor(ip2p_folder, device="cpu", dtype="float16")
    assert (editor.family, editor.device, editor.dtype) == ("instruct-pix2pix", torch.device("cpu"), torch.float16)
    assert editor.num_train_timesteps == 1000 and editor.name == str(ip2p_folder)
    for part in (editor.pipe.unet, editor.pipe.vae, editor.pipe.text_encoder):
        assert not part.training and all(not p.requires_grad and p.dtype is torch.float16 for p in part.parameters())


def test_loading_shows_no_progress_bar_and_leaves_the_libraries_settings_alone(ip2p_folder: Path, capfd) -> None:
    from diffusers.utils import logging

    load_editor(ip2p_folder, device="cpu")
    assert "%|" not in capfd.readouterr().err and logging.is_progress_bar_enabled()


def test_defaults_come_from_the_family_then_the_folder_then_the_caller(folder: Path) -> None:
    assert load_editor(folder).settings == {
        "steps": 100,
        "guidance_scale": 7.5,
        "image_guidance_scale": 1.5,
        "size": 512,
    }
    (folder / "sifm.json").write_text(json.dumps({"steps": 10, "guidance_scale": 2.0, "size": 64}))
    found = load_editor(folder, guidance_scale=3).settings
    assert found == {"steps": 10, "guidance_scale": 3, "image_guidance_scale": 1.5, "size": 64}


def test_a_whole_number_at_loading_does_not_forbid_a_fraction_at_an_edit(ip2p_folder: Path) -> None:
    editor = load_editor(ip2p_folder, device="cpu", guidance_scale=7, steps=2, size=16)
    x, cond = images(1), editor.prepare(["a"])
    one, other = (editor.edit(x, cond, seed=0, guidance_scale=scale) for scale in (7, 7.5))
    assert not torch.equal(one, other)


def test_hq_edit_has_its_own_defaults_wherever_it_lies(
    ip2p_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(editors.BUILTIN, "hq-edit", str(ip2p_folder))
    for name in ("hq-edit", "HQ-Edit"):
        shutil.copytree(ip2p_folder, tmp_path / name, dirs_exist_ok=True)
    for source in ("hq-edit", str(tmp_path / "hq-edit"), f"{tmp_path / 'HQ-Edit'}/"):
        for found in (load_editor(source).settings, skeleton(source, text=False).settings):
            assert (found["steps"], found["guidance_scale"], found["image_guidance_scale"]) == (30, 7.0, 1.5), source


def test_a_library_that_is_too_old_for_a_family_is_said(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise ImportError("cannot import name 'QwenImage21Pipeline' from 'diffusers'")

    monkeypatch.setattr("sifm_core.editors.instruct_pix2pix.load", load)
    with pytest.raises(EditorError, match=r"QwenImage21Pipeline.*pip install -U diffusers"):
        load_editor(ip2p_folder)


def test_prompts_are_remembered_once_and_no_prompt_once_for_all(ip2p_folder: Path, sd3_folder: Path) -> None:
    for folder in (ip2p_folder, sd3_folder):
        editor, calls = load_editor(folder, device="cpu"), []
        plain = editor.pipe.text_encoder.forward
        editor.pipe.text_encoder.forward = lambda *a, plain=plain, calls=calls, **k: calls.append(1) or plain(*a, **k)
        first = editor.prepare(["a cat", "a hat"])
        again = editor.prepare(["a hat", "a cat", "make it night"])
        assert len(calls) == 4, "three prompts, and none"
        assert torch.equal(first.prompt, again.prompt[[1, 0]]) and torch.equal(first.empty, again.empty[:2])
        assert torch.equal(editor.prepare([""]).prompt, first.empty[:1])


def test_the_fingerprint_follows_weights_and_configuration_not_the_place(ip2p_folder: Path, folder: Path) -> None:
    original = load_editor(ip2p_folder).fingerprint
    assert load_editor(folder).fingerprint == original and len(original) == 64
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    changed = load_editor(folder).fingerprint
    assert changed != original
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_editor(folder).fingerprint not in (original, changed)


def test_unchanged_files_are_hashed_once(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_editor(ip2p_folder).fingerprint
    monkeypatch.setattr("sifm_core.editors.folder.sha256_of", lambda *_: pytest.fail("hashed again"))
    assert load_editor(ip2p_folder).fingerprint == first


def spoil(name: str, folder: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    match name:
        case "no model_index.json":
            index.unlink()
        case "torn model_index.json":
            index.write_text(index.read_text()[:20])
        case "wrong class":
            index.write_text(json.dumps(content | {"_class_name": "StableDiffusionPipeline"}))
        case "code of its own":
            index.write_text(json.dumps(content | {"unet": ["my_unet", "UNet2DConditionModel"]}))
        case "no text encoder":
            index.write_text(json.dumps(content | {"text_encoder": [None, None]}))
        case "pickled weights":
            unet.rename(unet.with_suffix(".bin"))
        case "no weights":
            unet.unlink()
        case "no part":
            shutil.rmtree(folder / "vae")
        case "torn weights":
            unet.write_bytes(unet.read_bytes()[:5000])
        case "missing shard":
            weight_map = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}
            unet.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        case "other shapes":
            config = folder / "unet" / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 2}))
        case "unknown setting":
            (folder / "sifm.json").write_text('{"stepz": 3}')
        case "wrong setting":
            (folder / "sifm.json").write_text('{"steps": "many"}')


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no model_index.json", "no model_index.json"),
        ("torn model_index.json", "not readable JSON"),
        ("wrong class", "is a StableDiffusionPipeline: expected one of StableDiffusionInstructPix2PixPipeline"),
        ("code of its own", "never run"),
        ("no text encoder", "has no text_encoder"),
        ("pickled weights", "pickled weights only"),
        ("no weights", "no safetensors weights.*incomplete"),
        ("no part", r"vae/config.json is missing"),
        ("torn weights", "could not be loaded"),
        ("missing shard", "lacks diffusion_pytorch_model-00001-of-00002.safetensors"),
        ("other shapes", "could not be loaded"),
        ("unknown setting", "unknown option 'stepz'"),
        ("wrong setting", "steps: expected a whole number"),
    ],
)
def test_a_spoilt_folder_is_refused_with_what_is_wrong(folder: Path, name: str, message: str) -> None:
    spoil(name, folder)
    with pytest.raises(EditorError, match=message):
        load_editor(folder, device="cpu")


def without(file: Path, names: list[str]) -> None:
    """Take weights out of a safetensors file, and put one in that no network has a place for."""
    weights = load_file(file)
    for name in names:
        del weights[name]
    save_file(weights | {"of_another_network": torch.ones(2)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "part"),
    [
        *(("ip2p_folder", part) for part in ("unet", "vae", "text_encoder")),
        *(("sd3_folder", part) for part in ("transformer", "vae", "text_encoder_2", "text_encoder_3")),
    ],
)
def test_weights_that_partly_miss_are_named_and_nothing_random_stands_for_them(
    family: str, part: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(family), tmp_path / "editor"))
    (file,) = (folder / part).glob("*.safetensors")
    names = sorted(load_file(file))
    without(file, [])
    load_editor(folder, device="cpu")
    for missing in (names[-2:-1], names[1:-2]):
        without(file, missing)
        with pytest.raises(EditorError, match=f"could not be loaded: the files of {part} lack weights") as refused:
            load_editor(folder, device="cpu")
        assert missing[0] in str(refused.value) and len(str(refused.value)) < 700
        assert ("more" in str(refused.value)) == (len(missing) > 3)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("miniature-ip2q", InputError, "did you mean miniature-ip2p"),
        ("./nowhere", EditorError, "no such folder"),
        ("/no/where/at/all", EditorError, "no such folder"),
        ("nobody/nothing", EditorError, r"not in the local cache: allow the download \(local_files_only=False\)"),
        (__file__, EditorError, "is a file"),
    ],
)
def test_a_source_that_is_not_there_is_refused(empty_cache: None, source: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_editor(source)


def failure(kind: type[Exception]) -> Exception:
    import httpx2

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co/owner/name"))
    return kind("refused", response=response) if issubclass(kind, hub.HfHubHTTPError) else kind("refused")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (hub.GatedRepoError, "gated and there is no token: accept its licence at https://huggingface.co/owner/name"),
        (hub.RepositoryNotFoundError, "no such repository"),
        (hub.RemoteEntryNotFoundError, "not a diffusers pipeline"),
        (hub.LocalEntryNotFoundError, "check the connection"),
        (hub.OfflineModeIsEnabled, "could not be fetched"),
        (ConnectionError, "could not be fetched"),
    ],
)
def test_what_the_hub_answers_becomes_its_own_error(monkeypatch: pytest.MonkeyPatch, kind: type, message: str) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise failure(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(EditorError, match=message):
        load_editor("owner/name", local_files_only=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    if kind is hub.GatedRepoError:
        with pytest.raises(EditorError, match="the account of your token has no access"):
            load_editor("owner/name", local_files_only=False)


class Hub:
    """Answers as the hub's client would, from a folder; remembers what was asked and in which order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: int = 0) -> None:
        self.folder, self.missing, self.asked = folder, missing, []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(folder / "model_index.json"))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def snapshot(self, hub_id: str, dry_run: bool = False, **patterns: object) -> object:
        self.asked.append(("size" if dry_run else "fetch", patterns))
        file = SimpleNamespace(file_size=self.missing, will_download=self.missing > 0)
        here = SimpleNamespace(file_size=10**15, will_download=False)
        return [file, here] if dry_run else None


def test_the_size_is_said_before_anything_is_fetched(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_, said = Hub(ip2p_folder, monkeypatch, missing=4_200_000), []

    def say(hub_id: str, size: int) -> None:
        said.append((hub_id, size, [what for what, _ in hub_.asked]))

    load_editor("owner/name", device="cpu", local_files_only=False, on_download=say)
    assert said == [("owner/name", 4_200_000, ["size"])] and [what for what, _ in hub_.asked] == ["size", "fetch"]


def test_a_download_can_be_refused_by_who_hears_its_size(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_ = Hub(ip2p_folder, monkeypatch, missing=10)

    def refuse(hub_id: str, size: int) -> None:
        raise EditorError("too large for me")

    with pytest.raises(EditorError, match="too large for me"):
        load_editor("owner/name", local_files_only=False, on_download=refuse)
    assert [what for what, _ in hub_.asked] == ["size"]


def test_what_is_here_already_is_not_fetched_again(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_ = Hub(ip2p_folder, monkeypatch)
    load_editor(
        "owner/name", device="cpu", local_files_only=False, on_download=lambda *_: pytest.fail("nothing to say")
    )
    assert [what for what, _ in hub_.asked] == ["size"]


def test_a_disk_that_is_too_small_is_refused_before_the_start(ip2p_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_ = Hub(ip2p_folder, monkeypatch, missing=10**17)
    with pytest.raises(EditorError, match=r"100000000.0 GB to fetch.*make room"):
        load_editor("owner/name", local_files_only=False)
    assert [what for what, _ in hub_.asked] == ["size"]


@pytest.mark.parametrize("t5", [True, False])
def test_t5_is_fetched_only_when_it_is_wanted(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch, t5: bool) -> None:
    hub_ = Hub(sd3_folder, monkeypatch, missing=10)
    load_editor("owner/name", device="cpu", local_files_only=False, t5=t5)
    assert ("text_encoder_3/*.safetensors" in hub_.asked[-1][1]["allow_patterns"]) is t5


def test_a_download_fetches_the_parts_in_safetensors_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_ = Hub(folder, monkeypatch, missing=10)
    load_editor("owner/name", device="cpu", local_files_only=False)
    patterns = hub_.asked[-1][1]["allow_patterns"]
    assert "unet/*.safetensors" in patterns and not any(".bin" in pattern for pattern in patterns)
    other = ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", "model.bf16.safetensors"]
    mine = ["model.safetensors", "model-00001-of-00002.safetensors"]
    given = [f"unet/{name}" for name in (*other, *mine)]
    assert list(huggingface_hub.utils.filter_repo_objects(given, **hub_.asked[-1][1])) == given[len(other) :]
    hub_.asked.clear()
    load_editor("owner/name", device="cpu")
    assert hub_.asked == [], "nothing is fetched unasked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "cannot be used"),
        ({"device": "gpu"}, "cannot be used"),
        ({"dtype": "float31"}, "did you mean float"),
        ({"stepz": 3}, "unknown option 'stepz'"),
        ({"steps": -1}, "whole number above 0"),
        ({"size": "big"}, "whole number above 0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(ip2p_folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_editor(ip2p_folder, **options)
