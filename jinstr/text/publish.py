"""The tokenizer files of a published model, as transformers, vLLM and llama.cpp look for them.

Equal ids are tested with transformers and the tokenizers library; vLLM uses these, llama.cpp has code of its own.
"""

from __future__ import annotations

import json
import pathlib
import shutil

from jinstr.text import chat_templates, hf_special, sentencepiece_json, templates
from jinstr.text import tokenizer as tokenizer_lib


def write_tokenizer_files(folder: str | pathlib.Path, tokenizer, template: str) -> list[str]:
    """Write what others need to encode and chat as jinstr does; returns the names of the files.

    tokenizer: from `tokenizer.load`. Of a SentencePiece model: tokenizer.model, tokenizer.json, tokenizer_config.json,
    special_tokens_map.json; of a Hugging Face one: its own files. template: the name of a built-in one, a .jinja path,
    or "": none, or the one that a Hugging Face tokenizer brought along. It becomes chat_template.jinja.
    Errors: ConfigError for a SentencePiece model whose rules tokenizer.json cannot hold.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(tokenizer.path)
    if source.suffix == ".json":
        if not template:
            template = templates.of_folder(source.parent)
        tokenizer_lib.copy_beside(source, folder)
        shutil.copyfile(source, folder / "tokenizer.json")
        config = hf_special.completed(source.parent, tokenizer)
        names = hf_special.completed_map(source.parent, tokenizer)
    else:
        shutil.copyfile(source, folder / "tokenizer.model")
        made = sentencepiece_json.convert(tokenizer)
        made.save(str(folder / "tokenizer.json"))
        config = _config(tokenizer, made)
        named = ("bos_token", "eos_token", "pad_token", "unk_token")
        names = {name: config[name] for name in named if config[name]}
    chat = _chat_template(template, tokenizer)
    config.pop("chat_template", None)
    if chat:
        config["chat_template"] = chat
        (folder / "chat_template.jinja").write_text(chat, "utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)
    return sorted(path.name for path in folder.iterdir() if path.name in _NAMES)


_NAMES = {*hf_special.OTHERS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _chat_template(template: str, tokenizer) -> str:
    if template.endswith(".jinja"):
        return pathlib.Path(template).read_text("utf-8")
    return chat_templates.text_of(template, tokenizer) if template else ""


def _config(tokenizer: tokenizer_lib.Tokenizer, made) -> dict:
    """The tokenizer_config.json of a converted SentencePiece model."""
    named = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.unk_id,
        "pad_token": tokenizer.pad_id,
    }
    added = {
        str(id): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for id, token in sorted(made.get_added_tokens_decoder().items())
    }
    return {
        # The class that takes tokenizer.json as it is; the model-specific ones build their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.piece(id) if id >= 0 else None for name, id in named.items()},
        "add_bos_token": tokenizer.bos_id >= 0,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "added_tokens_decoder": added,
    }
