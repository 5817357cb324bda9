"""Questions to practise on: their order, what is kept aside, what is left out and what is refused."""

import json

import pytest

from jinstr import errors
from jinstr.rlhf import practice, prompts
from jinstr.text import render, templates
from tests.decode import conftest as small


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    controls = ["<|im_start|>", "<|im_end|>"]
    plain = dict(add_dummy_prefix=False, remove_extra_whitespaces=False, required_chars="\u2581")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = small.train_tokenizer(folder, controls, **plain)
    return tokenizer, templates.load("chatml", tokenizer)


@pytest.fixture
def load(reading, tmp_path):
    """A function: lines (fields, or text as it is) → questions."""

    def load(lines, seed=0, file="questions.jsonl", **settings):
        texts = [x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines]
        (tmp_path / file).write_text("\n".join(texts) + "\n", "utf-8")
        settings = {"prompts": str(tmp_path / file), "holdout": 0.0} | settings
        return prompts.load(prompts.PromptConfig(**settings), *reading, seed)

    return load


def questions(count, first=0):
    return [{"id": f"q{n}", "prompt": f"山と川の話、その{n}"} for n in range(first, first + count)]


def ids_of(found):
    return [prompt.id for prompt in found]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_pass_visits_each_question_once_in_another_order(count):
    found = prompts.numbers(count, 0, 4 * count, seed=3)
    passes = [tuple(found[n * count : (n + 1) * count]) for n in range(4)]
    for one in passes:
        assert sorted(one) == list(range(count))
    if count > 2:
        assert len(set(passes)) == 4
        assert passes[0] != tuple(range(count))


def test_the_order_is_a_closed_form_of_seed_and_place():
    whole = prompts.numbers(13, 0, 100, seed=3)
    for first, wanted in [(0, 5), (5, 8), (11, 4), (26, 30), (99, 1), (40, 0)]:
        assert prompts.numbers(13, first, wanted, seed=3) == whole[first : first + wanted]
    assert prompts.numbers(13, 0, 100, seed=4) != whole


def test_iterations_go_on_where_the_one_before_ended(load):
    found = load(questions(10))
    asked = [p.id for n in range(5) for p in practice.questions_of(found, n, 4, seed=1)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(ids_of(found.train))


def test_a_question_is_rendered_up_to_where_its_answer_begins(load, reading):
    tokenizer, template = reading
    row = {"id": "a", "messages": [{"role": "user", "content": "桜"}], "answer": "3"}
    (found,) = load([row]).train
    assert found.row == row
    assert found.messages == ({"role": "user", "content": "桜"},)
    expected = render.render_prompt(row["messages"], template, tokenizer)
    assert found.ids.tolist() == expected
    assert expected != render.render_prompt(
        [{"role": "user", "content": "雲"}], template, tokenizer
    )


def test_a_part_is_kept_aside_and_stays_so_when_others_come(load):
    found = load(questions(200), holdout=0.2)
    aside = set(ids_of(found.held_out))
    assert 20 < len(aside) < 60
    assert not aside & set(ids_of(found.train))
    assert len(found.train) + len(aside) == 200 == found.identity["count"] + len(aside)
    more = load(questions(200, 100)[::-1] + questions(100), holdout=0.2)
    assert set(ids_of(more.held_out)) >= aside
    assert len(more.held_out) > len(aside)
    # By the question, whatever its id; and the seed chooses others.
    renamed = [{"id": f"x{n}", "prompt": row["prompt"]} for n, row in enumerate(questions(200))]
    again = load(renamed, holdout=0.2)
    assert [p.messages for p in again.held_out] == [p.messages for p in found.held_out]
    assert set(ids_of(load(questions(200), seed=1, holdout=0.2).held_out)) != aside


def test_a_question_that_is_there_twice_is_asked_once(load):
    rows = [{"prompt": "山"}, {"prompt": " 山 "}, {"instruction": "山"}, {"prompt": "川"}]
    found = load(rows)
    assert ids_of(found.train) == ["questions.jsonl:1", "questions.jsonl:4"]
    assert found.left_out == 0


def test_conversations_that_only_begin_alike_are_other_questions_of_one_group(load):
    first = [{"role": "user", "content": "山"}, {"role": "assistant", "content": "はい"}]
    second = [{"role": "user", "content": "川"}, {"role": "user", "content": "雲"}]
    rows = [{"messages": first[:1]}, *({"messages": [*first, turn]} for turn in second)]
    assert len(load(rows).train) == 3
    # What is kept aside goes by the first question, so that no half of a conversation is practised on.
    for seed in range(8):
        found = load([*rows, *questions(5)], seed=seed, holdout=0.5)
        assert sum(p.id.startswith("questions") for p in found.held_out) in (0, 3)


def test_too_long_questions_are_counted(load):
    rows = [{"id": "short", "prompt": "山"}, {"id": "long", "prompt": "山" * 50}]
    lengths = [len(prompt.ids) for prompt in load(rows).train]
    found = load(rows, longest=lengths[0])
    assert ids_of(found.train) == ["short"]
    assert found.left_out == 1
    assert load(rows, longest=lengths[1]).left_out == 0
    with pytest.raises(errors.ConfigError, match="no question is left .*2 longer") as raised:
        load(rows, longest=1)
    assert raised.value.code == "JI-PROMPTS-002"


def test_what_is_excluded_by_id_or_by_question_is_nowhere(load, tmp_path):
    (tmp_path / "out.txt").write_text("q1\n山と川の話、その3\n", "utf-8")
    found = load(questions(5), exclude=str(tmp_path / "out.txt"), holdout=0.5)
    assert sorted(ids_of(found.train + found.held_out)) == ["q0", "q2", "q4"]


@pytest.mark.parametrize("line", ['{"prompt": "山"', "[1, 2]", '"山"'])
def test_a_line_that_is_not_json_is_named(load, line):
    with pytest.raises(errors.DataError, match=r"questions\.jsonl:2: ") as raised:
        load([{"prompt": "川"}, line])
    assert raised.value.code == "JI-GENERATE-001"


def test_a_line_without_a_question_is_named(load):
    with pytest.raises(errors.DataError, match=r"questions\.jsonl:2: no prompt"):
        load([{"prompt": "川"}, {"answer": "3"}])


def test_empty_lines_and_characters_that_only_look_like_line_ends(load):
    found = load(
        ["", json.dumps({"id": "a", "prompt": "山\u2028川\u0085"}, ensure_ascii=False), " "]
    )
    assert found.train[0].messages[0]["content"] == "山\u2028川\u0085"


def test_no_question_left_and_no_file(load, tmp_path):
    with pytest.raises(errors.ConfigError, match="no question is left .*3 held out") as raised:
        load(questions(3), holdout=1.0)
    assert raised.value.code == "JI-PROMPTS-002"
    with pytest.raises(errors.ConfigError, match="no such file") as raised:
        load(questions(3), prompts=str(tmp_path / "none*.jsonl"))
    assert raised.value.code == "JI-PROMPTS-001"


def test_identity_tells_the_same_questions_from_others(load):
    found = load(questions(8))
    assert load(questions(8), file="b.jsonl").identity["ids"] == found.identity["ids"]
    for others in (questions(9), questions(8)[::-1], questions(8, 1)):
        assert load(others, file="b.jsonl").identity["ids"] != found.identity["ids"]
