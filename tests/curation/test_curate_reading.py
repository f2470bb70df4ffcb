# ruff: noqa: RUF001  text in other scripts is the point
"""Reading: every compression, encoding and layout gives the same rows; what is broken is one error or one refused record."""

import bz2
import gzip
import json
import lzma
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from curating import curate, jsonl, pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import AlignError, DataError, MachineError, SpecError
from tasks.reading.spec import SourceEntry, SourceSpec

ROWS = [pair("Été?", "Ja, schön.", "Nein.", note="ü"), pair("为什么？", "因为下雨。", "不知道的。"), pair("c", "d\ne", "f")]
SIDES = [(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def sides(done):
    return [(row["prompt"][0]["content"], row["chosen"], row["rejected"]) for row in done.kept]


def layouts(tmp_path):
    """The same rows in every layout: name -> bytes."""
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "table")
    cells = [["prompt", "chosen", "rejected"], *([row["prompt"], row["chosen"], row["rejected"]] for row in ROWS)]
    quoted = [['"' + cell + '"' for cell in row] for row in cells]
    return {
        "rows.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
        "rows.json": json.dumps(ROWS, indent=2).encode(),
        "one-line.json": json.dumps(ROWS, ensure_ascii=False).encode(),
        "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "rows.csv": "\r\n".join(",".join(row) for row in quoted).encode(),
        "rows.tsv": "\n".join("\t".join(row) for row in quoted).encode(),
        "rows.parquet": (tmp_path / "table").read_bytes(),
    }


@pytest.mark.parametrize("packed", [None, *PACK])
def test_every_layout_and_compression_gives_the_same_rows(tmp_path, packed):
    paths = []
    for name, body in layouts(tmp_path).items():
        path = tmp_path / (name if packed is None else f"{name}.{packed}")
        path.write_bytes(body if packed is None else PACK[packed](body))
        paths.append(path)
    done = curate(tmp_path, "preferences", *paths, sources=[{"name": path.name} for path in paths])
    assert done.metrics["rows_in"] == len(paths) * 3
    assert [row["reason"].split(":")[0] for row in done.rows("quarantine")] == ["exact duplicate"] * (len(paths) - 1) * 3
    assert sides(done) == SIDES


@pytest.mark.parametrize("name", ["gz", "bz2", "xz", "zst"])
def test_the_name_of_a_file_does_not_decide(tmp_path, name):
    path = tmp_path / "rows.csv"
    path.write_bytes(PACK[name](layouts(tmp_path)["rows.jsonl"]))
    assert sides(curate(tmp_path, "preferences", path)) == SIDES


@pytest.mark.parametrize("name", list(PACK))
def test_a_truncated_stream_is_an_error_and_not_an_end(tmp_path, name):
    path = tmp_path / f"rows.jsonl.{name}"
    body = "".join(json.dumps(pair(f"{i} {i * 7919 % 1013}", f"a{i * 31 % 997}", "b")) + "\n" for i in range(5000)).encode()
    packed = PACK[name](body)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged or cut off"):
        curate(tmp_path, "preferences", path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_unicode_encodings_are_told_from_the_bytes(tmp_path, encoding, name):
    path = tmp_path / name
    path.write_bytes(layouts(tmp_path)[name].decode().encode(encoding))
    assert sides(curate(tmp_path, "preferences", path)) == SIDES


def test_gbk_and_cp1252_are_told_apart(tmp_path):
    chinese = [pair("今天的天气怎么样？", "今天是晴天，有一点风，不会下雨。", "我不知道。")]
    western = [pair("Où est le café ?", "Près de l’église, à côté de la mairie.", "Là-bas.")]
    for rows, encoding in ((chinese, "gbk"), (western, "cp1252")):
        path = tmp_path / f"{encoding}.jsonl"
        path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(encoding))
        assert sides(curate(tmp_path, "preferences", path)) == [(rows[0]["prompt"], rows[0]["chosen"], rows[0]["rejected"])]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Příliš žluťoučký kůň úpěl ďábelské ódy.", "cp1250"), ("Съешь ещё этих мягких французских булок", "cp1251"),
     ("다람쥐 헌 쳇바퀴에 타고파", "euc_kr"), ("いろはにほへと ちりぬるを", "shift_jis"), ("Şişli'de ğüzel ıspanak", "cp1254")],
)  # fmt: skip
def test_an_unclear_encoding_is_an_error_until_it_is_named(tmp_path, text, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(pair(text), ensure_ascii=False).encode(encoding))
    with pytest.raises(DataError, match="name it with `encoding`"):
        curate(tmp_path, "preferences", path)
    assert sides(curate(tmp_path, "preferences", path, sources=[{"encoding": encoding}]))[0][0] == text


def test_one_broken_line_is_refused_and_the_others_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(pair("schön"), ensure_ascii=False).encode()
    path.write_bytes(good + b'\n{"prompt": "caf\xe9"}\n' + json.dumps(pair("grün"), ensure_ascii=False).encode() + b"\n")
    done = curate(tmp_path, "preferences", path)
    assert done.reasons == [(2, "not utf-8")] and done.rows("quarantine")[0]["raw"] == '{"prompt": "caf\\xe9"}'


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems_separate_rows_and_nothing_else_does(tmp_path, ends):
    path = tmp_path / "rows.jsonl"
    rows = [pair("a\u2028b\x85c"), pair("d")]
    path.write_bytes(ends.join(["", *(json.dumps(row, ensure_ascii=False) for row in rows), "", " "]).encode())
    done = curate(tmp_path, "preferences", path)
    assert [(row["line"], row["prompt"][0]["content"]) for row in done.kept] == [(2, "a\u2028b\x85c"), (3, "d")]


def test_what_json_readers_lose_or_bend_is_refused_with_its_reason(tmp_path):
    good = json.dumps(pair())
    lines = ["null", "{", good + good, "[1]", "7", '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
             '{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "[" * 3000, json.dumps(pair("a\0b")),
             '{"prompt": "a", "chosen": NaN, "rejected": "b"}', "{'prompt': 'a'}", "1" * 5000]  # fmt: skip
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [good, *lines]))
    assert [reason.split(":")[0] for _, reason in done.reasons] == [
        "not an object", "not JSON", "not JSON", "not an object", "not an object", "half a surrogate pair in the text",
        "a key appears twice", "not JSON", "a NUL character in the text", "chosen answer is not text", "not JSON", "not JSON",
    ]  # fmt: skip
    assert [row["raw"] for row in done.rows("quarantine")] == lines and done.metrics["rows_kept"] == 1


def test_ragged_rows_are_refused_and_an_open_quote_is_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected\na,b,c\nd,e\nf,g,h,i\n\n"k\nl",m,n\n"o"p,q,r\ns,t,u\n')
    done = curate(tmp_path, "preferences", path)
    assert [(row["line"], row["prompt"][0]["content"]) for row in done.kept] == [(2, "a"), (6, "k\nl"), (9, "s")]
    assert [line for line, _ in done.reasons] == [3, 4, 8] and done.reasons[0][1] == "ragged row: 2 cells under 3 columns"
    path.write_text('prompt,chosen,rejected\na,b,c\n"d,e,f\ng,h,i\n')
    with pytest.raises(DataError, match="a quote opened at line 3 is never closed"):
        curate(tmp_path, "preferences", path)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n \n", "empty"),
        ("a.json", b'[{"a": 1}, {"a":', "is the file complete"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "a comma is missing"),
        ("a.json", b'[{"a": 1}', "not closed"),
        ("a.parquet", b"PAR1 and nothing more", "Parquet file is damaged"),
        ("a.csv", b"a,a\n1,2\n", "names 'a' twice"),
        ("a.zip", b"PK\x03\x04....", "zip archive"),
        ("a.bin", b"\x7fELF" + bytes(range(9)) * 90, "binary content"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name, body, said):
    path = tmp_path / name
    path.write_bytes(body)
    with pytest.raises(DataError, match=said) as error:
        curate(tmp_path, "preferences", path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        curate(tmp_path, "texts", tmp_path / "none.txt")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
            st.fixed_dictionaries({key: st.text(max_size=3) for key in ("prompt", "chosen", "rejected")}).map(
                lambda row: json.dumps(row).encode()
            ),
            st.recursive(st.none() | st.booleans() | st.text(max_size=2), lambda x: st.dictionaries(st.sampled_from(
                ["prompt", "chosen", "rejected", "messages", "role", "content", "label", "completion"]), x) | st.lists(x)).map(
                lambda value: json.dumps(value).encode()
            ),
        ),
        max_size=8,
    ),
    name=st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.txt", "x"]),
    kind=st.sampled_from(["preferences", "instructions", "prompts", "texts"]),
)  # fmt: skip
def test_whatever_the_bytes_every_record_is_kept_or_quarantined_or_the_file_is_refused(tmp_path, lines, name, kind):
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    for old in tmp_path.glob("out-*"):
        shutil.rmtree(old)
    try:
        done = curate(tmp_path, kind, path)
    except DataError:
        return
    metrics = done.metrics
    assert metrics["rows_in"] == metrics["rows_kept"] + metrics["rows_quarantined"]
    assert len({row["line"] for row in done.kept}) == metrics["rows_kept"] and len(done.reasons) == metrics["rows_quarantined"]


def test_a_folder_is_read_file_by_file(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in ("b", "a"):
        jsonl(folder / f"{part}.jsonl", [pair(part)])
    assert [row["source"] for row in curate(tmp_path, "preferences", folder).kept] == ["parts/a.jsonl", "parts/b.jsonl"]


def test_a_saved_data_set_is_read_and_its_split_is_asked_for(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "flat")
    datasets.DatasetDict({"good": table, "other": table.select([0])}).save_to_disk(tmp_path / "splits")
    assert sides(curate(tmp_path, "preferences", tmp_path / "flat")) == SIDES
    with pytest.raises(DataError, match="it has the splits good, other"):
        curate(tmp_path, "preferences", tmp_path / "splits")
    assert sides(curate(tmp_path, "preferences", tmp_path / "splits", sources=[{"split": "other"}])) == SIDES[:1]


def test_a_hub_data_set_needs_a_commit_and_is_loaded_at_it(tmp_path, monkeypatch):
    for revision in (None, "main", "b179"):
        with pytest.raises(SpecError, match="40-hex commit"):
            SourceSpec(name="x", hub="owner/name", revision=revision)
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        if len(asked) > 1:
            raise ConnectionError("offline")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    entry = SourceEntry(hub="owner/name", revision=commit).identity()
    done = curate(tmp_path, "preferences", tmp_path, sources=[entry.model_dump()])
    assert sides(done) == SIDES and done.kept[0]["source"] == "owner/name"
    assert asked == [("owner/name", {"name": None, "revision": commit})]
    with pytest.raises(MachineError, match="cannot be reached"):
        curate(tmp_path, "preferences", tmp_path, sources=[entry.model_dump()])


def test_a_source_entry_keeps_its_path_out_of_its_identity(tmp_path):
    here, there = (SourceEntry(path=tmp_path / folder / "rows.jsonl", schema="pairs") for folder in ("a", "b"))
    assert here.identity() == there.identity() == SourceSpec(name="rows.jsonl", schema="pairs")
    with pytest.raises(SpecError, match="either `path` or `hub`"):
        SourceEntry(name="x")
    with pytest.raises(AlignError):
        SourceSpec(name="x", encoding="klingon")
