"""Jinja for templates that strangers wrote: no way to Python, and an end to what a template may take.

Jinja's own sandbox refuses attributes that lead to Python. What is added here bounds the work of one rendering, see
`bounds.py`: every loop, call, filter, test, operator, slice and output is measured, and nothing is computed while a
template is compiled. A template that goes beyond ends with a TemplateError.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes, runtime

from jinstr.text import bounds

_INDENT = 100  # of tojson


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of `chat_template` files, with what published ones expect to find."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, extensions: Sequence[type]):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[*extensions, "jinja2.ext.loopcontrols"],
            optimized=False,
        )
        self._budget = bounds.Budget()
        self._turn = 1  # steps of a call of a macro
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals["raise_exception"] = bounds.refuse
        self.globals["strftime_now"] = self._now
        own = [getattr(extension, "_wrap", None) for extension in self.extensions.values()]
        self._functions = [*self.globals.values(), *own]
        self.filters["tojson"] = self._to_json
        self.filters = bounds.strict_filters(self.filters, self._budget)
        self.tests = bounds.strict_tests(self.tests, self._budget)
        # Written around parts of a template by `_parse`.
        self.filters["_counted"] = self._counted
        self.filters["_joined"] = self._joined
        self.filters["_kept"] = self._budget.keep
        self.filters["_looked"] = self._looked
        # With a context, so that it is called for constants too, and when they are written.
        self.finalize = jinja2.pass_context(lambda context, value: self._written(value))

    def compiled(self, text: str) -> jinja2.Template:
        """A template. Errors: jinja2.TemplateError, for whatever is wrong with it."""
        try:
            tokens = (
                () if len(text) > bounds.SOURCE else itertools.islice(self.lex(text), bounds.TOKENS)
            )
            if not tokens or sum(1 for _ in tokens) == bounds.TOKENS:
                bounds.refuse(f"more than {bounds.SOURCE:,} characters or {bounds.TOKENS:,} tokens")
            return self.from_string(text)
        except jinja2.TemplateError:
            raise
        except Exception as error:  # strangers' text: any kind
            raise jinja2.TemplateError(_line(error)) from None

    def render(self, template: jinja2.Template, **values) -> str:
        """Render within the bounds. Errors: jinja2.TemplateError, for whatever goes wrong in the template."""
        self._budget.renew()
        try:
            return template.render(**values)
        except jinja2.TemplateError:
            raise
        except Exception as error:  # strangers' code: any kind
            raise jinja2.TemplateError(_line(error)) from None

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        self._turn = max(self._turn, _steps(tree))
        for node in tree.find_all(nodes.Const):
            if not isinstance(node.value, str):
                self._budget.keep(node.value)
        _rewrite(tree, self)
        return tree

    def unsafe_undefined(self, obj, attribute):
        """Jinja would go on with an empty text."""
        raise jinja2.sandbox.SecurityError(
            f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe."
        )

    def getitem(self, obj, argument):
        if isinstance(argument, tuple):  # to find it takes as long as it is deep
            bounds.refuse("a tuple as a key")
        return super().getitem(obj, argument)

    def call(self, context, target, *args, **kwargs):
        if isinstance(target, runtime.Macro):
            self._budget.spend(self._turn)
            return super().call(context, target, *args, **kwargs)
        self._budget.spend(bounds.CALL)
        if isinstance(target, runtime.LoopContext):
            return super().call(context, target, *map(self._counted, args), **kwargs)
        method = bounds.method_of(target)
        if method:
            self._budget.method(*method, args, kwargs)
        elif not any(target is function for function in self._functions):
            name = getattr(target, "__name__", type(target).__name__)
            bounds.refuse(f"a call of {name}, which is not among what chat templates may call")
        else:
            self._budget.measure(args)
        return self._budget.keep(super().call(context, target, *args, **kwargs))

    def call_binop(self, context, operator, left, right):
        self._budget.binary(operator, left, right)
        return self._budget.keep(super().call_binop(context, operator, left, right))

    def _counted(self, values, turn: int = 0):
        """What a loop goes through; `turn`: steps of one turn."""
        if not hasattr(values, "__len__"):
            values = self._budget.listed(values)
        self._budget.spend(len(values) * (turn or self._turn))
        return values

    def _joined(self, values: list) -> str:
        """`a ~ b ~ c`."""
        self._budget.room(sum(map(self._budget.measure, values)))
        return self._budget.keep(runtime.str_join(values))

    def _looked(self, value):
        """What is compared, or is a key."""
        self._budget.measure(value)
        return value

    def _written(self, value):
        """What goes into the text: `{{ value }}`, and what stands between tags."""
        if not isinstance(value, str | jinja2.Undefined):
            self._budget.room(self._budget.measure(value))
            value = str(value)
        if isinstance(value, str):
            self._budget.make(len(value))
        return value

    def _now(self, form: str) -> str:
        self._budget.binary("%", form, ())
        return datetime.datetime.now().strftime(form)

    def _to_json(
        self, value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
    ) -> str:
        """As transformers has it: no HTML escapes."""
        size = len(indent) if isinstance(indent, str) else indent or 0
        if size > _INDENT or separators and max(map(len, separators)) > _INDENT:
            bounds.refuse(f"tojson with an indent or separators of more than {_INDENT}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        pieces = []
        for piece in encoder.iterencode(value):
            self._budget.make(len(piece))
            pieces.append(piece)
        return "".join(pieces)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[: bounds.MESSAGE]


def _steps(node: nodes.Node) -> int:
    """What running a part of a template once counts as: long ones take longer."""
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // 20


def _rewrite(node: nodes.Node, environment: Environment) -> None:
    """Put a measure around everything in a tree that Jinja computes without asking its environment."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, field, _rewritten(node, field, value, environment))
        elif isinstance(value, list):
            changed = [
                _rewritten(node, field, item, environment) if isinstance(item, nodes.Node) else item
                for item in value
            ]
            setattr(node, field, changed)


def _rewritten(parent: nodes.Node, field: str, node: nodes.Node, environment: Environment):
    _rewrite(node, environment)
    name = ""
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno).set_environment(environment)
    if isinstance(node, nodes.Concat):
        node, name = nodes.List(node.nodes, lineno=node.lineno), "_joined"
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        name = "_kept"
    elif isinstance(parent, nodes.For) and field == "iter":
        name = "_counted"
    elif isinstance(node, nodes.Const):
        pass
    elif isinstance(parent, nodes.Pair) and field == "key":
        name = "_looked"
    elif isinstance(parent, nodes.Compare | nodes.Operand) and field == "expr":
        name = "_looked"
    if not name:
        return node
    given = [nodes.Const(_steps(parent))] if name == "_counted" else []
    measured = nodes.Filter(node, name, given, [], None, None, lineno=node.lineno)
    return measured.set_environment(environment)
