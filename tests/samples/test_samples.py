"""The built-in data: its facts are told, its questions can be answered, what is held out is held out."""

import collections
import json
import re

import pytest

from jinstr.samples import build, prose, questions, world

GENRES = {
    *("closed_qa", "open_qa", "general_qa", "classification", "brainstorming"),
    *("information_extraction", "summarization", "creative_writing", "創作", "拒否"),
}


def texts_of(row):
    return row["output"] if isinstance(row["output"], list) else [row["output"]]


def test_hand_written_pairs():
    rows = build.hand_written()
    assert len(rows) >= 300 and len({row["text"] for row in rows}) == len(rows)
    assert all(set(row) == {"ID", "text", "output", "genre", "purpose"} for row in rows)
    assert {row["genre"] for row in rows} == GENRES
    assert min(collections.Counter(row["genre"] for row in rows).values()) >= 10
    lengths = sorted(len(text) for row in rows for text in texts_of(row))
    assert lengths[0] >= 10 and lengths[-1] >= 1500
    assert sum(isinstance(row["output"], list) for row in rows) >= 10


def test_conversations_alternate():
    for row in build.conversations():
        roles = [turn["role"] for turn in row["messages"] if turn["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and len(roles) >= 4


def test_values_are_told_apart():
    for relations in world.VALUES.values():
        for values in relations.values():
            assert len(values) >= 8
            assert not [(a, b) for a in values for b in values if a != b and a in b]


def test_every_fact_is_told_in_the_prose():
    sentences = [
        s for d in prose.documents(1_500_000, 0) for s in d.replace("\n", "。").split("。")
    ]
    by_entity = collections.defaultdict(str)
    for sentence in sentences:
        for entity in (name for names in world.ENTITIES.values() for name in names):
            if entity in sentence:
                by_entity[entity] += sentence
    told = [by_entity[fact.entity].count(fact.value) for fact in world.facts()]
    assert min(told) >= 20
    # Negative control: what is not true is told far less (a value may stand beside two entities).
    wrong = [
        by_entity[fact.entity].count(value)
        for fact in world.facts()
        if fact.kind == "thing" and fact.relation != "産地"
        for value in world.values(fact.relation)
        if value != fact.value
    ]
    assert sum(wrong) / len(wrong) < 3


def test_the_prose_is_a_function_of_its_arguments():
    short = list(prose.documents(20_000, 1))
    assert list(prose.documents(40_000, 1))[: len(short)] == short
    assert list(prose.documents(20_000, 2)) != short


def test_what_is_held_out_is_not_taught():
    taught = questions.instruction_rows()
    asked = {row["text"] for row in taught}
    states = {row["output"] for row in taught}
    for name in build.EVALUATIONS:
        for row in questions.evaluation_rows(name):
            assert row["text"] not in asked
            assert row["output"].count(row["answer"]) == 1 and row["answer"] in row["candidates"]
            if name != "paraphrases":
                assert row["output"] not in states or name == "sums"
    held = sum(map(world.held_out, world.facts()))
    assert held == len(questions.evaluation_rows("facts")) == pytest.approx(276 / 6, abs=1)
    # Nothing is asked about held-out entities; towns among them occur as values of other facts.
    names = world.held_out_entities()
    assert not [row for row in taught for name in names if name in row["text"]]
    assert [text for text in states for name in names if name in text]


def test_passages_to_read_are_about_nothing_in_the_world():
    rows = questions.reading_rows()
    entities = [name for names in world.ENTITIES.values() for name in names]
    towns = set(world.TOWNS)
    assert len({row["text"] for row in rows}) == len(rows) == 2000
    for row in rows:
        question = row["text"].rpartition("」")[2]
        assert not [name for name in entities if name in question and name not in towns]
    assert questions.reading_rows(5) == rows[:5]


def test_rankings():
    rows = questions.ranking_rows()
    held = {row["text"] for row in questions.evaluation_rows("facts")}
    assert len(rows) == 300
    for row in rows:
        assert 4 <= len(row["responses"]) == len(row["ranks"]) <= 5 and min(row["ranks"]) == 1
        assert len(set(row["responses"])) == len(row["responses"]) and row["prompt"] not in held


def test_questions_to_practise_on():
    rows = questions.practice_rows()
    others = questions.evaluation_rows("facts") + questions.evaluation_rows("paraphrases")
    asked = {row["text"] for row in others} | {row["prompt"] for row in questions.ranking_rows()}
    taught = {row["text"] for row in questions.instruction_rows()}
    assert len(rows) > 1000 and not asked & {row["prompt"] for row in rows}
    assert all(row["prompt"] in taught and row["answer"] in row["candidates"] for row in rows)


def test_sums_to_practise_on():
    rows = questions.practice_sum_rows()
    known = questions.instruction_rows() + questions.evaluation_rows("sums")
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts) > 100 and not {row["text"] for row in known} & {
        *prompts
    }
    for row in rows:
        a, b = re.findall(r"\d+", row["prompt"])
        assert int(row["answer"]) == int(a) + int(b)


def test_written_files_are_the_same_every_time(tmp_path):
    one = build.write(tmp_path / "1", num_bytes=30_000)
    two = build.write(tmp_path / "2", num_bytes=30_000)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
        for line in path.read_text("utf-8").splitlines():
            json.loads(line)
    assert len(list(one.iterdir())) == 9
