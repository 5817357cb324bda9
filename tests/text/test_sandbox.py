"""Templates that try to reach Python, or never to end, are stopped with one line; published idioms work."""

import json
import subprocess
import sys
import time

import jinja2.sandbox
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


BIG = "{% set a = 'a' * 3000000 %}"
NEST = (
    "{% set n = namespace(l=[1], t=(1,)) %}{% for i in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.t = (n.t, n.t) %}{% endfor %}"
)
LOOP = "{% for i in range(60000) %}"
BOMBS = [
    "{{ '%300000000d' % 1 }}",
    "{{ '%*d' % (300000000, 1) }}",
    "{{ '%.300000000f' % 1 }}",
    "{{ '{:>300000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 300000000) }}",
    "{{ '%300000000s' | format('a') }}",
    "{{ ('%s' * 9999) | format(*([BIG] * 9999)) }}".replace("BIG", "'a' * 3000"),
    BIG + "{{ ('{0}' * 999).format(a) }}",
    BIG + "{{ a.replace('a', a) }}",
    BIG + "{{ a | replace('a', a) }}",
    BIG + "{{ a | replace('', 'xxxxxxxx') }}",
    BIG + "{{ a | join(a[:300]) }}",
    BIG + "{{ a[:999].join(a) }}",
    BIG + "{{ a.join(a[:999]) }}",
    BIG + LOOP + "{{ a }}{% endfor %}",
    BIG + LOOP + "{% set b = a[1:] %}{% endfor %}",
    BIG + LOOP + "{% if 'aab' in a %}{% endif %}{% endfor %}",
    BIG + LOOP + "{% if a is eq(a[1:]) %}{% endif %}{% endfor %}",
    BIG + LOOP + "{% set b = a.find('aab') %}{% endfor %}",
    BIG + LOOP + "{% set b = a.strip('b') %}{% endfor %}",
    BIG + LOOP + "{% set b = a.upper() %}{% endfor %}",
    BIG + LOOP + "{% set b = a ~ i %}{% endfor %}",
    BIG + "{{ a.rfind('b' ~ a[:1500000]) }}",
    BIG + "{{ a.strip(a ~ 'b') }}",
    BIG + "{% set b = a " + "~ a " * 999 + "%}",
    BIG + "{{ [a] * 100000 }}",
    BIG + "{{ ([a] * 100000) | sort }}",
    BIG + "{{ ([a] * 100000) | tojson }}",
    "{{ ('a ' * 2000000).split() | length }}",
    "{{ ('a ' * 2000000).rsplit(' ', 1000000) | length }}",
    "{{ ('a\\n' * 2000000).splitlines() | length }}",
    BIG + "{{ a | list | length }}",
    BIG + "{{ a | map('upper') | list | length }}",
    BIG + "{{ a | title }}",
    BIG + "{{ raise_exception(a) }}",
    "{{ 'a' | center(300000000) }}",
    "{{ 'a'.center('300000000' | int) }}",
    "{{ 'a'.zfill('300000000' | int) }}",
    "{{ 'a'.expandtabs('300000000' | int) }}",
    "{{ ('a\n' * 100000) | indent('3000' | int) }}",
    "{{ [[1]] | tojson(indent='300000000' | int) }}",
    "{{ ([[[[[1]]]]] * 100000) | tojson(indent=99) }}",
    "{{ ([1] * 100000) | tojson(separators=('x' * 1000000, ':')) }}",
    "{{ 1.5 | round('1000000000' | int) }}",
    "{{ ([[1] * 1000000] * 20) | sum(start=[]) }}",
    "{{ (range(100000) | map('string') | list * 100) | sort | length }}",
    "{{ [1] | batch('30000000' | int, 'x') | list | length }}",
    "{{ [1] | slice('30000000' | int) | list | length }}",
    "{{ strftime_now('%300000000Y') }}",
    "{% for i in range(100) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for m in range(9) recursive %}{% if loop.depth == 1 %}{% for i in range(9999) %}{{ loop.index }}"
    "{% endfor %}{{ loop(range(100000)) }}{{ loop(range(100000)) }}{% endif %}{% endfor %}",
    NEST + "{{ n.l }}",
    NEST + "{{ n }}",
    NEST + "{{ n.l ~ '' }}",
    NEST + "{{ n.l | string }}",
    NEST + "{{ n.l | tojson }}",
    NEST + "{{ n.l | join }}",
    NEST + "{{ '%s' % n.l }}",
    NEST + "{{ '{}'.format(n.l) }}",
    NEST + "{{ {n.t: 1} }}",
    NEST + "{{ {}[n.t] }}",
    NEST + "{{ {}.get(n.t) }}",
    NEST + "{{ [n.t] | unique | list | length }}",
    NEST + "{{ n.t in {} }}",
    NEST + "{{ raise_exception(n.l) }}",
    NEST.replace("(l", "(k=[1], l").replace("{% endfor", "{% set n.k = [n.k, n.k] %}{% endfor")
    + "{{ n.k == n.l }}",
    LOOP + "x" * 90000 + "{% endfor %}",
    "{% macro m() %}" + "x" * 90000 + "{% endmacro %}" + LOOP + "{% set b = m() %}{% endfor %}",
    LOOP + "{% set b = 1 %}" * 1300 + "{% endfor %}",
    "{{ [" + "1," * 50000 + "] }}",
    "{{ x }}" * 15000,
    "{% if x %}{% endif %}" * 4900,
    "{{ " + "9" * 6000 + " }}",
    "{{ " + "1+" * 40000 + "1 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ x" + " | trim" * 10000 + " }}",
    "{{ x " + "~ x" * 30000 + "}}",
    LOOP + "{{ 'a b' | title | upper | lower | trim | length }}{% endfor %}",
    LOOP + "{{ 'a b'.strip().split(' ') }}{% endfor %}",
]
PROBE = """
import json, sys, time
import jinja2
from jinstr.text import sandbox
for source in json.load(sys.stdin):
    environment = sandbox.Environment([])
    started, words = time.process_time(), ""
    try:
        environment.render(environment.compiled(source), messages=[])
    except jinja2.TemplateError as error:
        words = str(error)
    with open("/proc/self/status") as file:  # not ru_maxrss, which begins at what the parent had
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    print(json.dumps([words, time.process_time() - started, peak]))
"""


def test_bombs_end_soon_and_take_little_memory():
    """Every function of Jinja that could make much of little; the memory is that of a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(["{{ 'a' * 100 }}", *BOMBS]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert found[0][0] == "" and len(found) == len(BOMBS) + 1  # negative control: no bomb, no words
    for source, (words, seconds, peak) in zip(BOMBS, found[1:]):
        shown = source[:150], words, seconds, peak
        assert words and "\n" not in words and len(words) <= 300, shown
        assert seconds < 2 and peak < 200, shown


FILTERED = [
    "{{ ' x y ' | trim | upper | lower | capitalize | title | length }}",
    "{{ [{'a': 1, 'b': 'é'}] | tojson }}{{ {'a': [1, 2]} | tojson(indent=2) }}",
    "{{ messages | map(attribute='content') | join(', ') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ (messages | rejectattr('role', 'eq', 'user') | list | first).content }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2} | items %}{{ k ~ v ~ loop.index }}{% endfor %}",
    "{{ [3, 1, 2, 1] | sort | unique | reverse | list }}{{ 'abc' | reverse }}",
    "{{ 'a\nb' | indent(4, true) }}{{ 'aXb' | replace('X', '-') }}{{ '%s-%05.1f' | format('a', 2) }}",
    "{{ none | default('x', true) }}{{ y | default('z') }}{{ '7' | int + 1 }}{{ 7 | string ~ 1.5 }}",
    "{{ '%d' % 3 }}{{ '{} {:>5}'.format('a', 1) }}{{ 'a b'.split() }}{{ 'a,b,c'.split(',', 1)[-1] }}",
    "{% set ns = namespace(n=0, l=[]) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index %}"
    "{% set ns.l = ns.l + [m.content[:1]] %}{% endfor %}{{ ns.n }}{{ ns.l }}{{ 2 ** 3 - 1 }}",
    "{% macro f(m) %}<{{ m.role }}{{ caller() if caller else '' }}>{% endmacro %}{{ f(messages[0]) }}"
    "{% call f(messages[1]) %}!{% endcall %}{% set t %}block {{ 1 }}{% endset %}{{ t }}",
    "{{ '</think>' in messages[1].content }}{{ messages[1].get('content').rstrip('\n').partition('x') }}",
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% endfor %}",
    "{{ [1, 2] | min }}{{ (1, 2) | max }}{{ [1, 2] | last }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ 1 in [1] }}",
    "{{ 'x' is string and messages is iterable and tools is not defined and 3 is odd }}",
    "{{ dict(a=1) }}{{ {'a': 1}.items() | list }}{{ range(3) | list }}{{ ('<' | safe) ~ '>' }}",
]


@pytest.mark.parametrize("source", FILTERED)
def test_what_is_measured_is_what_jinja_writes(source):
    environment = sandbox.Environment([])
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    messages = [{"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え\n"}]
    found = environment.render(environment.compiled(source), messages=messages)
    assert found == plain.from_string(source).render(messages=messages) != ""
    # Negative control.
    assert found != plain.from_string(source + "x").render(messages=messages)


def test_functions_that_are_not_named_are_refused():
    environment = sandbox.Environment([])
    for source, words in [
        ("{{ 'a' | center(3) }}", "the filter center is not among"),
        ("{{ 'a'.expandtabs() }}", "a call of expandtabs, which is not among"),
    ]:
        with pytest.raises(jinja2.TemplateError, match=words):
            environment.render(environment.compiled(source))
    assert environment.render(environment.compiled("{{ 'a'.center(3) }}")) == " a "


def test_long_conversations_are_within_the_bounds():
    """A template that takes answers apart as Qwen 3's does, on 400 turns, and on two of 500,000 characters."""
    source = (
        "{% for m in messages %}{% set text = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + text.strip() + '<|im_end|>\\n' }}{% endfor %}"
    )
    environment = sandbox.Environment([])
    template = environment.compiled(source)
    for turns, length in ((400, 1500), (2, 500_000)):
        pair = [("user", "問" * length), ("assistant", "<think>x</think>\n" + "答" * length)]
        messages = [{"role": role, "content": text} for role, text in pair] * (turns // 2)
        written = environment.render(template, messages=messages)
        assert written.count("答") == written.count("問") == length * turns // 2
        assert "think" not in written


def test_a_template_that_changes_earlier_answers_names_the_way_out(tmp_path, tokenizer):
    """As Qwen 3's does, which leaves the thoughts of earlier turns out and puts empty ones into the last."""
    path = tmp_path / "changing.jinja"
    thought = "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    path.write_text(CHAT.replace("{{ m.content }}", thought + "{{ m.content }}"), "utf-8")
    with pytest.raises(errors.ConfigError, match="JI-TEMPLATE-007") as caught:
        jinja.load(str(path), tokenizer)
    for words in ("TEMPLATE=chatml", "{% generation %}", str(path)):
        assert words in caught.value.message
    # Negative control: the way out is one.
    marked = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    marked += "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    path.write_text(CHAT.replace("{{ m.content }}<|im_end|>\n", marked), "utf-8")
    assert jinja.load(str(path), tokenizer).stop_ids == (tokenizer.id_of("<|im_end|>"),)
