"""Templates that try to reach Python, or never to end, are stopped with one line; published idioms work."""

import time

import pytest

from jinstr import errors
from jinstr.text import jinja, render, sandbox

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PYTHON = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__.datetime }}",
    "{{ ('' | attr('__class__')).mro() }}",
    "{{ messages.__init__ }}{{ messages.append(1) }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__.__init__}'.format(messages) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(1).x.y }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{% do messages.clear() %}",
]
ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'x' * 999999 * 999999 }}",
    "{{ 'x' * 10**9 }}",
    "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ lipsum(1000000) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
]


@pytest.mark.parametrize("attack", PYTHON + ENDLESS)
def test_stopped(attack, tmp_path, tokenizer):
    path = tmp_path / "evil.jinja"
    path.write_text(CHAT, "utf-8")
    jinja.load(str(path), tokenizer)  # negative control: without the attack the template is taken
    path.write_text(attack + CHAT, "utf-8")
    started = time.perf_counter()
    with pytest.raises((errors.ConfigError, errors.DataError)) as caught:
        jinja.load(str(path), tokenizer)
    assert time.perf_counter() - started < 10
    assert "\n" not in caught.value.message and str(path) in caught.value.message


def test_idioms_of_published_templates(tmp_path, tokenizer):
    path = tmp_path / "usual.jinja"
    head = (
        "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
        "{%- if tools is not none %}{{ tools | tojson }}{%- endif %}"
        "{%- set ns = namespace(found=false) %}{%- for m in messages %}"
        "{%- if loop.last and not ns.found %}{%- set ns.found = true %}{%- endif %}{%- endfor %}"
        "{%- if strftime_now is defined and false %}{{ strftime_now('%d %b %Y') }}{%- endif %}"
        "{%- set text = messages[0]['content'].strip().split('x')[0] ~ '' %}"
        "{%- for i in range(0, 3) %}{%- if i == 2 %}{%- break %}{%- endif %}{%- endfor %}"
        "{%- for key, value in {'a': 1}.items() %}{%- endfor %}"
    )
    path.write_text(head + CHAT, "utf-8")
    plain = tmp_path / "plain.jinja"
    plain.write_text(CHAT, "utf-8")
    messages = [{"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}]
    rendered = [
        render.render(messages, jinja.load(str(p), tokenizer), tokenizer) for p in (path, plain)
    ]
    assert rendered[0] == rendered[1]


def test_the_budget_is_of_one_rendering():
    environment = sandbox.Environment([])
    template = environment.from_string("{% for i in range(90000) %}{% endfor %}ok")
    assert [environment.render(template) for _ in range(20)] == ["ok"] * 20
    twenty = environment.from_string(
        "{% for k in range(20) %}" + "{% for i in range(90000) %}{% endfor %}" + "{% endfor %}"
    )
    with pytest.raises(Exception, match="more than 200,000 steps"):
        environment.render(twenty)
