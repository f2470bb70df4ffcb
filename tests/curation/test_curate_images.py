"""Images of records: every spelling, every refusal, what the artifact holds, and that text alone stays as it is."""

import base64
import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curating import SHARED, curate, jsonl
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.core.build import Workshop
from tasks.core.store import Store
from tasks.curate import INSTRUCTIONS, InstructionsSpec
from tasks.reading.images import PLACEHOLDER, attach, brings_images, unfolded
from tasks.reading.rows import Item
from tasks.reading.spec import SourceEntry
from tasks.reading.turns import Refused

ANSWER = {"role": "assistant", "content": "Red."}


def picture(colour="red", size=(8, 6), kind="PNG") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, kind)
    return held.getvalue()


def name(data: bytes, kind="png") -> str:
    return f"{hashlib.sha256(data).hexdigest()}.{kind}"


RED, BLUE = picture("red"), picture("blue", kind="JPEG")
NAMES = [name(RED), name(BLUE, "jpg")]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a red and a blue picture, and a few that are none."""
    place = tmp_path / "pictures"
    (place / "deep").mkdir(parents=True)
    (place / "red.png").write_bytes(RED)
    (place / "deep" / "blue.jpg").write_bytes(BLUE)
    (place / "words.png").write_text("these are words")
    (place / "torn.png").write_bytes(picture(size=(90, 90), kind="BMP")[:5000])
    (place / "large.png").write_bytes(picture(size=(100, 101)))
    Image.new("RGB", (4, 4)).save(place / "odd.ppm")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(place / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "outside.png").write_bytes(RED)
    return place


def user(content) -> dict:
    return {"role": "user", "content": content}


def part(**source) -> dict:
    return {"type": "image", **source}


def said(text) -> dict:
    return {"type": "text", "text": text}


TWO = ["red.png", "deep/blue.jpg"]
SPELLINGS = {
    "TRL, parts and a column": {
        "messages": [user([part(), said("What is this?"), part()]), ANSWER], "images": TWO},
    "TRL, parts that name their image": {
        "messages": [user([part(path="red.png"), said("What is this?"), part(image="deep/blue.jpg")]), ANSWER]},
    "TRL, prompt and completion": {
        "prompt": [user([part(), said("What is this?"), part()])], "completion": [ANSWER], "images": TWO},
    "one named, one from the column": {
        "messages": [user([part(path="red.png"), said("What is this?"), part()]), ANSWER], "images": ["deep/blue.jpg"]},
    "nulls as tables have them": {
        "messages": [user([part(text=None, path=None), {"type": "text", "text": "What is this?", "path": None}, part()]), ANSWER],
        "images": [{"bytes": None, "path": path} for path in TWO]},
    "OpenAI": {
        "messages": [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(RED).decode()}},
                           said("What is this?"), part(base64=base64.b64encode(BLUE).decode())]), ANSWER]},
    "LLaMA-Factory": {"messages": [user("<image>What is this?<image>"), ANSWER], "images": TWO},
    "LLaMA-Factory, sharegpt": {
        "conversations": [{"from": "human", "value": "<image>What is this?<image>"}, {"from": "gpt", "value": "Red."}],
        "images": TWO},
    "LLaMA-Factory, alpaca": {"instruction": "<image>What is this?<image>", "output": "Red.", "images": TWO},
    "ms-swift, tags": {"query": "<img>red.png</img>What is this?<img>deep/blue.jpg</img>", "response": "Red."},
    "ms-swift, column": {"query": "<image>What is this?<image>", "response": "Red.", "images": TWO},
}  # fmt: skip


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_gives_the_same_row(tmp_path, folder, row):
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", [row]), images=folder, heldout=0)
    assert done.reasons == []
    assert done.kept[0]["messages"] == [user("<image>What is this?<image>"), ANSWER]
    assert done.kept[0]["images"] == NAMES
    assert {file.name: file.read_bytes() for file in (done.out / "images").iterdir()} == dict(
        zip(NAMES, (RED, BLUE), strict=True)
    )


PAIRS = {
    "TRL": {"prompt": [user([part(), said("What?")])], "chosen": [ANSWER], "images": ["red.png"],
            "rejected": [{"role": "assistant", "content": "Blue."}]},
    "TRL, prompt told twice": {
        "chosen": [user([part(), said("What?")]), ANSWER],
        "rejected": [user([part(), said("What?")]), {"role": "assistant", "content": [said("Blue.")]}], "images": ["red.png"]},
    "TRL, texts": {"prompt": "What?", "chosen": "Red.", "rejected": "Blue.", "image": "red.png"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<image>What?"}], "chosen": {"from": "gpt", "value": "Red."},
        "rejected": {"from": "gpt", "value": "Blue."}, "images": ["red.png"]},
}  # fmt: skip


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_every_pair_gives_the_same_row(tmp_path, folder, row):
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [row]), images=folder, heldout=0)
    assert done.reasons == []
    kept = done.kept[0]
    assert (kept["prompt"], kept["chosen"], kept["rejected"]) == ([user("<image>What?")], "Red.", "Blue.")
    assert kept["images"] == NAMES[:1]


def test_unpaired_labels_are_paired_under_one_image(tmp_path, folder):
    rows = [
        {"messages": [user("<image>What?"), {"role": "assistant", "content": text}], "label": liked, "images": [image]}
        for text, liked, image in (("Red.", True, "red.png"), ("No.", False, "deep/blue.jpg"), ("Blue.", False, "red.png"))
    ]
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows), images=folder, heldout=0)
    assert [(row["chosen"], row["rejected"], row["images"]) for row in done.kept] == [("Red.", "Blue.", NAMES[:1])]
    assert done.reasons == [(2, "no liked answer left for the prompt")]


def test_images_without_a_place_come_before_the_first_words(tmp_path, folder):
    rows = [
        {"messages": [{"role": "system", "content": "Look."}, user("What?"), ANSWER], "images": TWO},
        {"query": "And?", "response": "Red.", "history": [["What?", "A picture."]], "images": TWO},
        {"messages": [{**user("What now?"), "images": TWO}, ANSWER]},
    ]
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), images=folder, heldout=0)
    assert [[turn["content"] for turn in row["messages"]] for row in done.kept] == [
        ["Look.", "<image><image>What?", "Red."],
        ["<image><image>What?", "A picture.", "And?", "Red."],
        ["<image><image>What now?", "Red."],
    ]
    assert [row["images"] for row in done.kept] == [NAMES] * 3


def test_a_prompt_keeps_its_images(tmp_path, folder):
    done = curate(tmp_path, "prompts", jsonl(tmp_path / "x.jsonl", [SPELLINGS["LLaMA-Factory"]]), images=folder)
    assert [(row["prompt"], row["reference"], row["images"]) for row in done.kept] == [
        ([user("<image>What is this?<image>")], "Red.", NAMES)
    ]


REFUSED = {
    "image missing: gone.png": {"images": ["gone.png"]},
    "not an image: words.png": {"images": ["words.png"]},
    "image damaged: torn.png": {"images": ["torn.png"]},
    "image too large: 100 x 101 pixels, large.png": {"images": ["large.png"]},
    "unknown image format: PPM, odd.ppm": {"images": ["odd.ppm"]},
    "image with several frames: moving.gif": {"images": ["moving.gif"]},
    "image outside its folder: ../outside.png": {"images": ["../outside.png"]},
    "image outside its folder: /etc/hostname": {"images": ["/etc/hostname"]},
    "image by address, and nothing is fetched: https://x.org/a.png": {"images": ["https://x.org/a.png"]},
    "not an image: broken base64": {"images": ["data:image/png;base64,!!"]},
    "not an image: the bytes given": {"images": ["data:image/png;base64,aGVsbG8="]},
    "an image without bytes or path": {"images": [{"height": 3}]},
    "places and images differ in number: 1 and 2": {"images": TWO},
    "places and images differ in number: 1 and 0": {"images": []},
}


def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path, folder):
    rows = [{"messages": [user("<image>What?"), ANSWER], **more} for more in REFUSED.values()]
    rows.append({"messages": [user("What?"), {"role": "assistant", "content": "<image>"}], "images": ["red.png"]})
    rows.append({"messages": [user("<image>What?"), ANSWER], "images": ["red.png"]})
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), images=folder, heldout=0, max_image_pixels=10_000)
    assert [reason for _, reason in done.reasons] == [*REFUSED, "an image in an answer"]
    assert done.metrics["rows_in"] == len(rows) == done.metrics["rows_kept"] + done.metrics["rows_quarantined"]
    assert [row["line"] for row in done.kept] == [len(rows)]
    assert [file.name for file in (done.out / "images").iterdir()] == NAMES[:1]  # of what is kept, and of nothing else


def test_a_text_that_says_image_is_only_a_text(tmp_path):
    rows = [{"messages": [user("What does <image> mean in HTML?"), {"role": "assistant", "content": "Nothing; try <img>."}]}]
    rows.append({"prompt": "Write '<image>' twice.", "completion": "<image><image>"})
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), heldout=0)
    assert [[turn["content"] for turn in row["messages"]] for row in done.kept] == [
        ["What does <image> mean in HTML?", "Nothing; try <img>."],
        ["Write '<image>' twice.", "<image><image>"],
    ]
    assert "images" not in done.kept[0]  # the columns of text alone are what they were
    assert not (done.out / "images").exists()
    assert not done.metrics.keys() & {"images"}


def test_beside_images_a_row_of_text_alone_has_none(tmp_path, folder):
    rows = [SPELLINGS["LLaMA-Factory"], {"messages": [user("What is <image>?"), ANSWER]}]
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), images=folder, heldout=0)
    assert [(row["messages"][0]["content"], row["images"]) for row in done.kept] == [
        ("<image>What is this?<image>", NAMES),
        ("What is <image>?", None),
    ]


def test_rows_are_the_same_when_text_and_bytes_are(tmp_path, folder):
    (folder / "copy.png").write_bytes(RED)
    rows = [{"messages": [user("<image>What?"), ANSWER], "images": [image]} for image in ("red.png", "copy.png", "deep/blue.jpg")]
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), images=folder, heldout=0)
    assert [(row["line"], row["images"]) for row in done.kept] == [(1, NAMES[:1]), (3, NAMES[1:])]
    assert done.reasons == [(2, "exact duplicate: x.jsonl:1")]


def test_one_image_is_never_on_both_sides_and_one_question_may_be(tmp_path):
    rows = [
        {"messages": [user(f"<image>{question}"), ANSWER],
         "images": [{"base64": base64.b64encode(picture((i, 0, 0))).decode()}]}
        for i in range(40) for question in ("What colour?", "How dark?")
    ]  # fmt: skip
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows), heldout=0.5)
    sides = [{row["images"][0] for row in done.rows(side)} for side in ("train", "heldout")]
    assert done.metrics["conversations"] == 40
    assert min(map(len, sides)) > 5
    assert not sides[0] & sides[1]


def test_in_a_folder_images_are_found_from_the_file_that_names_them(tmp_path):
    for place, image in ((tmp_path / "data", "red.png"), (tmp_path / "data" / "deep", "../deep/blue.jpg")):
        place.mkdir()
        (place / Path(image).name).write_bytes(RED if image == "red.png" else BLUE)
        jsonl(place / "rows.jsonl", [{"messages": [user("<image>What?"), ANSWER], "images": [image]}])
    done = curate(tmp_path, "instructions", tmp_path / "data", heldout=0)
    assert [row["images"] for row in done.kept] == [[NAMES[1]], [NAMES[0]]]
    outside = jsonl(tmp_path / "data" / "deep" / "rows.jsonl", [{"messages": [user("What?"), ANSWER], "images": ["../red.png"]}])
    done = curate(tmp_path, "instructions", tmp_path / "data", heldout=0)
    assert done.reasons == [(1, "image outside its folder: ../red.png")]
    assert outside.exists()


def test_a_table_of_bytes_needs_no_folder(tmp_path):
    column = pa.array([[{"bytes": RED, "path": "a.png"}]], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    texts = pa.array([[user("<image>What?"), ANSWER]])
    pq.write_table(pa.table({"messages": texts, "images": column}), tmp_path / "x.parquet")
    done = curate(tmp_path, "instructions", tmp_path / "x.parquet", heldout=0)
    assert [row["images"] for row in done.kept] == [NAMES[:1]]
    with pytest.raises(Exception, match="not an image"):
        broken = pa.array([[{"bytes": b"\x00" * 5000, "path": "a.png"}]], column.type)
        pq.write_table(pa.table({"messages": texts, "images": broken}), tmp_path / "y.parquet")
        curate(tmp_path, "instructions", tmp_path / "y.parquet", heldout=0)


def test_the_key_follows_the_bytes_and_the_artifact_names_no_path(tmp_path, folder):
    rows = jsonl(tmp_path / "x.jsonl", [SPELLINGS["LLaMA-Factory"]])
    shop = Workshop(Store(tmp_path / "store"), tmp_path / "models")
    spec = InstructionsSpec(sources=(SourceEntry(path=rows, images=folder).identity(),), heldout=0)
    inputs = {"0": rows, "0.images": folder}
    first, built = shop.build(INSTRUCTIONS, spec, inputs)
    assert built
    assert not shop.build(INSTRUCTIONS, spec, inputs)[1]
    assert all(str(folder).encode() not in file.read_bytes() for file in first.path.rglob("*") if file.is_file())
    (folder / "red.png").write_bytes(picture("green"))
    second, built = shop.build(INSTRUCTIONS, spec, inputs)
    assert built
    assert second.digest != first.digest


@pytest.mark.parametrize("kind", ["texts", "labelled"])
def test_other_kinds_have_no_images(tmp_path, folder, kind):
    rows = [{"text": "a", "label": "b"}, {"text": "a red thing", "label": "c", "image": "red.png"}]
    done = curate(tmp_path, kind, jsonl(tmp_path / "x.jsonl", rows), images=folder)
    assert done.reasons == [(2, "images, sound and video are not supported here")]


@pytest.mark.parametrize("given_folder", [False, True])
def test_the_shared_multimodal_rows_lack_their_images_and_say_so(tmp_path, given_folder):
    path = SHARED / "llamafactory" / "mllm_demo.json"
    swift = SHARED / "ms-swift" / "multi_modal_1.jsonl"
    if not path.is_file():
        pytest.skip("needs the shared data")
    done = curate(tmp_path, "instructions", path, swift, images=path.parent if given_folder else None, heldout=0)
    why = "image missing" if given_folder else "no folder of images was given"
    numbers = [1, 2, 3, 1, 2, 3]
    reasons = {(row["source"], row["reason"].partition("jpeg")[0]) for row in done.rows("quarantine")}
    address = "image by address, and nothing is fetched: https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen-VL/assets/demo."
    assert reasons == {
        *(("mllm_demo.json", f"{why}: mllm_demo_data/{number}.jpg") for number in numbers),
        ("multi_modal_1.jsonl", address),
    }
    assert (done.metrics["rows_in"], done.metrics["rows_kept"], done.metrics["rows_quarantined"]) == (9, 1, 8)


def test_the_shared_multimodal_rows_are_kept_once_their_images_are_there(tmp_path):
    path = SHARED / "llamafactory" / "mllm_demo.json"
    if not path.is_file():
        pytest.skip("needs the shared data")
    (tmp_path / "mllm_demo_data").mkdir()
    for i, colour in enumerate(("red", "green", "blue"), 1):
        (tmp_path / "mllm_demo_data" / f"{i}.jpg").write_bytes(picture(colour, kind="JPEG"))
    done = curate(tmp_path, "instructions", path, images=tmp_path, heldout=0)
    assert [len(row["images"]) for row in done.kept] == [2, 1, 1, 2, 1, 1]
    assert done.kept[0]["messages"][2] == user("What are they doing?<image>")


_WORDS = st.text(alphabet="ab<> \n", max_size=6).filter(lambda text: PLACEHOLDER not in text)
_PART = st.one_of(_WORDS.map(said), st.just(part()))


@given(st.lists(st.lists(_PART, min_size=1, max_size=4), min_size=1, max_size=3))
def test_places_and_images_are_always_as_many_in_the_order_of_the_parts(turns):
    images = [f"{i}.png" for i in range(sum(entry["type"] == "image" for turn in turns for entry in turn))]
    row = {"messages": [message for turn in turns for message in (user(turn), ANSWER)], "images": images}
    plain, found = unfolded(row)
    told = [message["content"] for message in plain["messages"] if message["role"] == "user"]
    assert brings_images(row)
    assert found == images
    assert [text.count(PLACEHOLDER) for text in told] == [sum(entry["type"] == "image" for entry in turn) for turn in turns]
    attach([Item(messages=plain["messages"])], found)
    with pytest.raises(Refused, match="differ in number"):
        unfolded({**row, "images": [*images, "more.png"]}) if any(images) else attach(
            [Item(messages=plain["messages"])], ["more.png"]
        )
