"""A random chat model in Hugging Face's format, small enough for the CPU."""

from jinstr.samples import build
from jinstr.text import normalise, publish, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib
from tests.models import hf_cases


def write(folder, template="chatml", **sizes) -> str:
    """hf:FOLDER of a Llama whose pieces are those of the built-in texts. template: "" for a model of plain text."""
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=1600, threads=1)
    texts = [row["text"] for row in build.hand_written()]
    prefix = str(folder.parent / f"{folder.name}-tokenizer")
    train_tokenizer.train({"a": texts}, prefix, config, normalise.NormaliseConfig())
    tokenizer = tokenizer_lib.load(prefix + ".model")
    ids = {name: getattr(tokenizer, name.removesuffix("_token_id") + "_id") for name in (
        "bos_token_id", "eos_token_id", "pad_token_id",
    )}  # fmt: skip
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 1024} | sizes
    hf_cases.write(folder, "llama", **ids, **sizes)
    publish.write_tokenizer_files(folder, tokenizer, template)
    return f"hf:{folder}"
