"""Files of every shape to examples; splits, answers, bad rows."""

import csv
import dataclasses
import hashlib
import json

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from jinstr import errors
from jinstr.data import aozora, bad_rows, formats, sources, splits

ROWS = {
    "text": {"id": "d1", "text": "本文です。"},
    "alpaca": {"instruction": "問い", "input": "材料", "output": "答え"},
    "dolly": {
        "instruction": "問い",
        "input": "",
        "output": "答え",
        "category": "open_qa",
        "index": "3",
    },
    "ichikara": {"ID": "x-1", "text": "問い", "output": "答え"},
    "jaster": {
        "ID": "j",
        "instruction": "問い",
        "input": "材料",
        "output": "答え",
        "text": "問い材料答え",
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "問い"},
            {"role": "assistant", "content": "答え"},
        ]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "問い"}, {"from": "gpt", "value": "答え"}]
    },
    "utterances": {
        "id": "u",
        "utterances": [{"name": "user", "text": "問い"}, {"name": "agent", "text": "答え"}],
    },
    "preference": {"prompt": "問い", "chosen": "良い", "rejected": "悪い"},
    "ranking": {"prompt": "問い", "responses": ["良い", "並", "悪い"], "ranks": [1, 2, 2]},
    "jcommonsenseqa": {"q_id": 7, "question": "どれ", "label": 2}
    | {f"choice{n}": f"候補{n}" for n in range(5)},
}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def read(path, **settings):
    return list(sources.read(sources.SourceConfig(path=str(path), **settings)))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_shape_is_told_by_its_keys(name, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[name]])
    assert formats.fits(ROWS[name]) == [name]
    source = sources.SourceConfig(path=path)
    (example,) = sources.read(source)
    assert sources.kind(source) == formats.FORMATS[name].kind
    if "roles" in example and name not in ("preference", "ranking", "jcommonsenseqa"):
        assert example["contents"][0] == "問い" and example["contents"][-1] == "答え"
        assert example["roles"][-1] == "assistant" and example["weight"] == 1.0


def test_a_row_that_fits_several_shapes_is_refused(tmp_path):
    row = ROWS["preference"] | ROWS["ranking"]
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(
        errors.DataError, match=r"a.jsonl:1: .*fits preference and ranking; say FORMAT="
    ):
        read(path)
    assert read(path, format="preference")[0]["chosen"] == "良い"


def test_a_row_that_fits_none_names_its_fields(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"質問": "問い", "回答": "答え"}])
    with pytest.raises(errors.DataError, match="fields 質問, 回答 fits no format.*FIELDS="):
        read(path)
    assert read(path, fields="instruction=質問,output=回答")[0]["contents"] == ["問い", "答え"]


def test_one_table_in_every_kind_of_file(tmp_path):
    """JSON Lines, a JSON array, xlsx, CSV in Shift_JIS, TSV and parquet hold the same examples."""
    rows = [{"質問": f"問い{n}", "回答": f"答え\n{n}", "番号": str(n)} for n in range(5)]
    write_jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "array.txt").write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([row["質問"], row["回答"], int(row["番号"])])
    book.save(tmp_path / "sheet.dat")
    for name, delimiter, encoding in (("t.csv", ",", "cp932"), ("t.tsv", "\t", "utf-8")):
        with (tmp_path / name).open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.bin")
    fields = "instruction=質問,output=回答,id=番号"
    found = {path.name: read(path, fields=fields) for path in sorted(tmp_path.iterdir())}
    assert len(found) == 6
    first = found.pop("lines.json")
    assert [e["contents"] for e in first] == [[r["質問"], r["回答"]] for r in rows]
    for name, examples in found.items():
        assert examples == first, name


def test_a_bad_row_of_people_s_data_stops_with_its_place(tmp_path):
    rows = [ROWS["ichikara"], {"ID": "2", "text": "問い", "output": None}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        errors.DataError, match=r"a.jsonl:2: no output \(fields: ID, text, output\)"
    ):
        read(path)
    report = bad_rows.Report()
    source = sources.SourceConfig(path=path, on_bad="skip")
    assert len(list(sources.read(source, report))) == 1
    assert report.dropped == {"bad row: missing field": 1} and "a.jsonl:2" in report.bad[0]


def test_bad_lines_of_text_are_counted_and_capped(tmp_path):
    lines = [json.dumps({"text": f"文{n}"}) for n in range(300)]
    lines[7] = '{"text": '
    (tmp_path / "web.jsonl").write_text("\n".join(lines), "utf-8")
    report = bad_rows.Report()
    source = sources.SourceConfig(path=str(tmp_path / "web.jsonl"))
    assert len(list(sources.read(source, report))) == 299 and report.dropped == {
        "bad row: not JSON": 1
    }
    lines[100:150] = ["{"] * 50
    (tmp_path / "web.jsonl").write_text("\n".join(lines), "utf-8")
    with pytest.raises(errors.DataError, match="of .* rows are bad"):
        list(sources.read(source))


def test_several_answers_share_a_weight(tmp_path):
    rows = [
        {"ID": "1", "text": "問い", "output": ["甲", "乙"]},
        {"ID": "2", "text": " 問い", "output": "丙"},
    ]
    rows.append({"ID": "3", "text": "別の問い", "output": "丁"})
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    every = read(path)
    assert [e["weight"] for e in every] == [1 / 3, 1 / 3, 1 / 3, 1.0]
    assert [e["id"] for e in every] == ["1", "1#2", "2", "3"]
    assert [e["contents"][-1] for e in read(path, answers="first")] == ["甲", "丁"]
    rotated = read(path, answers="rotate")
    assert len(rotated) == 2 and all(e["weight"] == 1.0 for e in rotated)


def test_dialogues_that_open_alike_are_not_answers_to_one_question(tmp_path):
    """Weights go by the whole prompt; splits go by the first turn."""

    def row(*texts):
        turns = [{"name": ("user", "agent")[n % 2], "text": text} for n, text in enumerate(texts)]
        return {"utterances": turns}

    rows = [row("こんにちは", "はい", f"問い{n}", f"答え{n}") for n in range(4)]
    rows += [row("こんにちは", "はい", "問い0", "別の答え")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    every = read(path)
    assert [e["weight"] for e in every] == [0.5, 1.0, 1.0, 1.0, 0.5]
    assert {e["group"] for e in every} == {"こんにちは"}
    assert len(read(path, answers="first")) == len(read(path, answers="rotate")) == 4
    # Other groups to split by change no weight.
    path = write_jsonl(tmp_path / "a.jsonl", [r | {"author": "甲"} for r in rows])
    assert [e["weight"] for e in read(path, group_by="author")] == [0.5, 1.0, 1.0, 1.0, 0.5]


def test_texts_are_told_apart_by_id_over_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "一"}, {"id": "y", "text": "二"}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "y", "text": "二"}, {"id": "z", "text": "三"}])
    report = bad_rows.Report()
    source = sources.SourceConfig(path=f"{tmp_path}/a.jsonl+{tmp_path}/b.jsonl")
    assert [e["id"] for e in sources.read(source, report)] == ["x", "y", "z"]
    assert report.dropped == {"same id": 1}


def test_holdout_parts_are_the_whole_and_agree_over_files(tmp_path):
    rows = [{"ID": str(n), "text": f"問い{n % 150}", "output": f"答え{n}"} for n in range(300)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = sources.SourceConfig(path=path, holdout=0.2)
    parts = {}
    for part in ("train", "heldout", "all"):
        found = sources.read(dataclasses.replace(source, part=part))
        parts[part] = [e["id"] for e in found]
    assert sorted(parts["train"] + parts["heldout"]) == sorted(parts["all"])
    assert 20 <= len(parts["heldout"]) <= 100
    # Preferences about the same prompts fall on the same side.
    held = {e["group"] for e in sources.read(dataclasses.replace(source, part="heldout"))}
    pairs = [{"prompt": f"問い{n}　", "chosen": "甲", "rejected": "乙"} for n in range(150)]
    other = write_jsonl(tmp_path / "b.jsonl", pairs)
    found = read(other, holdout=0.2, part="heldout")
    assert {e["group"] for e in found} == held
    assert len(held) == len(found) > 0


def test_excluded_prompts_are_left_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS["ichikara"], ROWS["ichikara"] | {"ID": "x-2"}])
    (tmp_path / "out.txt").write_text("ｘ-2\n", "utf-8")  # full width: compared after NFKC
    assert [e["id"] for e in read(path, exclude=str(tmp_path / "out.txt"))] == ["x-1"]


def test_greedy_split_by_a_slow_twin():
    sizes = {f"作者{n}": (n * 7919) % 1000 + 1 for n in range(300)} | {"大作家": 60_000}
    chosen, total = [], sum(sizes.values())
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sizes[name] > 0.01 * total:
            continue
        if sum(sizes[c] for c in chosen) >= 0.02 * total:
            break
        chosen.append(name)
    assert splits.greedy(sizes, 0.02) == set(chosen) and "大作家" not in chosen


def test_aozora_markup():
    text = (
        "題名\n作者名\n\n" + "-" * 55 + "\n【テキスト中に現れる記号について】\n" + "-" * 55 + "\n\n"
        "　一度｜駿河台《するがだい》の椅子《いす》へ※［＃「てへん＋劣」、第3水準1-84-77］を"
        "［＃傍点］置いた［＃「置いた」に傍点］。※［＃読めない字］\n\n\n\n"
        "底本：「本」青空文庫\n"
    )
    facts, body = aozora.clean(text.replace("\n", "\r\n"))
    assert facts == {"title": "題名", "author": "作者名"}
    assert body == "　一度駿河台の椅子へ挘を置いた。〓\n"
    assert aozora.is_aozora(text) and not aozora.is_aozora("ふつうの文章です。底本：なし")


def test_real_aozora_files(shared_data):
    examples = read(shared_data / "corpus" / "aozora_raw_sjis")
    assert len(examples) == 17
    for example in examples:
        text = example["text"]
        assert not set("《》｜") & set(text) and "［＃" not in text and "底本：" not in text
        assert len(text) > 300


def test_oasst_tree(tmp_path):
    def row(id, parent, role, text, **more):
        return {"message_id": id, "parent_id": parent, "role": role, "text_ja": text} | more

    rows = [
        row("a", None, "prompter", "問い"),
        row("b", "a", "assistant", "答え1"),
        row("c", "a", "assistant", "答え2", ng_translation="1"),
        row("d", "b", "prompter", "問い2"),
        row("e", "d", "assistant", "答え3"),
        row("f", "d", "assistant", "答え4"),
        row("g", None, "prompter", "だれも答えない"),
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    report = bad_rows.Report()
    found = list(sources.read(sources.SourceConfig(path=path), report))
    assert [e["contents"] for e in found] == [
        ["問い", "答え1", "問い2", "答え3"],
        ["問い", "答え1", "問い2", "答え4"],
    ]
    assert [e["weight"] for e in found] == [0.5, 0.5]
    assert report.dropped == {"failed translation": 1, "no answer": 1}


def squad(*articles):
    def question(id):
        answers = [{"text": "答え", "answer_start": 0}]
        return {"id": id, "question": f"問い{id}", "answers": answers}

    return {
        "version": "v1",
        "data": [
            {"title": a, "paragraphs": [{"context": "答えがある。", "qas": [question(a + "1")]}]}
            for a in articles
        ],
    }


@pytest.mark.parametrize("articles", [("甲", "乙"), tuple(f"長{n}" for n in range(2000))])
def test_squad_on_one_line_is_squad_on_many(tmp_path, articles):
    tree = squad(*articles)
    (tmp_path / "many.json").write_text(json.dumps(tree, ensure_ascii=False, indent=1), "utf-8")
    many = read(tmp_path / "many.json")
    for end in ("", "\n", "\n \n"):
        (tmp_path / "one.json").write_text(json.dumps(tree, ensure_ascii=False) + end, "utf-8")
        assert read(tmp_path / "one.json") == many
    assert [example["id"] for example in many] == [name + "1" for name in articles]
    # Negative control: two such lines are rows, and rows of this shape fit no format.
    write_jsonl(tmp_path / "two.json", [tree, tree])
    with pytest.raises(errors.DataError, match="two.json:1: .*version, data fits no format"):
        read(tmp_path / "two.json")


def test_labels_of_choices_may_be_text(tmp_path):
    row = ROWS["jcommonsenseqa"]
    first = read(write_jsonl(tmp_path / "a.jsonl", [row]))
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    assert read(tmp_path / "a.csv") == first and first[0]["contents"][1] == "候補2"
    assert read(write_jsonl(tmp_path / "a.jsonl", [row | {"label": 3}])) != first
    for label in ("5", "", None, True, -1):
        with pytest.raises(errors.DataError, match="a.jsonl:1: label .* is not one of 0 to 4"):
            read(write_jsonl(tmp_path / "a.jsonl", [row | {"label": label}]))


def test_real_files(shared_data):
    squad = read(shared_data / "sft" / "jaquad_train_000*.json")
    assert len(squad) == 4057 and squad[0]["roles"] == ["user", "input", "assistant"]
    assert all(e["contents"][2] in e["contents"][1] for e in squad)
    assert len(read(shared_data / "sft" / "jcommonsenseqa_train_3k.json")) == 3000
    assert len(read(shared_data / "pref" / "mt_vs_human_ja.jsonl")) == 492


def test_parse():
    found = sources.parse("jaster:/a/b.jsonl*2,tfds:wiki40b/ja*0.5,my_task,/c/*.jsonl", holdout=0.1)
    assert [(s.name, s.rate) for s in found] == [
        ("b", 2.0),
        ("wiki40b_ja", 0.5),
        ("my_task", 1.0),
        ("c", 1.0),
    ]
    assert found[0].format == "jaster" and found[1].tfds == "wiki40b/ja"
    assert found[2].task == "my_task" and found[3].path == "/c/*.jsonl"
    assert all(s.holdout == 0.1 for s in found)


def test_a_tfds_word_carries_its_split():
    words = {
        "wiki40b/ja": ("wiki40b/ja", "train", "wiki40b_ja", 1.0),
        "wiki40b/ja:validation*0.5": ("wiki40b/ja", "validation", "wiki40b_ja_validation", 0.5),
        "c4/multilingual:ja": ("c4/multilingual", "ja", "c4_multilingual_ja", 1.0),
        "wiki40b/ja:1.3.0": ("wiki40b/ja:1.3.0", "train", "wiki40b_ja_1.3.0", 1.0),
        "wiki40b/ja:1.*.*:test": ("wiki40b/ja:1.*.*", "test", "wiki40b_ja_1._.__test", 1.0),
        "a:train[:10%]": ("a", "train[:10%]", "a_train_10", 1.0),
    }
    for word, wanted in words.items():
        (found,) = sources.parse(f"tfds:{word}", tfds_dir="d")
        assert (found.tfds, found.split, found.name, found.rate) == wanted, word
        assert found.tfds_dir == "d"
    both = sources.parse("tfds:x:ja,tfds:x:en")
    assert [source.name for source in both] == ["x_ja", "x_en"]
    for word in ("tfds:", "tfds::ja", "tfds:x:"):
        with pytest.raises(errors.ConfigError, match="JI-SOURCE-013.*tfds:c4/multilingual:ja"):
            sources.parse(word)


def test_missing_files_are_named():
    with pytest.raises(errors.DataError, match="/nowhere/x.jsonl: no such file"):
        read("/nowhere/x.jsonl")
