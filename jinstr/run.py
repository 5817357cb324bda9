"""The command line: `jinstr <command> [recipe.gin ...] [NAME=value ...]`.

Reads gin files and overrides, checks everything in them, records what was resolved, calls the command's entry
function. The only file that imports gin; after the call nothing reads gin state. Nothing is silent: whatever is
unknown, unused, missing or of a wrong type ends here with exit status 78.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pathlib
import re
import select
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import gin
from gin import config_parser

import jinstr
from jinstr import cli, errors, failures, recipes, record, redact, settings
from jinstr.parallel import processes
from jinstr.testing import faults
from jinstr.train import debug, stopping, vitals

gin.add_config_file_search_path(str(recipes.REPOSITORY))
# gin also looks for files inside Python packages, and fails on a folder of .gin files that is none.
del gin.config._FILE_READERS[1:]

EXIT_SECONDS = 20.0  # for threads to end after an error


def console() -> int:
    """The console script: `main`, and a process that ends even where a library's thread does not."""
    status = main()
    if status:
        # A save that failed may leave threads that wait for it, and Python waits for threads.
        sys.stdout.flush()
        sys.stderr.flush()
        guard = threading.Timer(EXIT_SECONDS, os._exit, (status,))
        guard.daemon = True
        guard.start()
    return status


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(cli.overview())
        return 0
    # A user's own module (tasks, metrics) is found where they stand; last, so it shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if status := redact.guard(lambda: _main(argv)):
        processes.leave(status)
    return status


def _main(argv: list[str]) -> int:
    try:
        request = cli.parse_arguments(argv)
        arm_faults(request)
        if (
            request.command != "doctor"
        ):  # which looks at machines and runs from outside, without JAX
            from jinstr.parallel import mesh

            mesh.make_room_for_fake_devices()
        run(request)
    except errors.JinstrError as error:
        return _told(error)
    except KeyboardInterrupt:
        print("jinstr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno()
        )  # for Python's own last flush
        return 141
    except Exception as error:
        known = failures.of_machine(error)
        if known is None and processes.count() > 1:
            known = failures.of_peer(error)
        if known is None:
            raise
        return _told(known)
    return 0


def _nobody_reads() -> bool:
    """Has the reader of the output gone, as in `jinstr … | head`?"""
    watched = select.poll()
    watched.register(sys.__stdout__.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in watched.poll(0))


def _told(error: errors.JinstrError) -> int:
    """Print an error in one line; its exit status."""
    print(f"jinstr: {' '.join(redact.text(str(error)).split())}", file=sys.stderr)
    return error.exit_code


def run(request: cli.Request) -> None:
    """Resolve the settings of one command and call it."""
    if request.help:
        print(cli.settings_of(request.command, recipes.help_rows(request, parse_file)))
        return
    entry = cli.entry_function(request.command)
    kwargs = resolve(request, entry)
    resolved = record.of(request.command, jinstr.__version__, kwargs)
    is_training = request.command in [command.name for command in cli.TRAINING.commands]
    if request.dry_run:
        print(json.dumps(resolved, indent=1, ensure_ascii=False))
        if is_training:
            from jinstr.train import plan

            # Beside the settings, which stay JSON for whoever reads them by program.
            print("\n".join(plan.lines(kwargs)), file=sys.stderr)
        return
    # Only training writes into run_dir; other commands read a model from there.
    if not is_training:
        with debug.mode():
            entry(**kwargs)
        return
    processes.start(vitals.ended)
    run_dir, rank = pathlib.Path(kwargs["run_dir"]), processes.index()
    writes = rank == 0
    texts = redact.text(gin.config_str()), redact.text(gin.operative_config_str())
    told = vitals.telling(run_dir, rank, request.command)
    with stopping.running(run_dir, writes), told, debug.mode():
        changes = record.write(run_dir, resolved, *texts) if writes else []
        for change in changes:
            print(f"jinstr: settings differ from the last start in {run_dir}: {change}")
        before = record.progress(run_dir)
        try:
            if request.command in ("ppo", "grpo") and writes:
                from jinstr.train import plan

                # Several copies of a model, and answers beside them: what it takes is told before it is taken.
                print("\n".join(plan.lines(kwargs)))
            entry(**kwargs)
        except (errors.ConfigError, errors.DataError):
            # A start that was refused has no part in the run: its record makes way for the one before.
            if changes and record.progress(run_dir) == before:
                record.set_back(run_dir)
            raise
        processes.finish()


def arm_faults(request: cli.Request) -> None:
    """Faults that a test asks for, if the variable and the option agree. Errors: ConfigError for a misspelt one."""
    text = os.environ.get(faults.VARIABLE, "")
    if not request.allow_faults:
        return
    try:
        faults.enable(text)
    except ValueError as error:
        raise errors.ConfigError("JI-CONFIG-020", str(error)) from None


def parse_file(path: pathlib.Path, builder: recipes.Scan) -> Iterator[recipes.Line]:
    """The statements of one gin file, without following or executing any. Errors: ConfigError for syntax."""
    with path.open(encoding="utf-8") as file:
        try:
            statements = list(config_parser.ConfigParser(file, builder))
        except SyntaxError as error:
            message = f"{recipes.short(path)}:{error.lineno}: {error.msg}: {error.text or ''}"
            raise errors.ConfigError("JI-CONFIG-001", message) from None
        except (ValueError, tokenize.TokenError, RecursionError) as error:
            message = f"{recipes.short(path)} is not a gin file: {error}"
            raise errors.ConfigError("JI-CONFIG-001", message) from None
    for statement in statements:
        number = statement.location.line_num
        if isinstance(statement, config_parser.ImportStatement):
            is_renamed = statement.is_from or statement.alias
            name = statement.bound_name() if is_renamed else ""
            yield recipes.Line("import", statement.module, number, name)
        elif isinstance(statement, config_parser.IncludeStatement):
            yield recipes.Line("include", statement.filename, number)
        elif isinstance(statement, config_parser.BindingStatement):
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            name = f"{name}.{statement.arg_name}" if statement.arg_name else name
            comment = statement.location.line_content.partition("#")[2].strip()
            yield recipes.Line("set", name, number, statement.value, comment)


def resolve(request: cli.Request, entry: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of `entry` as files and command line bind them. Errors: ConfigError."""
    scan, files = recipes.scan_files(request, parse_file)
    recipes.check_macros(request.command, scan)
    gin.clear_config()
    bindings = [f"{name} = {value!r}" for name, value in request.overrides.items()]
    implied = recipes.implied(request.command, scan)
    bindings += [f"{name} = {value!r}" for name, value in implied.items()]
    try:
        gin.parse_config_files_and_bindings(files, bindings)
    except (ArithmeticError, AttributeError, ImportError, LookupError, NameError) as error:
        raise _translated(error, scan) from None
    except (RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise _translated(error, scan) from None
    check_bindings(entry, scan, is_reader=request.command in recipes.READERS)
    try:
        kwargs = gin.get_bindings(entry)
    except errors.JinstrError as error:  # from a __post_init__; gin appends its call chain
        raise errors.ConfigError(error.code, error.message) from None
    except (TypeError, ValueError) as error:
        raise _translated(error, scan) from None
    for line in [*request.overridden, *scan.overridden()]:
        print(f"jinstr: {redact.text(line)}", file=sys.stderr)
    return kwargs


def check_bindings(entry: Callable[..., Any], scan: recipes.Scan, is_reader: bool = False) -> None:
    """Errors: ConfigError for an argument that is not bound, a wrong type, and a binding that nothing reads (which is
    none where a command reads a part of another one's recipe)."""
    config = gin.config._CONFIG  # gin has no public way to list all bindings
    selector = f"{entry.__module__}.{entry.__name__}"
    bound = config.get(("", selector), {})
    for name in inspect.signature(entry).parameters:
        if name not in bound:
            message = f"{entry.__name__}.{name} is not bound in any .gin file"
            raise errors.ConfigError("JI-CONFIG-009", message)
    read = set()
    for key, name, value, owner in bindings_read(config, (), selector, entry):
        read.add(_spelled(key, name))
        if key[1] != "gin.macro":
            label, where, value = _traced(value, config, scan)
            label, where = label or f"{owner.__name__}.{name}", where or _where(scan, *key, name)
            check_type(label, where, _settled(value, config, scan, where), owner, name)
    for key, values in config.items():
        for spelled in (_spelled(key, name) for name in values):
            if spelled not in read and not is_reader:
                where = _where(scan, *key, spelled.rpartition(".")[2])
                scope, _, plain = spelled.rpartition("/")
                known = [*(name for name in read if "/" in name), plain] if scope else read
                near = settings.did_you_mean(spelled, known)
                message = f"{where}: {spelled} is set but nothing uses it{near}"
                raise errors.ConfigError("JI-CONFIG-011", message)


def check_type(label: str, where: str, value: Any, owner: Any, name: str) -> None:
    """Errors: ConfigError when `value` is not of the type that `owner` declares for `name`."""
    wanted = settings.types_of(owner)[name]
    if settings.matches(value, wanted):
        return
    is_instance = isinstance(value, settings.Instance)
    shown = value.cls.__name__ if is_instance else f"{value!r} ({type(value).__name__})"
    raise errors.ConfigError(
        "JI-CONFIG-010",
        f"{where}: {label} = {shown}, but {owner.__name__}.{name} is {settings.type_name(wanted)}"
        f"{settings.way_out(label, value, wanted)}",
    )


def _spelled(key: tuple[str, str], name: str) -> str:
    return "/".join(filter(None, key)) + f".{name}"


def _traced(value: Any, config: dict, scan: recipes.Scan) -> tuple[str, str, Any]:
    """Follow `%A = %B = 3` to its end: (last macro, where it is set, its value)."""
    label = where = ""
    while isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        label = "/".join(value.scopes)
        where = scan.statements[label].where
        value = config[value.config_key]["value"]
    return label, where, value


def bindings_read(
    config: dict, scope: tuple[str, ...], selector: str, owner: Any
) -> Iterator[tuple[tuple[str, str], str, Any, Any]]:
    """Every (key, parameter, value, owner) that a call of `selector` within `scope` reads."""
    for depth in range(len(scope) + 1):
        key = ("/".join(scope[:depth]), selector)
        for name, value in config.get(key, {}).items():
            yield key, name, value, owner
            for reference in gin.config.iterate_references(value):
                inner = reference.configurable
                scopes = tuple(reference.scopes) or scope
                yield from bindings_read(config, scopes, inner.selector, inner.wrapped)


def _settled(value: Any, config: dict, scan: recipes.Scan, where: str) -> Any:
    """`value` with macros replaced, and objects that are going to be built as settings.Instance.

    Errors: ConfigError for a reference to anything but jinstr's (or an allowed module's) own dataclasses and functions.
    """
    if isinstance(value, tuple | list):
        return type(value)(_settled(item, config, scan, where) for item in value)
    if isinstance(value, dict):
        return dict(_settled(list(value.items()), config, scan, where))
    _, _, value = _traced(value, config, scan)
    if not isinstance(value, gin.config.ConfigurableReference):
        return value
    target = value.configurable.wrapped
    if not recipes.is_within(target.__module__, scan.allowed):
        message = f"{where}: {value} belongs to {target.__module__}; see --allow_import"
        raise errors.ConfigError("JI-CONFIG-012", message)
    if not value.evaluate:
        return target
    if not dataclasses.is_dataclass(target):
        raise errors.ConfigError(
            "JI-CONFIG-013", f"{where}: {value}: only dataclasses can be built"
        )
    return settings.Instance(target)


def _where(scan: recipes.Scan, scope: str, selector: str, name: str) -> str:
    """file:line of a binding; gin itself does not keep it."""
    for written, statement in reversed(scan.statements.items()):
        written_scope, _, rest = written.rpartition("/")
        written_selector, _, written_name = rest.rpartition(".")
        same = written_scope == scope and written_name == name
        if same and f".{selector}".endswith(f".{written_selector}"):
            return statement.where
    return recipes.COMMAND_LINE


def _translated(error: Exception, scan: recipes.Scan) -> errors.ConfigError:
    """One of gin's errors as ours, with file:line and the nearest name."""
    message, _, chain = str(error).partition("\n")
    message = message.rstrip(".")
    place = re.search(r'file "(.*)", line (\d+)', chain)
    where = f"{recipes.short(pathlib.Path(place[1]))}:{place[2]}" if place else recipes.COMMAND_LINE
    near = ""
    if found := re.search(r"'([\w.]+)' doesn't have a parameter named '(\w+)'", message):
        known = settings.types_of(gin.get_configurable(found[1]))
        message = f"{found[1]} has no setting {found[2]}"
        near = settings.did_you_mean(found[2], known)
    elif found := re.search(r"<module '([\w.]+)'.* has no attribute (\w+)", message):
        message = f"{found[1]} has no {found[2]}"
        near = settings.did_you_mean(found[2], vars(sys.modules[found[1]]))
    elif found := re.search(r"'(\w+)' was not provided by an import", message):
        message = f"{found[1]} is not imported above it in this file"
        if found[1] in scan.modules:
            near = f"; import {scan.modules[found[1]]} first"
        else:
            near = settings.did_you_mean(found[1], scan.modules)
    elif found := re.search(r"No configurable matching '([\w.]+)'", message):
        message = f"{found[1]} is not known"
        known = [name.rpartition(".")[0] for name, s in scan.statements.items() if s.path]
        near = settings.did_you_mean(found[1], known)
    return errors.ConfigError("JI-CONFIG-014", f"{where}: {message}{near}")
