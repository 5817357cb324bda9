"""The shape of the house: imports go one way, gin and TensorFlow stay where they belong, files stay readable."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "jinstr"
FILES = sorted(PACKAGE.rglob("*.py"))
# A package may import those of a lower number, and itself.
LEVELS = {
    "run": 11,
    "recipes": 10,
    "commands": 8,
    "record": 7,
    "cli": 6,
    "rlhf": 6,
    "evaluate": 6,
    "train": 5,
    "decode": 4,
    "data": 4,
    "samples": 3,
    "human": 3,
    "models": 2,
    "losses": 2,
    "text": 2,
    "parallel": 1,
    "settings": 1,
    "failures": 1,
    "posting": 1,
    "errors": 0,
    "redact": 0,
    "testing": 0,
}
NO_JAX = ("text", "samples", "human")
TENSORFLOW = ("tensorflow", "seqio", "tensorflow_datasets")


def imports(path):
    """(module, is at the top of the file) of every import."""
    tree = ast.parse(path.read_text("utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, id(node) in top) for name in names)


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def problems(path, found):
    own = part(path)
    if own == "__init__":
        return
    for name, at_top in found:
        words = name.split(".")
        if words[0] == "jinstr" and len(words) > 1 and words[1] != own and words[1] in LEVELS:
            if LEVELS[words[1]] >= LEVELS[own]:
                yield f"{own} imports {words[1]}"
        if words[0] == "gin" and own != "run":
            yield "gin outside run.py"
        if words[0] in TENSORFLOW and (own != "data" or at_top):
            yield f"{words[0]} outside data/, or not inside a function"
        if words[0] in ("jax", "flax", "optax") and own in NO_JAX:
            yield f"{words[0]} in {own}/"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    assert list(problems(path, imports(path))) == []


def test_what_the_import_test_sees():
    """Negative control."""
    path = PACKAGE / "text" / "render.py"
    bad = [("jinstr.train.loop", True), ("gin", True), ("seqio", False), ("jax.numpy", True)]
    assert len(list(problems(path, bad))) == 4
    assert list(problems(PACKAGE / "data" / "x.py", [("seqio", True), ("seqio", False)])) != []


def test_decode_and_data_do_not_know_each_other():
    for own, other in (("decode", "data"), ("data", "decode")):
        for path in (PACKAGE / own).rglob("*.py"):
            assert not [n for n, _ in imports(path) if n.startswith(f"jinstr.{other}")], path


def test_files_and_functions_stay_readable():
    lengths = []
    for path in FILES:
        text = path.read_text("utf-8")
        is_data = part(path) == "samples"
        lengths.append(text.count("\n"))
        assert lengths[-1] <= 400 or is_data, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                limit = 150 if part(path) == "commands" else 71
                assert node.end_lineno - node.lineno < limit, (path.name, node.name)
    lengths.sort()
    assert lengths[len(lengths) // 2] < 150


def test_top_level_holds_nothing_else():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    allowed = {
        "setup.py",
        "README.md",
        "README.ja.md",
        "LICENSE",
        "jinstr",
        "gin_configs",
        "launch",
    }
    assert {name for name in names if not name.startswith(".")} <= allowed | {"tests"}


def test_importing_everything_starts_no_backend_and_no_tensorflow():
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in FILES
        if path.name != "__init__.py"
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized(), 'tensorflow' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == ["False", "False"], done.stderr[-2000:]


def test_both_readmes_show_the_same_commands():
    def blocks(name):
        parts = (REPOSITORY / name).read_text("utf-8").split("```")
        return parts[1::2]

    assert blocks("README.md") == blocks("README.ja.md") and len(blocks("README.md")) >= 6
