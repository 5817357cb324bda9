"""What a run directory needs so that others can use its model.

RUN_DIR/model.json        the DecoderConfig
RUN_DIR/tokenizer.model   the SentencePiece model, beside tokenizer.normalise.json (its normalisation profile); or
RUN_DIR/tokenizer.json    a Hugging Face tokenizer, beside tokenizer_config.json (its special tokens)
RUN_DIR/template.txt      the name of a built-in chat template; or template.jinja, a template of one's own; or neither
"""

from __future__ import annotations

import pathlib
import shutil

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.parallel import processes, together
from jinstr.text import tokenizer as tokenizer_lib


def write(run_dir, config: config_lib.DecoderConfig, tokenizer_path: str, template: str) -> None:
    """Put model.json, the tokenizer and the template (a name, a .jinja path or "") into the run directory."""
    together.barrier("begun")  # until here the others may still read what was there before
    if processes.index():
        return
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "model.json").write_text(config.to_json() + "\n", encoding="utf-8")
    tokenizer_lib.copy(tokenizer_path, run_dir)
    if template.endswith(".jinja"):
        target = run_dir / "template.jinja"
        if pathlib.Path(template).resolve() != target.resolve():
            shutil.copyfile(template, target)
        (run_dir / "template.txt").unlink(missing_ok=True)
    elif template:
        (run_dir / "template.txt").write_text(template + "\n", encoding="utf-8")
        (run_dir / "template.jinja").unlink(missing_ok=True)


def tokenizer_path(run_dir) -> str:
    """The tokenizer file of a run. Errors: StorageError when there is none."""
    found = tokenizer_lib.find(run_dir)
    if found is None:
        raise errors.StorageError(
            "JI-SERVE-001",
            f"{run_dir} has no tokenizer.model or tokenizer.json; give a RUN_DIR that `jinstr pretrain` or `sft` wrote",
        )
    return str(found)


def template_of(run_dir) -> str:
    """The template a run was trained with: a name, the path of its template.jinja, or ""."""
    run_dir = pathlib.Path(run_dir)
    if (run_dir / "template.jinja").exists():
        return str(run_dir / "template.jinja")
    name = run_dir / "template.txt"
    return name.read_text(encoding="utf-8").strip() if name.exists() else ""
