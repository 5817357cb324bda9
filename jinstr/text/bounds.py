"""What one rendering of a stranger's template may take, and what its calls, filters and tests may do.

Everything is measured before it is computed: how much text and how many items go in, and how much can come out. Only
functions that are named here can be called; each of them takes time in proportion to what was measured.
"""

from __future__ import annotations

import functools
import re
import types

import jinja2
from jinja2 import runtime, utils

# Of the source of a template; published ones have some thousands of either.
SOURCE = 100_000  # characters
TOKENS = 16_000  # words, signs and spaces in tags
STEPS = 200_000  # turns of loops, calls, and items that lists are made of; some 10 microseconds each at most
CALL = 4  # steps of a call or a filter
MADE = 10_000_000  # characters that are put together
READ = 50_000_000  # characters and items that are looked at
NUMBER = 10**12  # largest number that a template computes
WIDTH = 10_000  # largest width of a field, or indent
MESSAGE = 300  # characters of a template's own error

FILTERS = frozenset(
    "capitalize count d default dictsort first float format indent int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string title tojson trim unique upper".split()
)
STRINGS = frozenset(
    "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit "
    "islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace "
    "rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill".split()
)
OTHERS = frozenset("count get index items keys values".split())  # of lists, tuples and dicts
# Looking at a value's kind costs nothing; other tests compare.
_KINDS = frozenset(
    "boolean callable defined divisibleby even false float integer iterable mapping none number odd sameas sequence "
    "string true undefined".split()
)
# These look at the value itself only, or hand its items one by one to others that are bounded.
_LIGHT = frozenset(
    "count d default first float int items last length list map reject rejectattr select selectattr".split()
)
_WIDE = frozenset("center ljust rjust zfill".split())
_SPLITS = frozenset("partition rpartition rsplit split splitlines".split())
_SLOW = frozenset(
    "lstrip rfind rindex rpartition rsplit rstrip strip".split()
)  # text times argument
_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of lines, for str.splitlines
_LISTS = list | tuple | set | frozenset | type({}.keys()) | type({}.values()) | type({}.items())


def refuse(message):
    """Also `raise_exception` of templates: their own words, in one short line."""
    text = message if isinstance(message, str) else type(message).__name__
    raise jinja2.TemplateError(" ".join(text[: 4 * MESSAGE].split())[:MESSAGE])


class Budget:
    """What is left in one rendering. Every method raises jinja2.TemplateError when it is not enough."""

    def __init__(self):
        self.renew()

    def renew(self) -> None:
        self.steps, self.made, self.read = STEPS, MADE, READ

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            refuse(f"more than {STEPS:,} steps")

    def look(self, size: int) -> None:
        self.read -= size
        if self.read < 0:
            refuse(f"more than {READ:,} characters to look at")

    def room(self, characters: int) -> None:
        """Refuse what is about to be put together if it may become too long."""
        if characters > self.made:
            refuse(f"a text of more than {MADE:,} characters, or several that long together")

    def make(self, characters: int) -> None:
        self.room(characters)
        self.made -= characters

    def measure(self, value) -> int:
        """Characters that a value takes at most when it is written; all that is in it counts as looked at."""
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                size, inner = len(item), ()
            elif isinstance(item, dict):
                size, inner = 24, [*item.keys(), *item.values()]
            elif isinstance(item, _LISTS):
                size, inner = 24, item
            elif isinstance(item, utils.Namespace):
                size, inner = 24, [object.__getattribute__(item, "_Namespace__attrs")]
            elif isinstance(item, range):
                size, inner = 8 * len(item), ()
            else:
                size, inner = 32, ()  # a number, none or the name of a function
            self.look(size + 8 * len(inner))
            total += size + 4 * len(inner)
            stack.extend(inner)
        return total

    def keep(self, value):
        """A value that was made: charged, and refused where it is too large to go on with."""
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > NUMBER:
            if abs(value) != float("inf"):
                refuse(f"a number beyond {NUMBER:,}")
        if isinstance(value, str):
            self.make(len(value))
        elif isinstance(value, list | tuple | dict):
            self.spend(len(value))
        elif hasattr(value, "__next__"):  # filters that work item by item
            value = self.listed(value)
        return value

    def listed(self, values) -> list:
        found = []
        for value in values:
            self.spend(1)
            found.append(value)
        return found

    def filter(self, name: str, value, args, kwargs) -> None:
        """Before a filter."""
        self.spend(CALL)
        self.measure([args, kwargs])
        numbers = [n for n in (*args, *kwargs.values()) if isinstance(n, int)]
        if name not in ("int", "default", "d") and any(abs(n) > WIDTH for n in numbers):
            refuse(f"{name} with a number beyond {WIDTH:,}")
        if name in _LIGHT:
            if name == "list" and hasattr(value, "__len__") and len(value) > self.steps:
                self.spend(len(value))
            return
        size = self.measure(value)
        self.room(size)
        if name in ("sort", "dictsort"):
            self.look(size * len(value).bit_length())
        elif name == "title":
            self.spend(size)  # cut into words and put together again
        elif name == "trim":
            self.look(size * _longest(args, kwargs))
        elif name == "replace":
            self._replaced(value, *args, **kwargs)
        elif name == "join":
            self._joined(size, value, *args, **kwargs)
        elif name == "indent":
            self._indented(value, *args, **kwargs)
        elif name == "format":
            self._formatted(value, [args, kwargs])

    def method(self, value, name: str, args, kwargs) -> None:
        """Before a method of a text, a list, a tuple or a dict."""
        given = self.measure([args, kwargs])
        if not isinstance(value, str):
            if name in ("count", "index"):
                self.measure(value)
            return
        size = self.measure(value)
        self.room(size)
        if name in _SLOW:
            self.look(size * _longest(args, kwargs))
        if name in _SPLITS:
            self._split(value, name, *args, **kwargs)
        elif name == "replace":
            self._replaced(value, *args, **kwargs)
        elif name == "join":
            self._joined(given, args[0], value)
        elif name in ("format", "format_map"):
            self._formatted(value, [args, kwargs])
        elif name in _WIDE and args[0] > WIDTH:
            refuse(f"{name} with a width beyond {WIDTH:,}")

    def binary(self, operator: str, left, right) -> None:
        """Before `left operator right`."""
        if operator == "%" and isinstance(left, str):
            self._formatted(left, right)
        elif operator == "**" and (not isinstance(right, int) or abs(right) > 64):
            refuse("a power beyond 64")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str) and isinstance(times, int):
                    self.room(len(value) * times)
                elif isinstance(value, list | tuple) and isinstance(times, int):
                    self.items(len(value) * times)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.room(len(left) + len(right))

    def items(self, count: int) -> None:
        """Refuse a list that is about to be made if it may become too long."""
        if count > self.steps:
            self.spend(count)

    def _formatted(self, form: str, values) -> None:
        """Widths stand in the text, so that they can be seen, and are small."""
        computed = r"%[^%a-zA-Z]*\*", r"\{[^{}]*\{"
        if any(re.search(pattern, form.replace("{{", "")) for pattern in computed):
            refuse(f"a field in {form[:40]!r} with a computed width")
        if re.search(r"\d{5}", form):
            refuse(f"a field in {form[:40]!r} that is wider than {WIDTH:,}")
        self.look(len(form))
        widths = sum(int(width) for width in re.findall(r"\d+", form))
        fields = form.count("%") + form.count("{")
        self.room(len(form) + widths + fields * self.measure(values))

    def _replaced(self, text, old, new, count=None) -> None:
        text, times = str(text), str(text).count(str(old))
        if count is not None and count >= 0:
            times = min(times, count)
        self.room(len(text) + times * len(str(new)))

    def _joined(self, size: int, values, d="", attribute=None) -> None:
        del attribute
        self.room(size + len(values) * len(str(d)))

    def _indented(self, text, width=4, *_, **__) -> None:
        size = len(width) if isinstance(width, str) else width
        lines = sum(text.count(end) for end in _ENDS) + 1
        self.items(lines)
        self.room(len(text) + lines * size)

    def _split(self, text: str, name: str, sep=None, maxsplit=-1, **_) -> None:
        self.make(len(text))
        if name == "splitlines":
            self.items(sum(text.count(end) for end in _ENDS))
        elif name in ("split", "rsplit") and not 0 <= maxsplit <= self.steps:
            few = text.split(sep, self.steps) if self.steps else []
            self.items(len(few))


def _longest(args, kwargs) -> int:
    return max((len(v) for v in (*args, *kwargs.values()) if isinstance(v, str)), default=1)


def strict_filters(filters: dict, budget: Budget) -> dict:
    """The filters that templates may use, each measured; the others end with a line that says so."""
    return {
        name: _filter(name, function, budget) if name in FILTERS else _unknown(name)
        for name, function in filters.items()
    }


def _unknown(name: str):
    def refused(*_, **__):
        refuse(f"the filter {name} is not among those that chat templates may use")

    return refused


def _filter(name: str, function, budget: Budget):
    first = int(hasattr(function, "jinja_pass_arg"))  # the context comes before the value

    @functools.wraps(function)
    def guarded(*args, **kwargs):
        before, value, others = args[:first], args[first], args[first + 1 :]
        if hasattr(value, "__next__"):
            value = budget.listed(value)
        budget.filter(name, value, others, kwargs)
        return budget.keep(function(*before, value, *others, **kwargs))

    return guarded


def strict_tests(tests: dict, budget: Budget) -> dict:
    """Tests that compare measure what they compare."""

    def measured(function):
        @functools.wraps(function)
        def guarded(*args):
            budget.measure(args)
            return function(*args)

        return guarded

    return {name: f if name in _KINDS else measured(f) for name, f in tests.items()}


def method_of(target) -> tuple[object, str] | None:
    """(value, name) of a method of text, lists and the like that may be called; None for anything else."""
    if isinstance(target, types.FunctionType) and target.__name__ in ("format", "format_map"):
        target = getattr(target, "__wrapped__", target)  # the sandbox put its own around it
    value, name = getattr(target, "__self__", None), getattr(target, "__name__", "")
    allowed = isinstance(value, str) and name in STRINGS
    allowed |= isinstance(value, list | tuple | dict) and name in OTHERS
    allowed |= isinstance(value, runtime.LoopContext) and name in ("changed", "cycle")
    return (value, name) if allowed else None
