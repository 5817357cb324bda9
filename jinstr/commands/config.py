"""`jinstr config`: every setting with its type, default and comment, read from the sources themselves."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
MACRO = re.compile(r"^([A-Z][A-Z0-9_]*) *= *(.*?) *(?:# *(.*))?$")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the list."""

    owner: str  # "pretrain" for a macro of a command, "train.optimizer.OptimizerConfig" for a field
    name: str
    type: str  # "" for a macro
    default: str  # as it stands in source; "" = must be set
    comment: str

    def is_about(self, word: str) -> bool:
        """Is `word` part of owner, name or comment, or made of the name's initials (lr: learning_rate)?"""
        initials = "".join(part[:1] for part in self.name.lower().split("_"))
        return word == initials or word in f"{self.owner} {self.name} {self.comment}".lower()

    def line(self) -> str:
        kind = f": {self.type}" if self.type else ""
        default = f" = {self.default}" if self.default else "  (required)"
        comment = f"  # {self.comment}" if self.comment else ""
        return f"  {self.name}{kind}{default}{comment}"


def config(*, search: str) -> None:
    """Print the settings that every word of `search` is about ("" = all)."""
    words = search.lower().split()
    found: dict[str, list[Setting]] = {}
    for setting in [*command_settings(PACKAGE.parent / "gin_configs"), *field_settings(PACKAGE)]:
        if all(setting.is_about(word) for word in words):
            found.setdefault(setting.owner, []).append(setting)
    for owner, settings in found.items():
        print(owner)
        print("\n".join(setting.line() for setting in settings))
    count = sum(map(len, found.values()))
    print(f"{count} settings" + (f' with "{search}"' if search else ""))


def command_settings(gin_configs: pathlib.Path) -> Iterator[Setting]:
    """The upper-case names that each command takes as NAME=value, from gin_configs/run/<command>.gin."""
    for path in sorted((gin_configs / "run").glob("*.gin")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := MACRO.match(line):
                name, default, comment = match.groups()
                default = "" if default == "%gin.REQUIRED" else default
                yield Setting(f"jinstr {path.stem}", name, "", default, comment or "")


def field_settings(package: pathlib.Path) -> Iterator[Setting]:
    """The fields of every `…Config` dataclass below `package`; nothing is imported."""
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Rules")):
                yield from _fields(node, f"{module}.{node.name}", source.splitlines())


def _fields(node: ast.ClassDef, owner: str, lines: list[str]) -> Iterator[Setting]:
    for index, field in enumerate(node.body):
        if not isinstance(field, ast.AnnAssign):
            continue
        comment = _trailing_comment(field, lines)
        after = node.body[index + 1] if index + 1 < len(node.body) else None
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            comment = comment or " ".join(str(after.value.value).split())
        default = ast.unparse(field.value) if field.value else ""
        yield Setting(
            owner, ast.unparse(field.target), ast.unparse(field.annotation), default, comment
        )


def _trailing_comment(field: ast.AnnAssign, lines: list[str]) -> str:
    """The comment behind a field; the formatter may have moved it into the parentheses of a long value."""
    for line in lines[field.lineno - 1 : field.end_lineno]:
        _, hash_sign, comment = line.partition("  # ")
        if hash_sign:
            return comment.strip()
    return ""
