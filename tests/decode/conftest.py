"""Small tokenizers and random models for the tests of this folder."""

import jax
import pytest
import sentencepiece

from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.text import tokenizer as tokenizer_lib

SENTENCES = [
    "昔々あるところに、おじいさんとおばあさんが住んでいました。",
    "山の上に白い雲が浮かび、川では子どもたちが魚を追いかけていた。",
    "春になると桜が咲き、町の人々は公園で花見をする。",
    "図書館で本を借りて、静かな部屋でゆっくり読んだ。",
] * 25


def train_tokenizer(folder, controls, **settings):
    prefix = str(folder / "small")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=prefix, vocab_size=370, byte_fallback=True,
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, control_symbols=controls, hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2, **settings,
    )  # fmt: skip
    return tokenizer_lib.load(prefix + ".model")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["<|turn|>"])


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    controls = ["<|im_start|>", "<|im_end|>", "<NL>"]
    folder = tmp_path_factory.mktemp("tokenizer")
    plain = dict(add_dummy_prefix=False, remove_extra_whitespaces=False, required_chars="\u2581")
    return train_tokenizer(folder, controls, **plain)


def random_model(tokenizer):
    """Six rows more than the tokenizer has pieces: most of what it writes are byte pieces."""
    config = config_lib.DecoderConfig(
        vocab_size=tokenizer.vocab_size + 6,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=24,
    )
    return config, decoder.init_params(config, jax.random.key(0))


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(tokenizer)


@pytest.fixture(scope="module")
def chat_model(chat_tokenizer):
    return random_model(chat_tokenizer)


@pytest.fixture
def sentences():
    return SENTENCES[:4]
