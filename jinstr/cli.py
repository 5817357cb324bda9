"""The words of the command line: commands by stage in English and Japanese, arguments, `--help`."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinstr import errors, settings


@dataclasses.dataclass(frozen=True)
class Command:
    """One line of `jinstr --help`. Its code is the function `name` of jinstr/commands/<name>.py."""

    name: str
    english: str
    japanese: str
    words: tuple[str, ...] = ()  # the settings that words without NAME= are, in order


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the work and its commands, in the order in which people use them."""

    english: str
    japanese: str
    commands: tuple[Command, ...]


TRAINING = Stage(
    "train",
    "学習",
    (
        Command("pretrain", "train a language model on text", "文章から言語モデルを学習する"),
        Command("sft", "tune it on instructions and answers", "指示と応答で調整する"),
        Command("reward", "train a model that scores answers", "回答を採点するモデルを学習する"),
        Command("dpo", "tune it on rankings of answers", "回答の順位づけから直接調整する"),
        Command("ppo", "tune it by a reward, with a critic", "報酬と価値関数で調整する"),
        Command(
            "grpo", "tune it by scores within groups", "同じ質問への回答どうしの点数で調整する"
        ),
    ),
)
STAGES = (
    Stage(
        "prepare",
        "準備",
        (
            Command("tokenizer", "train a SentencePiece tokenizer", "トークナイザーを作る"),
            Command("prepare", "render and tokenise data ahead", "データを学習用に変換する"),
            Command("inspect", "look at a batch as people read it", "バッチの中身を見る"),
        ),
    ),
    TRAINING,
    Stage(
        "output",
        "出力",
        (
            Command("generate", "answer a file of prompts", "ファイルの質問にまとめて答える"),
            Command("score", "score answers by a reward", "報酬で回答を採点する"),
            Command("chat", "talk to a model in the terminal", "端末でモデルと対話する"),
            Command(
                "convert", "save a model for Hugging Face", "Hugging Face形式で書き出す", ("MODEL",)
            ),
            Command(
                "import-config",
                "LLaMA-Factory YAML to a recipe",
                "LLaMA-Factoryの設定をレシピにする",
                ("TRAIN", "DATASETS"),
            ),
        ),
    ),
    Stage(
        "evaluate",
        "評価",
        (
            Command("evaluate", "score models on benchmarks", "ベンチマークで採点する"),
            Command(
                "compare",
                "people compare answers in sheets",
                "人が評価シートで回答を比べる",
                ("ACTION",),
            ),
            Command("judge", "verdicts on answers by a model", "モデルに回答を判定させる"),
        ),
    ),
    Stage(
        "operate",
        "運用",
        (
            Command("quickstart", "the whole chain on built-in data", "内蔵データで全工程を試す"),
            Command(
                "resume",
                "go on with a run as it was recorded",
                "記録どおりに学習を続ける",
                ("RUN_DIR",),
            ),
            Command(
                "replay", "look at a past step of a run", "過去のステップを再現する", ("RUN_DIR",)
            ),
            Command(
                "plan",
                "memory, traffic, time on chips to rent",
                "借りる前に必要な資源を見積もる",
            ),
            Command(
                "doctor",
                "what ails a machine or a run",
                "機械や学習の状態を診る",
                ("RUN_DIR",),
            ),
            Command("bench", "measure training, decoding, loading", "速度を測る"),
            Command("config", "list settings and their defaults", "設定項目と既定値の一覧"),
        ),
    ),
)
COMMANDS = {command.name: command for stage in STAGES for command in stage.commands}


def entry_function(command: str) -> Callable[..., Any]:
    """The function `command` of jinstr/commands/<command>.py, imported only now."""
    module = importlib.import_module(f"jinstr.commands.{command.replace('-', '_')}")
    return getattr(module, command.replace("-", "_"))


USAGE = """\
usage: jinstr <command> [recipe.gin ...] [NAME=value ...] [options]
       jinstr <command> --help          the settings of a command / コマンドの設定項目
       jinstr config --search lr        every setting whose name or text has "lr" / 設定の検索
"""
OPTIONS = """\
options / オプション
  NAME=value, --name value     a setting; no shell quotes around strings / 設定値（引用符は不要）
  --gin_file=FILE              the same as naming FILE / 設定ファイル
  --gin.NAME=value             the same as NAME=value / 設定値
  --dry_run                    print the resolved settings and stop / 設定を表示して終了
  --allow_import=MODULE        let .gin files import your module / .ginからの読み込みを許可
"""


def overview() -> str:
    """The text of `jinstr --help`."""
    lines = [USAGE]
    for stage in STAGES:
        lines.append(f"{stage.english} / {stage.japanese}")
        lines += [f"  {c.name:<14} {c.english:<36} {c.japanese}" for c in stage.commands]
    return "\n".join([*lines, "", OPTIONS])


def settings_of(command: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """The text of `jinstr <command> --help`; rows are (name, default, comment)."""
    entry = COMMANDS[command]
    lines = [
        f"jinstr {command}: {entry.english} / {entry.japanese}",
        "",
        f"settings / 設定項目 (gin_configs/run/{command}.gin)",
    ]
    lines += [f"  {name:<18} {default:<14} {comment}".rstrip() for name, default, comment in rows]
    return "\n".join([*lines, "", OPTIONS])


@dataclasses.dataclass(kw_only=True)
class Request:
    """What the command line asks for."""

    command: str
    files: list[str] = dataclasses.field(default_factory=list)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    overridden: list[str] = dataclasses.field(default_factory=list)  # settings that are given twice
    allow_import: list[str] = dataclasses.field(default_factory=list)
    dry_run: bool = False
    allow_faults: bool = False
    help: bool = False

    def override(self, name: str, text: str) -> None:
        """Set `name`; the last word wins. Errors: ConfigError for what cannot be a name."""
        if not re.fullmatch(r"([A-Za-z_]\w*/)*[A-Za-z_][\w.]*", name):
            known = ("dry_run", "gin_file", "allow_import", "allow_faults", "help")
            near = settings.did_you_mean(name, known)
            raise errors.ConfigError("JI-CLI-003", f"command line: no setting --{name}{near}")
        value = settings.literal(text)
        if name in self.overrides and self.overrides[name] != value:
            before = f"command line: {name} = {self.overrides[name]!r}"
            self.overridden.append(f"{before} is overridden by {name} = {value!r}")
        self.overrides[name] = value


def parse_arguments(argv: list[str]) -> Request:
    """Split the command line. Errors: ConfigError for an unknown command or word."""
    command, *words = argv
    if command not in COMMANDS:
        near = settings.did_you_mean(command, COMMANDS)
        raise errors.ConfigError("JI-CLI-001", f"no command {command!r}{near} See jinstr --help")
    request = Request(command=command)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            request.help = True
        elif word == "--dry_run":
            request.dry_run = True
        elif word == "--allow_faults":
            request.allow_faults = True
        elif word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            if not equals:  # `--name value`, or `--name` alone for True
                is_value = words and not re.match(r"--|[A-Za-z_][\w.]*=|.*\.gin$", words[0])
                text = words.pop(0) if is_value else "True"
            if name == "gin_file":
                request.files.append(text)
            elif name == "allow_import":
                request.allow_import += text.split(",")
            else:
                is_word = re.fullmatch(r"\w+", name)
                request.override(name.upper() if is_word else name.removeprefix("gin."), text)
        elif re.match(r"[A-Za-z_][\w./]*=", word):
            name, _, text = word.partition("=")
            request.override(name, text)
        elif word.endswith(".gin"):
            request.files.append(word)
        elif free := [n for n in COMMANDS[command].words if n not in request.overrides]:
            request.override(free[0], word)
        else:
            raise errors.ConfigError(
                "JI-CLI-002", f"{word!r} is neither a .gin file nor NAME=value nor an option"
            )
    return request
