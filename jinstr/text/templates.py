"""Chat templates: a conversation as stretches of text and control tokens, with what is trained marked.

Three shapes cover the formats that Japanese models use, each byte for byte as published with the models named beside
it; `jinja.py` reads any other from a `chat_template` file. A system turn replaces the template's own first sentence.
An `input` turn after a `user` turn is the material that the instruction speaks about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jinstr import errors
from jinstr.text import json_file

ALPACA = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
ALPACA_INPUT = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
STORMY = "以下はタスクを説明する指示です。要求を適切に満たすような返答を書いてください。\n"
LLAMA2 = "あなたは誠実で優秀な日本人のアシスタントです。"
LLAMA3 = LLAMA2 + "特に指示が無い場合は、常に日本語で回答してください。"


LONGEST = 200_000  # bytes of a .jinja file; the longest published ones have some 20,000


class Part(NamedTuple):
    """A piece of text, or one control token; `trained` when the model learns to write it."""

    text: str
    trained: bool = False
    control: int = -1  # id of the control token; -1 = text


class Turn(NamedTuple):
    """One question and its answer; `answer` is None where the model is to write it."""

    user: str
    input: str
    answer: str | None

    @property
    def question(self) -> str:
        return f"{self.user}\n\n{self.input}" if self.input else self.user


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A way of writing conversations, bound to the control tokens of one tokenizer."""

    name: str
    parts: Callable[[Sequence[Mapping[str, str]]], list[Part]]
    stop_ids: tuple[int, ...]  # tokens that end an answer
    stop_strings: tuple[str, ...] = ()  # text that ends an answer too
    ends_every_turn: bool = (
        True  # False: only the last answer of a conversation ends with a stop id
    )
    # (id, text) of control tokens that stand for text inside answers
    answer_tokens: tuple[tuple[int, str], ...] = ()


def turns_of(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[Turn]]:
    """(system text or "", turns) of a conversation. The last turn has answer None when a question stands last.

    Errors: DataError when roles do not go system?, (user, input?, assistant)*, and so on.
    """
    system, turns = "", []
    roles = [message["role"] for message in messages]
    rest = list(messages)
    if rest and rest[0]["role"] == "system":
        system = rest.pop(0)["content"]
    while rest:
        user = rest.pop(0)
        given = rest.pop(0)["content"] if rest and rest[0]["role"] == "input" else ""
        answer = rest.pop(0) if rest else None
        if user["role"] != "user" or (answer is not None and answer["role"] != "assistant"):
            turns.clear()
            break
        turns.append(Turn(user["content"], given, answer and answer["content"]))
    if not turns:
        raise errors.DataError(
            "JI-TEMPLATE-001",
            f"roles {roles}: a conversation goes system (or not), then user, input (or not), assistant in turn",
        )
    return system, turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
    """Instruction and answer under headings; every answer ends with the end-of-text token."""

    system: str
    system_with_input: str = (
        ""  # the first sentence when the first turn has an input; "" = the same
    )
    user: str = "\n\n### 指示:\n"
    input: str = "\n\n### 入力:\n"
    answer: str = "\n\n### 応答:\n"
    begins: bool = False  # begin-of-text token first
    stop_strings: tuple[str, ...] = ()

    def bind(self, name: str, control: Callable[[str], int]) -> Template:
        end = control("eos")
        begin = [Part("", control=control("bos"))] if self.begins else []

        def parts(messages):
            system, turns = turns_of(messages)
            with_input = bool(turns[0].input) and self.system_with_input
            head = system or (self.system_with_input if with_input else self.system)
            found = [*begin, Part(head)]
            for turn in turns:
                given = self.input + turn.input if turn.input else ""
                found.append(Part(self.user + turn.user + given + self.answer))
                if turn.answer is not None:
                    found += [Part(turn.answer, True), Part("", True, end)]
            return found

        return Template(name=name, parts=parts, stop_ids=(end,), stop_strings=self.stop_strings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """Speaker names before each line; only the last answer ends with the end-of-text token."""

    user: str = "ユーザー: "
    answer: str = "システム: "
    system: str = ""  # name before a system text; "" = the format has no place for one
    newline: str = (
        ""  # the control token that stands for every line break; "" = the character itself
    )

    def bind(self, name: str, control: Callable[[str], int]) -> Template:
        end = control("eos")
        newline = control(self.newline) if self.newline else -1

        def broken(text: str, trained: bool) -> Iterator[Part]:
            if newline < 0:
                yield Part(text, trained)
                return
            for number, line in enumerate(text.split("\n")):
                if number:
                    yield Part("", trained, newline)
                yield Part(line, trained)

        def parts(messages):
            system, turns = turns_of(messages)
            if system and not self.system:
                raise errors.DataError(
                    "JI-TEMPLATE-002", f"the template {name} has no place for a system turn"
                )
            found = [*broken(f"{self.system}{system}\n", False)] if system else []
            for number, turn in enumerate(turns):
                if number:
                    found += broken("\n", False)
                found += broken(f"{self.user}{turn.question}\n{self.answer}", False)
                if turn.answer is not None:
                    found += broken(turn.answer, True)
            return found if turns[-1].answer is None else [*found, Part("", True, end)]

        return Template(
            name=name,
            parts=parts,
            stop_ids=(end,),
            stop_strings=("\n" + self.user,),
            ends_every_turn=False,
            answer_tokens=((newline, "\n"),) if newline >= 0 else (),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """Control tokens around every turn. {name} in `head` is a control token; `role` stands for the role's name."""

    begin: str = ""  # control token at the start of the conversation
    open: tuple[str, ...]  # control tokens and texts before a turn's text; "role" is replaced
    close: str  # the control token that ends a turn
    after: str = ""  # text between turns
    assistant: str = "assistant"  # name of the answering role
    system: str = ""  # default system text
    system_turn: bool = True  # False: a system text goes before the first question
    trim: bool = False  # turns lose spaces at both ends

    def bind(self, name: str, control: Callable[[str], int]) -> Template:
        close = control(self.close)
        begin = [Part("", control=control(self.begin))] if self.begin else []

        def head(role: str) -> list[Part]:
            found = []
            for item in self.open:
                if item == "role":
                    found.append(Part(role))
                elif item.startswith("<"):
                    found.append(Part("", control=control(item)))
                else:
                    found.append(Part(item))
            return found

        head("user")  # names a missing token now, not at the first conversation

        def turn_parts(role: str, text: str, trained: bool) -> list[Part]:
            text = text.strip() if self.trim else text
            return [*head(role), Part(text, trained), Part("", trained, close), Part(self.after)]

        def parts(messages):
            system, turns = turns_of(messages)
            system = system or self.system
            found = list(begin)
            if system and self.system_turn:
                found += turn_parts("system", system, False)
            for number, turn in enumerate(turns):
                question = turn.question
                if system and not self.system_turn and number == 0:
                    question = f"{system}\n\n{question}"
                found += turn_parts("user", question, False)
                if turn.answer is None:
                    found += head(self.assistant)
                else:
                    found += turn_parts(self.assistant, turn.answer, True)
            return found

        return Template(name=name, parts=parts, stop_ids=(close,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama2:
    """[INST] … [/INST] as text, a new begin-of-text token before every turn."""

    system: str = LLAMA2

    def bind(self, name: str, control: Callable[[str], int]) -> Template:
        begin, end = control("bos"), control("eos")

        def parts(messages):
            system, turns = turns_of(messages)
            head = f"<<SYS>>\n{system or self.system}\n<</SYS>>\n\n"
            found = []
            for turn in turns:
                found += [
                    Part("", control=begin),
                    Part(f"[INST] {head}{turn.question} [/INST] "),
                ]
                if turn.answer is not None:
                    found += [Part(f"{turn.answer} ", True), Part("", True, end)]
                head = ""
            return found

        return Template(name=name, parts=parts, stop_ids=(end,))


BUILT_IN = {
    # youri-7b-instruction, houou, Alpaca-ja data
    "alpaca-ja": Sections(system=ALPACA, system_with_input=ALPACA_INPUT),
    # llm-jp-3 instruct: the same sentences after <s>, any number of turns
    "llm-jp-3": Sections(system=ALPACA, begins=True),
    # japanese-stablelm-instruct-alpha: a space after each heading; weblab-10b: none
    "stablelm-alpha": Sections(
        system=ALPACA_INPUT,
        user="\n\n### 指示: \n",
        input="\n\n### 入力: \n",
        answer="\n\n### 応答: \n",
        stop_strings=("###",),
    ),
    "weblab": Sections(system=ALPACA_INPUT),
    # stormy-7b-10ep
    "stormy": Sections(system=STORMY, user="\n###指示: ", input="\n###入力: ", answer="\n###返答:"),
    # rinna japanese-gpt-neox-3.6b: <NL> is a token; bilingual-gpt-neox-4b: a line break
    "rinna": Lines(newline="<NL>"),
    "rinna-bilingual": Lines(),
    # rinna youri-7b-chat
    "youri-chat": Lines(system="設定: "),
    # ELYZA-japanese-Llama-2, Swallow-instruct-v0.1
    "llama2": Llama2(),
    # Qwen, CALM3, Tanuki
    "chatml": Marked(open=("<|im_start|>", "role", "\n"), close="<|im_end|>", after="\n"),
    # gemma-2-2b-jpn-it
    "gemma": Marked(
        begin="<bos>",
        open=("<start_of_turn>", "role", "\n"),
        close="<end_of_turn>",
        after="\n",
        assistant="model",
        system_turn=False,
        trim=True,
    ),
    # Llama-3-ELYZA-JP
    "llama3": Marked(
        begin="<|begin_of_text|>",
        open=("<|start_header_id|>", "role", "<|end_header_id|>", "\n\n"),
        close="<|eot_id|>",
        system=LLAMA3,
        trim=True,
    ),
}


def load(name: str, tokenizer) -> Template:
    """A built-in template by name, or the Jinja `chat_template` in a file NAME.jinja.

    Errors: ConfigError for an unknown name, and, by name, for control tokens that the tokenizer lacks.
    """
    if name.endswith(".jinja"):
        from jinstr.text import chat_templates, jinja

        # One that was written from a built-in template is that template.
        name = chat_templates.name_of(read(name), tokenizer) or name
        if name.endswith(".jinja"):
            return jinja.load(name, tokenizer)
    if name not in BUILT_IN:
        raise errors.ConfigError(
            "JI-TEMPLATE-003",
            f"TEMPLATE={name!r} is neither a .jinja file nor one of {', '.join(sorted(BUILT_IN))}",
        )
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "<bos>": tokenizer.bos_id}

    def control(piece: str) -> int:
        id = special[piece] if piece in special else tokenizer.id_of(piece)
        if id is None or id < 0:
            raise errors.ConfigError(
                "JI-TEMPLATE-004",
                f"the template {name} needs the control token {piece}, which {tokenizer.path} lacks; take another "
                "TEMPLATE, or train a tokenizer with it (jinstr tokenizer CONTROL_TOKENS=…)",
            )
        return id

    return BUILT_IN[name].bind(name, control)


def read(path: str) -> str:
    """The text of a .jinja file. Errors: ConfigError when it cannot be read."""
    try:
        return json_file.read_bytes(pathlib.Path(path), "JI-TEMPLATE-005", LONGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError("JI-TEMPLATE-005", f"{path}: {error}") from None


def of_folder(folder: str | pathlib.Path) -> str:
    """The path of the chat template in a folder with a Hugging Face tokenizer, as TEMPLATE takes it; "" without one.

    It is the folder's chat_template.jinja; one that stands in tokenizer_config.json is written to
    ~/.cache/jinstr/templates first, under a name made of its content.
    """
    folder = pathlib.Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return str(folder / "chat_template.jinja")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    facts = json_file.read(config, "JI-TEMPLATE-009")
    found = facts.get("chat_template") if isinstance(facts, dict) else None
    if isinstance(found, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found:
        return ""
    place = pathlib.Path("~/.cache/jinstr/templates").expanduser()
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{hashlib.sha256(found.encode()).hexdigest()[:16]}.jinja"
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(found, "utf-8")
    os.replace(aside, path)
    return str(path)
