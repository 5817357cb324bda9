"""What gin files say, read as text: nothing in them is imported or called yet.

Checks what gin lets pass: imports of foreign modules, includes below bindings, macros that are unknown, unused,
undefined or required and not set.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jinstr
from jinstr import cli, errors, settings

REPOSITORY = pathlib.Path(jinstr.__file__).resolve().parents[1]
COMMAND_LINE = "command line"
# commands that take recipes of training commands and read a part of what those say
READERS = ("plan",)


@dataclasses.dataclass(frozen=True)
class Reference:
    """`%NAME` or `@module.Thing()` in a gin file, as text."""

    name: str
    is_macro: bool

    def __repr__(self) -> str:
        return f"{'%' if self.is_macro else '@'}{self.name}"


REQUIRED = Reference("gin.REQUIRED", is_macro=True)


@dataclasses.dataclass(frozen=True)
class Statement:
    """One word on one name: its value, where it stands, and the comment behind it."""

    name: str  # as it is written
    value: Any
    where: str
    comment: str = ""
    path: pathlib.Path | None = None  # of the file; None = command line

    def __str__(self) -> str:
        return f"{self.where}: {self.name} = {self.value!r}"


@dataclasses.dataclass(frozen=True)
class Line:
    """One statement of one file."""

    kind: str  # import | include | set
    name: str  # module, file name, or the name that is set
    number: int  # line number
    value: Any = None  # of a setting; of an import, the name that it makes known ("" = the module's whole name)
    comment: str = ""


class Scan:
    """What a set of gin files says. `parse(path, builder)` yields a file's Lines; run.py, which knows gin, gives it.

    Also the builder of values: gin's parser asks it for an object per `@reference` and `%macro`.
    """

    def __init__(
        self,
        parse: Callable[[pathlib.Path, Scan], Iterator[Line]],
        allow_import: list[str],
        defaults: pathlib.Path,
    ):
        self.parse = parse
        self.allowed = ("__gin__", "jinstr", *allow_import)
        self.defaults = defaults  # the file that others are there to override
        self.files: dict[
            pathlib.Path, set[pathlib.Path]
        ] = {}  # in order of reading; what each includes
        # "NUM_STEPS", "config.DecoderConfig.num_layers" → the last word on it
        self.statements: dict[str, Statement] = {}
        # "NUM_STEPS", "jinstr.models.config.DecoderConfig.num_layers" → all words on it, in order
        self.history: dict[str, list[Statement]] = {}
        self.modules: dict[str, str] = {}  # name that an import makes known → module
        self._open: list[
            pathlib.Path
        ] = []  # the file that is being read, below those that include it

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference:
        return Reference(scoped_selector, is_macro=False)

    def macro(self, name: str) -> Reference:
        return Reference(name, is_macro=True)

    def read(self, name: str, asked_by: str = COMMAND_LINE) -> None:
        """Read one file and what it includes. Errors: ConfigError for syntax, imports, order."""
        path = find_file(name, asked_by)
        self.files.setdefault(path, set())
        for includer in self._open:
            self.files[includer].add(path)
        self._open.append(path)
        modules: dict[str, str] = {}
        own: dict[str, Statement] = {}
        for line in self.parse(path, self):
            where = f"{short(path)}:{line.number}"
            if line.kind == "import":
                self._check_import(line.name, where)
                if line.value:
                    modules[line.value] = line.name
            elif line.kind == "include":
                self.read(line.name, where)
                self._check_order(own, where)
            else:
                own[line.name] = Statement(line.name, line.value, where, line.comment, path)
                scope, slash, rest = line.name.rpartition("/")
                first, dot, last = rest.partition(".")
                self.add(own[line.name], scope + slash + modules.get(first, first) + dot + last)
        self._open.pop()
        self.modules |= modules

    def add(self, statement: Statement, full_name: str) -> None:
        """What is said last wins; earlier words stay in the history."""
        self.statements.pop(statement.name, None)  # keep the order of the last words
        self.statements[statement.name] = statement
        self.history.setdefault(full_name, []).append(statement)

    def _check_order(self, own: dict[str, Statement], where: str) -> None:
        """Errors: ConfigError for an include that stands below bindings: gin lets it win over them."""
        for name, statement in own.items():
            if (other := self.statements[name]) is not statement:
                raise errors.ConfigError(
                    "JI-CONFIG-002",
                    f"{where}: this include overrides what stands above it ({statement}) by {other}; "
                    "move includes to the top",
                )
        if own:
            raise errors.ConfigError(
                "JI-CONFIG-002", f"{where}: move includes to the top, so that the lines below win"
            )

    def overridden(self) -> Iterator[str]:
        """A line for each value that a file lost to another file beside it, naming both places.

        To override the defaults of the command or a file that one includes is what recipes are for, and the command
        line is the last word: these are not told.
        """
        for *earlier, last in self.history.values():
            if last.path is None:
                continue
            meant = {self.defaults, *self.files[last.path]}
            for statement in earlier:
                if statement.path not in meant and statement.value != last.value:
                    yield f"{statement} is overridden by {last}"

    def _check_import(self, module: str, where: str) -> None:
        if not is_within(module, self.allowed):
            raise errors.ConfigError(
                "JI-CONFIG-003",
                f"{where}: may not import {module}; if you trust it, add --allow_import={module}",
            )

    @property
    def macros(self) -> dict[str, Statement]:
        return {name: s for name, s in self.statements.items() if "." not in name}


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def short(path: pathlib.Path) -> str:
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def find_file(name: str, asked_by: str) -> pathlib.Path:
    """The gin file `name`, from here or from the repository root."""
    for folder in (pathlib.Path(), REPOSITORY):
        if (folder / name).is_file():
            return (folder / name).resolve()
    known = [short(path) for path in (REPOSITORY / "gin_configs").rglob("*.gin")]
    near = settings.did_you_mean(name, known)
    raise errors.ConfigError("JI-CONFIG-004", f"{asked_by}: no file {name!r}{near}")


def scan_files(request: cli.Request, parse: Callable) -> tuple[Scan, list[str]]:
    """Scan what the request names, after gin_configs/run/<command>.gin unless a recipe includes that itself.

    Returns the scan and the files to load, in order.
    """
    base = REPOSITORY / "gin_configs" / "run" / f"{request.command}.gin"
    probe = Scan(parse, request.allow_import, base)
    for name in request.files:
        probe.read(name)
    files = request.files if base in probe.files else [str(base), *request.files]
    scan = Scan(parse, request.allow_import, base)
    for name in files:
        scan.read(name)
    known = scan.macros
    for name, value in request.overrides.items():
        if "." not in name and name not in known:
            near = settings.did_you_mean(name, known)
            raise errors.ConfigError(
                "JI-CONFIG-005", f"{request.command} has no setting {name}={value}{near}"
            )
        comment = scan.statements[name].comment if name in scan.statements else ""
        full_names = [full for full in scan.history if full == name or full.endswith(f".{name}")]
        scan.add(Statement(name, value, COMMAND_LINE, comment), (full_names or [name])[0])
    return scan, [str(find_file(name, COMMAND_LINE)) for name in files]


def check_macros(command: str, scan: Scan) -> None:
    """Errors: ConfigError for a macro that is required and not set, not defined, or not used.

    What a recipe's own command asks for and uses is nothing to a command that reads a part of it.
    """
    used: set[str] = set()
    others = _of_other_commands(scan) if command in READERS else set()
    waiting = [s for name, s in scan.statements.items() if "." in name]
    while waiting:
        statement = waiting.pop()
        if statement.value == REQUIRED and "." in statement.name:
            message = f"{statement.where}: {command} needs {statement.name}; set it"
            raise errors.ConfigError("JI-CONFIG-008", message)
        for name in _macro_names(statement.value):
            if name == "gin.REQUIRED" or name in used:
                continue
            used.add(name)
            if name not in scan.statements:
                near = settings.did_you_mean(name, scan.macros)
                raise errors.ConfigError(
                    "JI-CONFIG-006", f"{statement.where}: %{name} is not defined{near}"
                )
            waiting.append(scan.statements[name])
    for name, statement in scan.macros.items():
        if name in others and (name not in used or statement.value == REQUIRED):
            continue
        if name not in used:
            raise errors.ConfigError("JI-CONFIG-007", _why_unused(statement, scan, used))
        if statement.value == REQUIRED:
            meaning = f" ({statement.comment})" if statement.comment else ""
            raise errors.ConfigError(
                "JI-CONFIG-008", f"{command} needs {name}{meaning}; add {name}=..."
            )


def _of_other_commands(scan: Scan) -> set[str]:
    """Macros that files of other commands define."""
    run = scan.defaults.parent
    return {
        name
        for name in scan.macros
        if any(
            s.path and s.path.parent == run and s.path != scan.defaults for s in scan.history[name]
        )
    }


def implied(command: str, scan: Scan) -> dict[str, str]:
    """Macros of a command that reads recipes of others, as these leave or make them: "" where the other command's file
    requires one and this one does not; WHAT, where it is not said, is the command that the recipe is for."""
    if command not in READERS:
        return {}
    found = {n: "" for n in _of_other_commands(scan) if scan.statements[n].value == REQUIRED}
    run = scan.defaults.parent
    others = [path.stem for path in scan.files if path.parent == run and path != scan.defaults]
    if others and not scan.statements["WHAT"].value:
        found["WHAT"] = others[-1]
    return found


def _why_unused(macro: Statement, scan: Scan, used: set[str]) -> str:
    """What to say of a macro that nothing uses: a binding took its place, or it is misspelt."""
    for *earlier, last in scan.history.values():
        if any(macro.name in _macro_names(statement.value) for statement in earlier):
            return f"{last}, but {macro.name} is there to set it; write {macro.name} = {last.value!r} instead"
    near = settings.did_you_mean(macro.name, used)
    return f"{macro.where}: {macro.name} is set but nothing uses it{near}"


def _macro_names(value: Any) -> Iterator[str]:
    if isinstance(value, Reference) and value.is_macro:
        yield value.name
    elif isinstance(value, dict):
        yield from _macro_names(list(value.items()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _macro_names(item)


def help_rows(request: cli.Request, parse: Callable) -> Iterator[tuple[str, str, str]]:
    """(name, default, comment) of every macro that the files of a request define."""
    scan, _ = scan_files(request, parse)
    for name, statement in scan.macros.items():
        default = "(required)" if statement.value == REQUIRED else repr(statement.value)
        yield name, default, statement.comment
