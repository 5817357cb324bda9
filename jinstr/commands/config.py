"""`jinstr config`: every setting with type, default, comment and place, read from the sources themselves."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

from jinstr import settings as settings_lib

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
MACRO = re.compile(r"^([A-Z][A-Z0-9_]*) *= *(.*?) *(?:# *(.*))?$")
BINDING = re.compile(
    r"^([\w.]+)\.(\w+) *= *%(\w+)$"
)  # optimizer.OptimizerConfig.learning_rate = %LEARNING_RATE


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the list."""

    owner: (
        str  # "jinstr pretrain" for a macro of a command, "optimizer.OptimizerConfig" for a field
    )
    name: str
    type: str  # "" when it is not known
    default: str  # as it stands in source; "" = must be set
    comment: str
    place: str  # file of the owner
    sets: str = ""  # of a macro: the field that it sets

    def is_about(self, word: str) -> bool:
        """Is `word` part of owner, name or comment, or made of the name's initials (lr: learning_rate)?"""
        initials = "".join(part[:1] for part in self.name.lower().split("_"))
        return (
            word == initials
            or word in f"{self.owner} {self.name} {self.sets} {self.comment}".lower()
        )

    def line(self) -> str:
        kind = f": {self.type}" if self.type else ""
        default = f" = {self.default}" if self.default else "  (required)"
        comment = f"  # {self.comment}" if self.comment else ""
        return f"  {self.name}{kind}{default}{comment}"


def config(*, search: str) -> None:
    """Print the settings that every word of `search` is about ("" = all)."""
    fields = list(field_settings(PACKAGE))
    everything = [*command_settings(PACKAGE.parent / "gin_configs", fields), *fields]
    words = search.lower().split()
    found: dict[str, list[Setting]] = {}
    for setting in everything:
        if all(setting.is_about(word) for word in words):
            found.setdefault(f"{setting.owner}  ({setting.place})", []).append(setting)
    for owner, settings in found.items():
        print(owner)
        print("\n".join(setting.line() for setting in settings))
    count = sum(map(len, found.values()))
    near = "" if count else settings_lib.did_you_mean(search, [s.name for s in everything])
    print(f"{count} settings" + (f' with "{search}"' if search else "") + near)
    if count:
        print("set: NAME=value, or a field as optimizer.OptimizerConfig.beta1=0.8")


def command_settings(gin_configs: pathlib.Path, fields: list[Setting]) -> Iterator[Setting]:
    """The upper-case names that each command takes as NAME=value, from gin_configs/run/<command>.gin.

    A name without a comment there has that of the field it sets.
    """
    by_name = {f"{field.owner}.{field.name}": field for field in fields}
    for path in sorted((gin_configs / "run").glob("*.gin")):
        place = str(path.relative_to(gin_configs.parent))
        lines = path.read_text(encoding="utf-8").splitlines()
        bound = {m[3]: f"{m[1]}.{m[2]}" for line in lines if (m := BINDING.match(line))}
        for line in lines:
            if match := MACRO.match(line):
                name, default, comment = match.groups()
                default = "" if default == "%gin.REQUIRED" else default
                field = by_name.get(sets := bound.get(name, ""))
                comment = comment or (field.comment if field else "")
                kind = field.type if field else ""
                yield Setting(f"jinstr {path.stem}", name, kind, default, comment, place, sets)


def field_settings(package: pathlib.Path) -> Iterator[Setting]:
    """The fields of every `…Config` dataclass below `package`; nothing is imported."""
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        place = str(path.relative_to(package.parent))
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Rules")):
                yield from _fields(node, f"{path.stem}.{node.name}", place, source.splitlines())


def _fields(node: ast.ClassDef, owner: str, place: str, lines: list[str]) -> Iterator[Setting]:
    for index, field in enumerate(node.body):
        if not isinstance(field, ast.AnnAssign):
            continue
        comment = _trailing_comment(field, lines)
        after = node.body[index + 1] if index + 1 < len(node.body) else None
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            comment = comment or " ".join(str(after.value.value).split())
        default = ast.unparse(field.value) if field.value else ""
        name, kind = ast.unparse(field.target), ast.unparse(field.annotation)
        yield Setting(owner, name, kind, default, comment, place)


def _trailing_comment(field: ast.AnnAssign, lines: list[str]) -> str:
    """The comment behind a field; the formatter may have moved it into the parentheses of a long value."""
    for line in lines[field.lineno - 1 : field.end_lineno]:
        _, hash_sign, comment = line.partition("  # ")
        if hash_sign:
            return comment.strip()
    return ""
