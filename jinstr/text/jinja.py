"""Jinja `chat_template` files, as models are published with them, run in a sandbox.

What people write can never become a control token: inside their text every such string is cut by a mark that the
template carries along and that is taken out again afterwards. What is trained comes from `{% generation %}` blocks; a
template without them is rendered turn by turn, and the difference is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext

from jinstr import errors
from jinstr.text import sandbox, templates

# One private character; what follows it says what it means. People's own occurrences are doubled.
_MARK = "\U000f1a75"
_BEGIN, _END, _CUT = _MARK + "b", _MARK + "e", _MARK + "c"
_MARKS = re.compile(f"{_MARK}(.)", re.DOTALL)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`: what the model writes."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_wrap")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    @staticmethod
    def _wrap(caller) -> str:
        return f"{_BEGIN}{caller()}{_END}"


def _compile(path: str, environment: sandbox.Environment, text: str) -> jinja2.Template:
    try:
        return environment.compiled(text)
    except jinja2.TemplateError as error:
        raise errors.ConfigError("JI-TEMPLATE-005", f"{path}: {error}") from None


class _Jinja:
    """A compiled template and the control tokens of one tokenizer."""

    def __init__(self, path: str, tokenizer):
        self.path, self.tokenizer = path, tokenizer
        text = templates.read(path)
        self.environment = sandbox.Environment([_Generation])
        self.template = _compile(path, self.environment, text)
        controls = [i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)]
        self.ids = {tokenizer.piece(id): id for id in controls}
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.controls = re.compile("|".join(map(re.escape, longest_first)))
        self.masked = "endgeneration" in text

    def protect(self, text: str) -> str:
        """People's text with control strings cut after their first character."""
        text = text.replace(_MARK, _MARK * 2)
        return self.controls.sub(lambda found: found[0][0] + _CUT + found[0][1:], text)

    def write(self, messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        """The conversation as one string, marks included."""
        system, turns = templates.turns_of(messages)
        shown = [{"role": "system", "content": self.protect(system)}] if system else []
        for turn in turns:
            shown.append({"role": "user", "content": self.protect(turn.question)})
            if turn.answer is not None:
                shown.append({"role": "assistant", "content": self.protect(turn.answer)})
        piece = self.tokenizer.piece
        names = {"bos_token": self.tokenizer.bos_id, "eos_token": self.tokenizer.eos_id}
        try:
            return self.environment.render(
                self.template,
                messages=shown,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **{name: piece(id) if id >= 0 else "" for name, id in names.items()},
            )
        except jinja2.TemplateError as error:
            raise errors.DataError("JI-TEMPLATE-006", f"{self.path}: {error}") from None

    def split(self, text: str, trained: bool) -> list[templates.Part]:
        """A written string as parts; marks are obeyed and taken out."""
        found: list[templates.Part] = []
        # Control tokens are looked for between marks only: a cut keeps them apart.
        for number, piece in enumerate(_MARKS.split(text)):
            if number % 2:
                trained = {"b": True, "e": False}.get(piece, trained)
                if piece == _MARK:
                    found.append(templates.Part(_MARK, trained))
                continue
            at = 0
            for control in self.controls.finditer(piece):
                found.append(templates.Part(piece[at : control.start()], trained))
                found.append(templates.Part("", trained, self.ids[control[0]]))
                at = control.end()
            found.append(templates.Part(piece[at:], trained))
        return found

    def parts(self, messages: Sequence[Mapping[str, str]]) -> list[templates.Part]:
        prompt = messages[-1]["role"] != "assistant"
        whole = self.write(messages, prompt)
        if self.masked:
            return self.split(whole, False)
        found, at = [], 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.write(messages[:number], True)
            after = self.write(messages[: number + 1], False)
            # An end-of-text token after the conversation, not after the turn, is no part of the turn.
            if not (after.startswith(before) and whole.startswith(after) and len(before) >= at):
                raise errors.ConfigError(
                    "JI-TEMPLATE-007",
                    f"{self.path}: a conversation does not begin with its own first turns (Qwen 3 leaves out what was "
                    "thought in earlier ones), so the answers cannot be told apart; name another template, such as "
                    "TEMPLATE=chatml, or a .jinja file with {% generation %} … {% endgeneration %} around the answers",
                )
            found += self.split(whole[at : len(before)], False)
            answer = self.split(after[len(before) :], True)
            # What stands after the token that ends the turn belongs to the template.
            ends = [n for n, part in enumerate(answer) if part.control >= 0]
            last = ends[-1] if ends else len(answer) - 1
            found += [part._replace(trained=n <= last) for n, part in enumerate(answer)]
            at = len(after)
        return found + self.split(whole[at:], False)


def load(path: str, tokenizer) -> templates.Template:
    """Compile a template and try it on a conversation of two turns.

    Errors: ConfigError when it does not compile, names no answer, or trains something else than it generates.
    """
    jinja = _Jinja(path, tokenizer)
    probe = [
        {"role": "user", "content": "問い"},
        {"role": "assistant", "content": "答え"},
        {"role": "user", "content": "次"},
        {"role": "assistant", "content": "終わり"},
    ]
    parts = jinja.parts(probe)
    trained = [part for part in parts if part.trained]
    text = "".join(part.text for part in trained).split()
    prompt = jinja.write(probe[:-1], True)
    begins = _text(jinja.split(jinja.write(probe, False), False)).startswith(
        _text(jinja.split(prompt, False))
    )
    if "".join(text) != "答え終わり" or not begins:
        raise errors.ConfigError(
            "JI-TEMPLATE-008",
            f"{path}: of a conversation answered 答え and 終わり it trains {text}, and with add_generation_prompt it "
            f"{'ends' if begins else 'does not end'} where the answer begins; correct the template",
        )
    stops = tuple(dict.fromkeys(part.control for part in trained if part.control >= 0))
    count = sum(part.control in stops for part in trained)
    return templates.Template(
        name=path,
        parts=jinja.parts,
        stop_ids=stops or (tokenizer.eos_id,),
        ends_every_turn=count >= 2,
        answer_tokens=_line_break(jinja),
    )


def _line_break(jinja: _Jinja) -> tuple[tuple[int, str], ...]:
    """The control token, if any, that the template writes for a line break inside an answer."""
    probe = [
        {"role": "user", "content": "問い"},
        {"role": "assistant", "content": "答え\n終わり"},
    ]
    parts = [p for p in jinja.parts(probe) if p.trained and (p.text or p.control >= 0)]
    return tuple(
        (middle.control, "\n")
        for before, middle, after in zip(parts, parts[1:], parts[2:])
        if before.text.endswith("答え") and middle.control >= 0 and after.text.startswith("終わり")
    )


def _text(parts: Sequence[templates.Part]) -> str:
    return "".join(part.text or f"<{part.control}>" for part in parts)
