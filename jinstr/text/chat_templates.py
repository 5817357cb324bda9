"""The built-in chat templates as Jinja, for the `chat_template` that transformers, vLLM and llama.cpp run.

Every tag strips the space around it, so the text does not depend on how a program sets Jinja up. Nothing is used but
loops, conditions, `~`, slices, `trim` and `replace`. A model whose tokenizer puts a space before every text gets one
after the begin-of-text token too, where jinstr's rendering has it and other programs would not write it.
"""

from __future__ import annotations

import re

from jinstr.text import templates

_HEAD = re.compile(r"\{#- jinstr: ([a-z0-9-]+) -#\}\n")
_SYSTEM = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}\n"
    "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}\n"
)
# The text of an `input` turn that follows, with what stands before it.
_GIVEN = (
    "{%- set next = turns[loop.index] if loop.index < turns | length else {'role': ''} -%}\n"
    "{%- set given = '\\n\\n' ~ next.content if next.role == 'input' and next.content else '' -%}\n"
    "{%- set question = m.content ~ given -%}\n"
)
_WRONG = "{%- elif m.role != 'input' -%}{{- raise_exception('no place for the role ' ~ m.role) -}}\n{%- endif -%}\n"


def _quoted(text: str) -> str:
    """A Jinja string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _write(*parts: str) -> str:
    return "{{- " + " ~ ".join(part for part in parts if part not in ("", "''")) + " -}}\n"


def text_of(name: str, tokenizer) -> str:
    """The Jinja source of a built-in template. Rendered and encoded whole, it gives the ids of `render.render`.

    They differ where one piece reaches across the border of prompt and answer (`Rendered.straddles`), and for control
    tokens that people type, which other programs take for real.
    """
    shape = templates.BUILT_IN[name]
    space = " " if tokenizer.adds_prefix else ""
    body = _SHAPES[type(shape)](shape, space)
    return f"{{#- jinstr: {name} -#}}\n{body}"


def name_of(text: str, tokenizer) -> str:
    """The built-in template that a Jinja source was written from; "" for any other, and for one that was changed."""
    found = _HEAD.match(text)
    if not found or found[1] not in templates.BUILT_IN:
        return ""
    return found[1] if text_of(found[1], tokenizer).strip() == text.strip() else ""


def _sections(shape: templates.Sections, space: str) -> str:
    default = _quoted(shape.system)
    if shape.system_with_input:
        test = "turns | length > 1 and turns[1].role == 'input' and turns[1].content"
        default = f"({_quoted(shape.system_with_input)} if {test} else {default})"
    begin = ("bos_token", _quoted(space)) if shape.begins else ()
    answer = _quoted(shape.answer)
    return (
        _SYSTEM
        + _write(*begin, f"(system or {default})")
        + "{%- for m in turns -%}\n"
        + "{%- if m.role == 'user' -%}"
        + _write(_quoted(shape.user), "m.content")
        + "{%- elif m.role == 'input' and m.content -%}"
        + _write(_quoted(shape.input), "m.content")
        + "{%- elif m.role == 'assistant' -%}"
        + _write(answer, "m.content", "eos_token")
        + _WRONG
        + "{%- endfor -%}\n{%- if add_generation_prompt -%}"
        + _write(answer)
        + "{%- endif -%}\n"
    )


def _lines(shape: templates.Lines, space: str) -> str:
    del space

    def broken(*parts: str) -> str:
        joined = " ~ ".join(parts)
        if not shape.newline:
            return _write(joined)
        return _write(f"({joined}) | replace('\\n', {_quoted(shape.newline)})")

    system = broken(_quoted(shape.system), "system", "'\\n'")
    if not shape.system:
        system = "{{- raise_exception('this format has no place for a system turn') -}}\n"
    answer = _quoted("\n" + shape.answer)
    return (
        _SYSTEM
        + "{%- if system -%}"
        + system
        + "{%- endif -%}\n{%- for m in turns -%}\n"
        + "{%- if m.role == 'user' -%}\n"
        + _GIVEN
        + broken("('' if loop.first else '\\n')", _quoted(shape.user), "question")
        + "{%- elif m.role == 'assistant' -%}"
        + broken(answer, "m.content")
        + "{%- if loop.last -%}"
        + _write("eos_token")
        + "{%- endif -%}\n"
        + _WRONG
        + "{%- endfor -%}\n{%- if add_generation_prompt -%}"
        + broken(answer)
        + "{%- endif -%}\n"
    )


def _marked(shape: templates.Marked, space: str) -> str:
    del space
    before, _, after = "\0".join(shape.open).partition("role")
    before, after = before.replace("\0", ""), after.replace("\0", "")
    trim = " | trim" if shape.trim else ""

    def head(role: str) -> str:
        return _quoted(before + role + after)

    def turn(role: str, text: str) -> str:
        return _write(head(role), f"({text}){trim}", _quoted(shape.close + shape.after))

    begin = "bos_token" if shape.begin == "<bos>" else _quoted(shape.begin)
    default = f"{{%- set system = system or {_quoted(shape.system)} -%}}\n" if shape.system else ""
    system_turn, first = "", ""
    if shape.system_turn:
        system_turn = "{%- if system -%}" + turn("system", "system") + "{%- endif -%}\n"
    else:
        first = (
            "{%- if system and loop.first -%}{%- set question = system ~ '\\n\\n' ~ question -%}"
            "{%- endif -%}\n"
        )
    return (
        _SYSTEM
        + default
        + (_write(begin) if shape.begin else "")
        + system_turn
        + "{%- for m in turns -%}\n{%- if m.role == 'user' -%}\n"
        + _GIVEN
        + first
        + turn("user", "question")
        + "{%- elif m.role == 'assistant' -%}"
        + turn(shape.assistant, "m.content")
        + _WRONG
        + "{%- endfor -%}\n{%- if add_generation_prompt -%}"
        + _write(head(shape.assistant))
        + "{%- endif -%}\n"
    )


def _llama2(shape: templates.Llama2, space: str) -> str:
    head = f"'<<SYS>>\\n' ~ (system or {_quoted(shape.system)}) ~ '\\n<</SYS>>\\n\\n'"
    return (
        _SYSTEM
        + "{%- for m in turns -%}\n{%- if m.role == 'user' -%}\n"
        + _GIVEN
        + _write(
            "bos_token",
            _quoted(space + "[INST] "),
            f"({head} if loop.first else '')",
            "question",
            "' [/INST] '",
        )
        + "{%- elif m.role == 'assistant' -%}"
        + _write("m.content", "' '", "eos_token")
        + _WRONG
        + "{%- endfor -%}\n"
    )


_SHAPES = {
    templates.Sections: _sections,
    templates.Lines: _lines,
    templates.Marked: _marked,
    templates.Llama2: _llama2,
}
