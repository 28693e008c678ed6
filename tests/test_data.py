"""Benchmark data: frozen manifests, distinct instructions, reproducible choices."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from judges.servers import UNSEEN, FakeServer
from sifm_core import cli, data
from sifm_core.data import build, prompts
from sifm_core.errors import InputError
from sifm_core.judges import load_judge

KEY = "not-a-real-key-0123456789"


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(path)


@pytest.fixture
def own(tmp_path) -> Path:
    """A manifest of three pictures of one's own."""
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "instruction", "category", "unseen"])
        for i, kind in enumerate(("portrait", "landscape", "artwork")):
            picture(tmp_path / "pictures" / f"{i}.png", i)
            writer.writerow(
                [
                    f"pictures/{i}.png",
                    "make him a zombie",
                    kind,
                    "add a hat|set it at night|blue hair|old car|rain" if i else "",
                ]
            )
    build.from_csv(tmp_path / "own.csv", tmp_path / "out" / "manifest.jsonl")
    return tmp_path / "out" / "manifest.jsonl"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_table_becomes_a_manifest_that_loads(own):
    items = data.load(own)
    assert [item.id for item in items] == ["0", "1", "2"] and len(data.load(own, 2)) == 2
    assert items[0].pixels().shape == (3, 24, 24)
    assert items[1].unseen == ("add a hat", "set it at night", "blue hair", "old car", "rain")
    assert items[1].prompts_from == "the table" and items[0].prompts_from == "templates"
    assert len(items[0].unseen) == 5 and set(items[0].unseen) <= set(prompts.TEMPLATES["portrait"])
    assert all(len(row["sha256"]) == 64 for row in lines(own))
    with pytest.raises(InputError, match="expected 1 to 3"):
        data.load(own, 4)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"id": "1"}, "twice"),
        ({"sha256": "0" * 64}, "not the picture that was frozen"),
        ({"image": "gone.png"}, "there is none"),
        ({"unseen": ["make him a zombie!"]}, "distinct"),
        ({"unseen": "none"}, "list of texts"),
        ({"unseen": None}, "manifest.jsonl:1: expected texts, and a list of texts"),
        ({"unseen": ["", "rain"]}, "0: expected instructions, but one is empty"),
        ({"instruction": " "}, "0: expected instructions, but one is empty"),
        ({"unsen": []}, "did you mean unseen"),
        ({"id": None}, "expected texts"),
    ],
)
def test_an_unsound_manifest_is_refused(own, change, said):
    first, *rest = lines(own)
    own.write_text("\n".join(map(json.dumps, [first | change, *rest])))
    with pytest.raises(InputError, match=said):
        data.load(own)


BAD_TABLES = {
    "a comma without quotes": (b"image,instruction\na.png,make it dark, stormy\n", "own.csv, line 2: expected 2 cells"),
    "a short row": (b"image,instruction\na.png,make it dark\na.png\n", "own.csv, line 3: expected 2 cells"),
    "a quote without its end": (b'image,instruction\na.png,"make it dark\n', "own.csv: expected a CSV"),
    "no instruction": (b"image,instruction\na.png, \n", "a: expected instructions, but one is empty"),
    "not UTF-8": ("image,instruction\na.png,très sombre\n".encode("latin-1"), "own.csv: expected a CSV in UTF-8"),
    "no file": (None, "own.csv: expected a CSV"),
}


@pytest.mark.parametrize("table, said", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_with_a_mistake_makes_no_manifest(tmp_path, capsys, table, said):
    picture(tmp_path / "a.png", 0)
    if table is not None:
        (tmp_path / "own.csv").write_bytes(table)
    assert cli.main(["data", "csv", str(tmp_path / "own.csv"), str(tmp_path / "manifest.jsonl")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "manifest.jsonl").exists()


def test_a_table_is_not_replaced_by_its_manifest(tmp_path, capsys):
    picture(tmp_path / "a.png", 0)
    table = tmp_path / "own.csv"
    table.write_text("image,instruction\na.png,make it dark\n")
    assert cli.main(["data", "csv", str(table), str(table)]) == 2
    assert "expected a .jsonl file" in capsys.readouterr().err and table.read_text().startswith("image,")


def test_a_manifest_is_one_object_a_line_whatever_its_texts_hold(tmp_path, own):
    picture(tmp_path / "a.png", 0)
    (tmp_path / "line.csv").write_text('image,instruction\na.png,"make it\u2028night, élan"\n', encoding="utf-8")
    build.from_csv(tmp_path / "line.csv", tmp_path / "line.jsonl")
    assert data.load(tmp_path / "line.jsonl")[0].instruction == "make it\u2028night, élan"
    own.write_bytes("élan".encode("latin-1"))
    with pytest.raises(InputError, match="expected a manifest in UTF-8"):
        data.load(own)


def test_a_changed_picture_is_noticed(own):
    picture(data.load(own)[2].path, 99)
    with pytest.raises(InputError, match="frozen"):
        data.load(own)


def test_distinct_is_by_content_words():
    assert prompts.clash(["make it night", "Make it night."]) == ("make it night", "Make it night.")
    assert prompts.clash(["turn the house red", "turn the house into red brick"])
    assert prompts.clash(["turn the house red", "turn the sky green"]) is None
    assert prompts.distance("make it snow", "add a dog") == 1.0
    assert prompts.distance("add red roses", "put a red rose there") == 0.0


def test_templates_are_distinct_and_reproducible():
    for category in prompts.TEMPLATES:
        for seed in range(5):
            chosen = prompts.from_templates("add a golden crown", category, seed=seed)
            assert len(chosen) == 5 and prompts.clash(["add a golden crown", *chosen]) is None
            assert chosen == prompts.from_templates("add a golden crown", category, seed=seed)


def test_a_models_instructions_are_checked():
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return 'Sure: ["make it night", "make it  night", "add a dog", "red car", "snow everywhere", "old photo"]'

    chosen = prompts.from_model("make it blue", "a street", ask)
    assert chosen == ("make it night", "add a dog", "red car", "snow everywhere", "old photo")
    assert "a street" in asked[0] and "make it blue" in asked[0]
    with pytest.raises(InputError, match="found 1"):
        prompts.from_model("make it blue", "", lambda question: '["add a dog"]')
    with pytest.raises(InputError, match="JSON list"):
        prompts.from_model("make it blue", "", lambda question: "I cannot")


# ---- instructions of a language model


def own_pictures(folder: Path, *behaviours: str) -> Path:
    """A manifest whose instructions script the fake servers."""
    with (folder / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "instruction", "caption"])
        for i, behaviour in enumerate(behaviours):
            picture(folder / "pictures" / f"{i}.png", i)
            writer.writerow([f"pictures/{i}.png", f"{behaviour} {i}", f"caption {i}"])
    build.from_csv(folder / "own.csv", folder / "in" / "manifest.jsonl")
    return folder / "in" / "manifest.jsonl"


@pytest.fixture
def sifm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("sifm_core.judges.vlm.random.uniform", lambda low, high: 0.001)  # no long back-off

    def run(manifest: Path, fake: FakeServer, *words: object, out: str = "out/new.jsonl") -> tuple[int, str]:
        llm = f"{fake.dialect}:fake-model@{fake.url}"
        code = cli.main([str(x) for x in ("data", "prompts", manifest, tmp_path / out, "--llm", llm, *words)])
        said = "".join(capsys.readouterr())
        assert KEY not in said
        return code, said

    return run


@pytest.mark.parametrize("dialect", ["gemini", "openai"])
def test_a_language_model_writes_unseen_instructions_once(tmp_path, sifm, dialect):
    manifest = own_pictures(tmp_path, "ok", "few", "fenced", "rate-once")
    with FakeServer(dialect) as fake:
        code, said = sifm(manifest, fake)
        assert code == 0 and "4 pictures" in said
        items = data.load(tmp_path / "out" / "new.jsonl")
        assert [item.unseen for item in items] == [tuple(UNSEEN["instructions"][:5])] * 4
        assert all("fake-model" in item.prompts_from and "unseen-1" in item.prompts_from for item in items)
        before = data.load(manifest)
        assert [(x.id, x.instruction, x.sha256) for x in items] == [(x.id, x.instruction, x.sha256) for x in before]
        assert (items[3].pixels() == before[3].pixels()).all()
        asked = [json.dumps(request.body) for request in fake.requests]
        assert sum("caption 1" in text for text in asked) == 2 and sum("Not again" in text for text in asked) == 1
        assert all("image" in text.replace("image editor", "") for text in asked)
        code, said = sifm(manifest, fake)
        assert code == 2 and "made once" in said and len(fake.requests) == len(asked)
        (tmp_path / "out" / "new.jsonl").unlink()
        assert sifm(manifest, fake, "--offline")[0] == 0 and len(fake.requests) == len(asked)
        assert data.load(tmp_path / "out" / "new.jsonl") == items
        assert sifm(manifest, fake, "--text-only", out="blind.jsonl")[0] == 0
        assert "image/png" not in json.dumps(fake.requests[-1].body)
        assert "not shown" in data.load(tmp_path / "blind.jsonl")[0].prompts_from


@pytest.mark.parametrize(
    "behaviour, said",
    [
        ("prose", "0: expected a JSON list of instructions from the model, got 'The edit looks fine"),
        ("truncated", "0 (truncated)"),
        ("wrong-schema", "expected a JSON list"),
        ("json-list", "found 0"),
        ("alike", "expected 5 distinct instructions from the model, found 1"),
        ("essays", "found 0"),
        ("safety", "0 (blocked)"),
        ("refusal", "0 (refused)"),
        ("key-refused", "0 (missing_key)"),
        ("bad-request", "0 (error)"),
        ("html", "0 (unreachable)"),
    ],
)
def test_bad_answers_of_a_language_model_make_no_manifest(tmp_path, sifm, behaviour, said):
    manifest = own_pictures(tmp_path, behaviour, "ok")
    with FakeServer("openai") as fake:
        code, complaint = sifm(manifest, fake)
    assert code != 0 and said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "out" / "new.jsonl").exists()


def test_a_stopped_build_sends_nothing_further(tmp_path, monkeypatch):
    manifest = own_pictures(tmp_path, "rate")
    with FakeServer("openai") as fake:

        def interrupted(coming: object) -> object:
            for _ in range(200):
                if fake.requests:
                    raise KeyboardInterrupt
                time.sleep(0.05)

        model = load_judge(f"openai:fake-model@{fake.url}", first_delay=40, attempts=2)
        monkeypatch.setattr(build, "as_completed", interrupted)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            build.from_model(manifest, tmp_path / "new.jsonl", model)
    assert time.monotonic() - started < 20, "the second attempt comes after 30 seconds at least"


def test_only_a_language_model_writes_instructions(tmp_path, own, capsys):
    assert cli.main(["data", "prompts", str(own), str(tmp_path / "new.jsonl"), "--llm", "miniature:conv"]) == 2
    assert "expected a language model such as gemini:MODEL" in capsys.readouterr().err


# ---- a copy of instructpix2pix-clip-filtered

CAPTIONS = {
    "portrait": "a portrait of a young woman",
    "landscape": "mountains by a lake",
    "artwork": "an oil painting of a king",
    "": "two apples",
}
COUNTS = {"portrait": 3, "landscape": 2, "artwork": 2}


def rows() -> list[dict]:
    return [
        {"original_prompt": caption, "edit_prompt": f"give it {word} wings"}
        for word in ("golden", "paper", "steel", "glass", "wooden")
        for caption in CAPTIONS.values()
    ]


def as_folder(folder: Path) -> None:
    for i, row in enumerate(rows()):
        picture(folder / f"{i}.png", i)
        row |= {"file_name": f"{i}.png", "note": "two\u2028lines"}
        with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def as_parquet(folder: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: reading parquet is NOT tested")
    from pyarrow import parquet

    folder.mkdir(parents=True)
    table = []
    for i, row in enumerate(rows()):
        content = io.BytesIO()
        Pil.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)).save(content, "PNG")
        table.append(row | {"original_image": {"bytes": content.getvalue(), "path": None}})
    parquet.write_table(arrow.Table.from_pylist(table), folder / "train-00000.parquet", row_group_size=6)


@pytest.mark.parametrize("copy", [as_folder, as_parquet])
def test_the_choice_is_reproducible_and_rejects_are_replaced(tmp_path, copy):
    copy(tmp_path / "copy")
    first = build.from_instructpix2pix(tmp_path / "copy", tmp_path / "a", counts=COUNTS)
    again = build.from_instructpix2pix(tmp_path / "copy", tmp_path / "b", counts=COUNTS)
    assert (tmp_path / "a" / "manifest.jsonl").read_bytes() == (tmp_path / "b" / "manifest.jsonl").read_bytes()
    assert [item.category for item in first][:3] == list(COUNTS) and len(first) == sum(COUNTS.values())
    assert {item.caption for item in first} == set(CAPTIONS.values()) - {"two apples"}
    number = int(first[0].id.rsplit("-", 1)[1])
    expected = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
    assert np.array_equal((again[0].pixels().permute(1, 2, 0) * 255).round().numpy(), expected)
    other = build.from_instructpix2pix(tmp_path / "copy", tmp_path / "c", counts=COUNTS, reject=[first[0].id])
    kept = {item.id for item in first} & {item.id for item in other}
    assert len(kept) == len(first) - 1 and first[0].id not in kept
    assert len(data.load(tmp_path / "a" / "manifest.jsonl")) == 7
    build.review(first, tmp_path / "a" / "review.html", "sifm data instructpix2pix copy")
    page = (tmp_path / "a" / "review.html").read_text()
    assert page.count('type="checkbox"') == 7 and f'src="images/{first[0].id}.png"' in page
    build.from_instructpix2pix(tmp_path / "copy", tmp_path / "a", counts=COUNTS, reject=[first[0].id])
    assert not (tmp_path / "a" / "images" / f"{first[0].id}.png").exists(), "what was turned down is not kept"
    with pytest.raises(InputError, match=r"reject: expected ids of pictures in .*, got nobody"):
        build.from_instructpix2pix(tmp_path / "copy", tmp_path / "a", counts=COUNTS, reject=["nobody"])
    with pytest.raises(InputError, match="expected 9 pictures of category portrait, found 5"):
        build.from_instructpix2pix(tmp_path / "copy", tmp_path / "d", counts={"portrait": 9})


def test_files_of_one_name_are_two(tmp_path):
    for part in ("train", "test"):
        as_parquet(tmp_path / "copy" / part)
    items = build.from_instructpix2pix(tmp_path / "copy", tmp_path / "out", counts={"portrait": 10})
    assert len({item.id for item in items}) == len(data.load(tmp_path / "out" / "manifest.jsonl")) == 10


def test_the_review_page_goes_on_from_the_command_that_made_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(build.from_instructpix2pix.__kwdefaults__, "counts", COUNTS)
    as_folder(Path("my copy"))
    words = ["data", "instructpix2pix", "my copy", "--out", "chosen", "--seed", "3"]
    assert cli.main(words) == 0, capsys.readouterr().err
    first = json.loads(Path("chosen/manifest.jsonl").read_text().splitlines()[0])["id"]
    assert cli.main([*words, "--reject", first]) == 0
    page = Path("chosen/review.html").read_text()
    command = json.loads(re.search(r"command\.textContent = (\".*?\") \+ ids", page)[1])
    assert shlex.split(command) == ["sifm", *words, "--reject", first] and f'value="{first}"' not in page


def test_captions_tell_the_category():
    assert {build.category_of(caption): caption for caption in CAPTIONS.values()} == CAPTIONS
    assert build.category_of("Portrait of a man, oil on canvas") == "artwork"
    assert build.category_of("a manor house") == ""


def test_the_miniature_loads_like_any_other_and_can_be_written(tmp_path):
    items = data.load("miniature", 2)
    assert items[0].truth(items[0].instruction) is not None
    build.miniature(tmp_path, 2)
    written = data.load(tmp_path / "manifest.jsonl")
    assert [(x.id, x.instruction, x.unseen) for x in written] == [(x.id, x.instruction, x.unseen) for x in items]
    assert (written[0].pixels() == items[0].pixels()).all() and written[0].truth("") is None


# ---- what a manifest that somebody shares may name


def test_pictures_of_elsewhere_are_copied_beside_the_manifest_and_those_below_it_stay(tmp_path, own):
    assert all(item.path.is_relative_to(own.parent) for item in data.load(own))
    build.from_csv(tmp_path / "own.csv", tmp_path / "beside.jsonl")
    assert [item.image for item in data.load(tmp_path / "beside.jsonl")] == [f"pictures/{i}.png" for i in range(3)]
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(data.load(tmp_path / "moved" / "manifest.jsonl")) == 3, "it is shared with its pictures"


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "a/../../secret.png", "link.png", "folder/secret.png", "a\0b"]
)
def test_a_manifest_reads_no_picture_outside_its_folder(tmp_path, own, name):
    picture(own.parent.parent / "secret.png", 7)
    (own.parent / "link.png").symlink_to(own.parent.parent / "secret.png")
    (own.parent / "folder").symlink_to(own.parent.parent)
    first, *rest = lines(own)
    own.write_text("\n".join(map(json.dumps, [first | {"image": name, "sha256": ""}, *rest])))
    with pytest.raises(InputError, match="in the manifest's folder or below"):
        data.load(own)
    (tmp_path / "copy").mkdir()
    row = {"file_name": name, "original_prompt": "a lake", "edit_prompt": "snow"}
    (tmp_path / "copy" / "metadata.jsonl").write_text(json.dumps(row))
    for link in ("link.png", "folder"):
        (tmp_path / "copy" / link).symlink_to(own.parent / link)
    with pytest.raises(InputError, match="in this folder or below"):
        build.from_instructpix2pix(tmp_path / "copy", tmp_path / "chosen")
    if "\0" not in name:
        (tmp_path / "copy" / "own.csv").write_text(f"image,instruction\n{name},make it dark\n")
        with pytest.raises(InputError, match="beside the table or below"):
            build.from_csv(tmp_path / "copy" / "own.csv", tmp_path / "copy" / "manifest.jsonl")
        assert not (tmp_path / "copy" / "manifest.jsonl").exists()


def test_what_is_no_picture_is_not_frozen_as_one(tmp_path, capsys):
    (tmp_path / "passwd").write_text("root:x:0:0")
    (tmp_path / "own.csv").write_text("image,instruction\npasswd,make it dark\n")
    assert cli.main(["data", "csv", str(tmp_path / "own.csv"), str(tmp_path / "m.jsonl")]) == 2
    assert "passwd" in capsys.readouterr().err and not (tmp_path / "m.jsonl").exists()


ODD_LINES = {
    "deep": "[" * 100_000,
    "a long number": '{"id": ' + "9" * 100_000 + "}",
    "half a character": json.dumps(
        {"id": "0", "category": "", "image": "a.png", "instruction": "\ud800", "unseen": []}
    ),
    "a list": "[]",
    "long": '"' + "x" * 10**6,
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_an_absurd_line_is_refused_in_one_bounded_sentence(tmp_path, capsys, line):
    for name in ("manifest.jsonl", "metadata.jsonl"):
        (tmp_path / name).write_text(line)
    for words in (["check", tmp_path / "manifest.jsonl"], ["instructpix2pix", tmp_path, "--out", tmp_path / "out"]):
        assert cli.main(["data", *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and len(said) < 1100 and ".jsonl:1: expected" in said
