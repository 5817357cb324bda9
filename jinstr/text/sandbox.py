"""Jinja for templates that strangers wrote: no way to Python, and an end to what a template may take.

Jinja's own sandbox refuses attributes that lead to Python. What is added here bounds the work of one rendering: steps
of loops and calls, lengths of texts, sizes of numbers. A template that goes beyond ends with a TemplateError.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

STEPS = 200_000  # turns of loops and calls in one rendering
CHARACTERS = 20_000_000  # of any text that is put together
NUMBER = 1_000_000  # largest number that a template writes or computes


def refuse(message: str):
    raise jinja2.TemplateError(message)


def _bounded(value):
    """A value that was put together; refused when it is too large to go on with."""
    if isinstance(value, int | float) and abs(value) > NUMBER:
        refuse(f"a number beyond {NUMBER:,}")
    if isinstance(value, str | list | tuple) and len(value) > CHARACTERS:
        refuse(f"a text of more than {CHARACTERS:,} characters")
    return value


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of `chat_template` files, with what published ones expect to find: see `compile`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, extensions: Sequence[type]):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[*extensions, "jinja2.ext.loopcontrols"],
        )
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals["raise_exception"] = refuse
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self.filters["tojson"] = _to_json
        self.filters["_counted"] = self._counted
        self.filters["_bounded"] = _bounded
        self._steps = 0

    def render(self, template: jinja2.Template, **values) -> str:
        """Render within the bounds. Errors: jinja2.TemplateError, for whatever goes wrong in the template."""
        self._steps = 0
        try:
            return template.render(**values)
        except jinja2.TemplateError:
            raise
        except Exception as error:  # strangers' code: any kind
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from None

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(nodes.Const):
            _bounded(node.value)
        for node in tree.find_all(nodes.For):
            node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None).set_environment(
                self
            )
        _wrap_texts(tree, self)
        return tree

    def unsafe_undefined(self, obj, attribute):
        """Jinja would go on with an empty text."""
        raise jinja2.sandbox.SecurityError(
            f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe."
        )

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > STEPS:
            refuse(f"more than {STEPS:,} steps")

    def _counted(self, values):
        if not hasattr(values, "__len__"):
            values = self._listed(values)
        else:
            self._spend(len(values))
        return values

    def _listed(self, values) -> list:
        found = []
        for value in values:
            self._spend(1)
            found.append(value)
        return found

    def call(self, context, target, *args, **kwargs):
        self._spend(1)
        return super().call(context, target, *args, **kwargs)

    def call_binop(self, context, operator, left, right):
        texts = [v for v in (left, right) if isinstance(v, str | list | tuple)]
        numbers = [v for v in (left, right) if isinstance(v, int)]
        if operator == "*" and texts and numbers and len(texts[0]) * numbers[0] > CHARACTERS:
            refuse(f"a text of more than {CHARACTERS:,} characters")
        if operator == "**" and (not isinstance(right, int) or abs(right) > 64):
            refuse("a power beyond 64")
        return _bounded(super().call_binop(context, operator, left, right))


def _wrap_texts(node: nodes.Node, environment: Environment) -> None:
    """Every `a ~ b` in a tree is measured before anything goes on with it."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            _wrap_texts(value, environment)
            if isinstance(value, nodes.Concat):
                setattr(node, field, _measured(value, environment))
        elif isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _wrap_texts(item, environment)
                    if isinstance(item, nodes.Concat):
                        value[at] = _measured(item, environment)


def _measured(node: nodes.Expr, environment: Environment) -> nodes.Filter:
    return nodes.Filter(node, "_bounded", [], [], None, None, lineno=node.lineno).set_environment(
        environment
    )


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers has it: no HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
