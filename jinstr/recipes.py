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


@dataclasses.dataclass(frozen=True)
class Reference:
    """`%NAME` or `@module.Thing()` in a gin file, as text."""

    name: str
    is_macro: bool


REQUIRED = Reference("gin.REQUIRED", is_macro=True)


@dataclasses.dataclass(frozen=True)
class Statement:
    """The last word on one name: its value, where it stands, and the comment behind it."""

    value: Any
    where: str
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """One statement of one file."""

    kind: str  # import | include | set
    name: str  # module, file name, or the name that is set
    number: int  # line number
    value: Any = None
    comment: str = ""


class Scan:
    """What a set of gin files says. `parse(path, builder)` yields a file's Lines; run.py, which knows gin, gives it.

    Also the builder of values: gin's parser asks it for an object per `@reference` and `%macro`.
    """

    def __init__(
        self, parse: Callable[[pathlib.Path, Scan], Iterator[Line]], allow_import: list[str]
    ):
        self.parse = parse
        self.allowed = ("__gin__", "jinstr", *allow_import)
        self.files: dict[pathlib.Path, None] = {}  # in order of reading
        self.statements: dict[str, Statement] = {}  # "NUM_STEPS", "config.DecoderConfig.num_layers"

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference:
        return Reference(scoped_selector, is_macro=False)

    def macro(self, name: str) -> Reference:
        return Reference(name, is_macro=True)

    def read(self, name: str, asked_by: str = COMMAND_LINE) -> None:
        """Read one file and what it includes. Errors: ConfigError for syntax, imports, order."""
        path = find_file(name, asked_by)
        self.files[path] = None
        has_bindings = False
        for line in self.parse(path, self):
            where = f"{short(path)}:{line.number}"
            if line.kind == "import":
                self._check_import(line.name, where)
            elif line.kind == "include":
                if has_bindings:  # gin lets the include win over what stands above it
                    raise errors.ConfigError(
                        "JI-CONFIG-002",
                        f"{where}: move includes to the top, here they override silently",
                    )
                self.read(line.name, where)
            else:
                has_bindings = True
                self.statements.pop(line.name, None)  # keep the order of the last words
                self.statements[line.name] = Statement(line.value, where, line.comment)

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
    probe = Scan(parse, request.allow_import)
    for name in request.files:
        probe.read(name)
    files = request.files if base in probe.files else [str(base), *request.files]
    scan = Scan(parse, request.allow_import)
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
        scan.statements[name] = Statement(value, COMMAND_LINE, comment)
    return scan, [str(find_file(name, COMMAND_LINE)) for name in files]


def check_macros(command: str, scan: Scan) -> None:
    """Errors: ConfigError for a macro that is required and not set, not defined, or not used."""
    used: set[str] = set()
    waiting = [s for name, s in scan.statements.items() if "." in name]
    while waiting:
        statement = waiting.pop()
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
        if name not in used:
            near = settings.did_you_mean(name, used)
            raise errors.ConfigError(
                "JI-CONFIG-007", f"{statement.where}: {name} is set but nothing uses it{near}"
            )
        if statement.value == REQUIRED:
            meaning = f" ({statement.comment})" if statement.comment else ""
            raise errors.ConfigError(
                "JI-CONFIG-008", f"{command} needs {name}{meaning}; add {name}=..."
            )


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
