"""Special tokens, padding and tags of tokenizer.json files, and the files that lie beside them."""

import importlib.util
import json
import pathlib

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jinstr import errors
from jinstr.text import publish, render, templates
from jinstr.text import tokenizer as tokenizer_lib

_path = pathlib.Path(__file__).with_name("test_hf_tokenizer.py")
_spec = importlib.util.spec_from_file_location("kinds_of_tokenizers", _path)
kinds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kinds)

NAMED = ("tokenizer_config", "special_tokens_map")


def bytes_only():
    """As GPT-2's file is: bytes, and one special token. "!" has the first id."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    made.train_from_iterator(list(kinds.texts())[:20], trainer)
    made.add_special_tokens(["<|endoftext|>"])
    return made


@pytest.mark.parametrize("named", [{}, {"pad_token": "!"}, {"pad_token": "<|endoftext|>"}])
def test_padding_never_takes_a_token_of_text_away(named, tmp_path):
    made = bytes_only()
    assert made.token_to_id("!") == 0
    config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"} | named
    folder, out = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    tokenizer = tokenizer_lib.load(kinds.saved(folder, made, config, config={"pad_token_id": 0}))
    assert tokenizer.pad_id == 0 != tokenizer.eos_id and not tokenizer.is_control(0)
    assert tokenizer.decode(tokenizer.encode("すごい!!")) == "すごい!!"
    stream = tokenizer.stream()
    assert stream.push(0) + stream.flush() == tokenizer.decode_continuation([0]) == "!"
    publish.write_tokenizer_files(out, tokenizer, "")
    written = [json.loads((out / f"{name}.json").read_text("utf-8")) for name in NAMED]
    assert written[0]["pad_token"] is None and "pad_token" not in written[1]
    assert tokenizer_lib.load(out).encode("!") == [0]


def test_padding_is_a_control_token_where_there_is_one(tmp_path):
    """Negative control of the test above."""
    made = bytes_only()
    made.add_special_tokens(["<|padding|>"])
    folder = kinds.saved(tmp_path, made, {"eos_token": "<|endoftext|>", "pad_token": "!"})
    tokenizer = tokenizer_lib.load(folder)
    assert tokenizer.piece(tokenizer.pad_id) == "<|padding|>"
    assert tokenizer.is_control(tokenizer.pad_id)
    publish.write_tokenizer_files(tmp_path / "out", tokenizer, "")
    written = json.loads((tmp_path / "out" / "special_tokens_map.json").read_text("utf-8"))
    assert written["pad_token"] == "<|padding|>"


def test_a_copy_has_the_files_of_older_programs(tokenizer, tmp_path):
    source, run, out = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    publish.write_tokenizer_files(source, tokenizer, "")
    others = {"added_tokens.json": "{}", "vocab.json": '{"a": 1}', "merges.txt": "a b"}
    for name, text in others.items():
        (source / name).write_text(text, "utf-8")
    more = {"additional_special_tokens": ["<|im_start|>"]}
    path = source / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | more), "utf-8")
    run.mkdir()
    tokenizer_lib.copy(source, run)
    assert tokenizer_lib.find(run) == run / "tokenizer.json"
    names = publish.write_tokenizer_files(out, tokenizer_lib.load(run), "")
    for name in (*others, "tokenizer.model"):
        assert (out / name).read_bytes() == (source / name).read_bytes() and name in names
    assert json.loads((out / "special_tokens_map.json").read_text("utf-8")) == json.loads(
        path.read_text("utf-8")
    )
    # Negative control: beside a file of another name stands something else.
    (source / "tokenizer.json").rename(source / "other.json")
    other = tmp_path / "d"
    other.mkdir()
    tokenizer_lib.copy(source / "other.json", other)
    names = sorted(path.name for path in other.iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]


def test_large_configurations_are_refused(tmp_path):
    folder = kinds.saved(tmp_path, kinds.byte_level(), kinds.CHAT)
    tokenizer_lib.load(folder)  # negative control
    for name in ("generation_config", "tokenizer_config"):
        path = folder / f"{name}.json"
        before = path.read_bytes() if path.exists() else b"{}"
        path.write_text('{"x": "' + "x" * 16_000_000 + '"}', "utf-8")
        with pytest.raises(errors.ConfigError, match=f"{name}.json: 16,000,009 bytes"):
            tokenizer_lib.load(folder)
        path.write_bytes(before)
    (folder / "tokenizer_config.json").write_text('{"x": "' + "x" * 16_000_000 + '"}', "utf-8")
    with pytest.raises(errors.ConfigError, match="16,000,009 bytes"):
        templates.of_folder(folder)


def with_tags(names, **flags):
    made = kinds.byte_level()
    made.add_tokens(
        [tokenizers.AddedToken(name, **{"normalized": False} | flags) for name in names]
    )
    return made


TAGS = ("</think>", "<tool_call>", "</tool_call>")  # <think> is there already


def test_tags_that_are_not_special_are_text_with_one_id(tmp_path):
    made = with_tags(TAGS)
    tokenizer = tokenizer_lib.load(kinds.saved(tmp_path, made, kinds.CHAT))
    text = "<think>\n考え\n</think>\n\n<tool_call>{}</tool_call>答え"
    ids = tokenizer.encode_continuation(text)
    made.no_truncation()
    assert ids == made.encode(text, add_special_tokens=False).ids
    own = [made.token_to_id(name) for name in ("<think>", *TAGS)]
    assert [id for id in ids if id in own] == own and not any(map(tokenizer.is_control, own))
    assert tokenizer.decode_continuation(ids) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    # In a question too, and it ends no turn.
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    rendered = render.render(chat, templates.load("chatml", tokenizer), tokenizer)
    controls = [tokenizer.piece(id) for id in rendered.tokens if tokenizer.is_control(id)]
    assert controls == ["<|im_start|>", "<|im_end|>"] * 2
    trained = [id for id, mask in zip(rendered.tokens, rendered.loss_mask) if mask]
    assert trained[:-1] == ids


@pytest.mark.parametrize(
    "names, flags",
    [
        (("<tool_call>",), {}),  # without a partner
        (("<|user|>", "<|tool|>"), {}),
        (("<user>", "</user>"), {}),
        (("<end_of_turn>", "</end_of_turn>"), {}),
        (("[INST]", "[/INST]"), {}),
        (("<plan>", "</plan>"), {"special": True}),
        (("<plan>", "</plan>"), {"rstrip": True}),  # would take spaces away
    ],
)
def test_what_could_begin_a_turn_stays_a_control_token(names, flags, tmp_path):
    tokenizer = tokenizer_lib.load(kinds.saved(tmp_path, with_tags(names, **flags), kinds.CHAT))
    for name in names:
        assert tokenizer.is_control(tokenizer.id_of(name))
        ids = tokenizer.encode_continuation(f"a {name} b")
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode_continuation(ids) == f"a {name} b"
