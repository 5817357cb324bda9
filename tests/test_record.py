"""config.json: what is written there comes back as the same arguments, and nothing else is accepted."""

import dataclasses
import functools
import json

import pytest

import jinstr
from jinstr import cli, errors, record, run
from jinstr.commands import resume
from jinstr.data import sources
from jinstr.parallel import mesh
from jinstr.train import storage

NEEDED = {
    "pretrain": ["DATA=a.jsonl", "TOKENIZER=t.model", "RUN_DIR=r", "EPOCHS=1"],
    "sft": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "reward": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "dpo": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "ppo": ["INIT=b", "PROMPTS=p.jsonl", "REWARD=number", "RUN_DIR=r", "ITERATIONS=1"],
    "grpo": ["INIT=b", "PROMPTS=p.jsonl", "REWARD=number", "RUN_DIR=r", "ITERATIONS=1"],
}
COMMANDS = [command.name for command in cli.TRAINING.commands]


def kwargs_of(command, *more):
    request = cli.parse_arguments([command, *NEEDED[command], *more])
    return run.resolve(request, cli.entry_function(command))


def written(folder, command, kwargs):
    resolved = record.of(command, jinstr.__version__, kwargs)
    record.write(folder, resolved, "", "")
    return resolved


def rewrite(folder, change):
    """Change config.json as one who knows the digest would."""
    path = folder / "config.json"
    found = json.loads(path.read_text("utf-8"))
    change(found)
    found["digest"] = record.digest(found["settings"])
    path.write_text(json.dumps(found), "utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_written_is_read(command, tmp_path):
    kwargs = kwargs_of(command)
    written(tmp_path, command, kwargs)
    assert record.read(tmp_path) == (command, kwargs)
    # Negative control: one setting differs, deep inside.
    other = kwargs | {"optimizer": dataclasses.replace(kwargs["optimizer"], beta1=0.8)}
    assert record.read(tmp_path) != (command, other)


def test_every_kind_of_value_is_read(tmp_path):
    kwargs = kwargs_of("pretrain")
    listed = (sources.SourceConfig(path="a", commercial=True), sources.SourceConfig(task="b"))
    kwargs["data"] = dataclasses.replace(kwargs["data"], data=listed, holdout=1)
    kwargs["rules"] = mesh.AxisRules(batch=None, embed=None)
    prompts = dataclasses.replace(kwargs["evaluation_config"], sample_prompts=("春", "\u2028"))
    kwargs["evaluation_config"] = prompts
    written(tmp_path, "pretrain", kwargs)
    _, found = record.read(tmp_path)
    assert found == kwargs and type(found["data"].data[0]) is sources.SourceConfig
    # Negative control: a list is not the tuple that was given.
    assert found["data"].data != list(listed)


def _set(section, name, value):
    def change(found):
        place = found["settings"][section] if section else found["settings"]
        place[name] = value

    return change


@pytest.mark.parametrize(
    "change, wanted",
    [
        (_set("optimizer", "beta_1", 0.9), "settings.optimizer.beta_1 is not known; did you mean"),
        (lambda found: found["settings"]["optimizer"].pop("beta1"), "optimizer.beta1 is missing"),
        (_set("", "sed", 1), "settings.sed is not known; did you mean seed?"),
        (_set("", "seed", "0"), "settings.seed = '0' (str), but it is int"),
        (_set("", "seed", True), "settings.seed = True (bool), but it is int"),
        (_set("loop_config", "log_every", 1e3), "log_every = 1000.0 (float), but it is int"),
        (_set("evaluation_config", "sample_prompts", ["a", 1]), "sample_prompts[1] = 1 (int)"),
        (_set("", "model", "os.system"), "settings.model = 'os.system'"),
        (_set("model", "norm", "layr"), "allowed: ('rms', 'layer')"),
        (_set("data", "module", "evil"), "add MODULE=evil"),
        (lambda found: found.update(version="9.9"), "written by jinstr 9.9"),
        (lambda found: found.update(command="os"), "command = 'os'"),
        (lambda found: found.update(command="config"), "command = 'config'"),
        (lambda found: found.pop("command"), "not an object of command"),
    ],
)
def test_what_was_not_written_is_refused(change, wanted, tmp_path):
    written(tmp_path, "pretrain", kwargs_of("pretrain"))
    rewrite(tmp_path, change)
    with pytest.raises(errors.ConfigError) as caught:
        record.read(tmp_path)
    assert wanted in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_changed_setting_is_refused_by_its_digest(tmp_path):
    written(tmp_path, "pretrain", kwargs_of("pretrain"))
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8").replace('"seed": 0', '"seed": 1'), "utf-8")
    with pytest.raises(errors.ConfigError, match="JI-RECORD-004"):
        record.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", '{"command": 1}', "\x80\x04N."])
def test_what_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(errors.ConfigError, match="start the run's command again"):
        record.read(tmp_path)


def test_a_module_is_imported_only_when_it_is_named_again(tmp_path):
    kwargs = kwargs_of("pretrain", "MODULE=mine")
    written(tmp_path, "pretrain", kwargs)
    assert record.read(tmp_path, module="mine")[1] == kwargs
    with pytest.raises(errors.ConfigError, match="JI-RECORD-006"):
        record.read(tmp_path)


def test_resume_calls_the_command_under_the_lease(tmp_path, monkeypatch):
    kwargs = kwargs_of("pretrain", f"RUN_DIR={tmp_path}", "RESUME=never")
    written(tmp_path, "pretrain", kwargs)
    entry = cli.entry_function("pretrain")
    called = []

    @functools.wraps(entry)  # the record is read by the entry's own signature
    def seen(**kwargs):
        with pytest.raises(errors.RunInUseError), storage.lease(tmp_path):
            pass
        called.append(kwargs)

    monkeypatch.setattr("jinstr.commands.pretrain.pretrain", seen)
    resume.resume(run_dir=str(tmp_path), module="")
    again = dataclasses.replace(kwargs["checkpoint"], resume="auto")
    assert called == [kwargs | {"checkpoint": again}]
    # Negative control: while another process holds the directory, nothing is called.
    with storage.lease(tmp_path), pytest.raises(errors.RunInUseError):
        resume.resume(run_dir=str(tmp_path), module="")
    assert len(called) == 1


def test_a_refused_start_leaves_the_record_of_the_run(tmp_path, capsys):
    words = ["pretrain", "DATA=missing", "TOKENIZER=missing", f"RUN_DIR={tmp_path}", "EPOCHS=1"]
    assert run.main(words) in (65, 78)
    first = (tmp_path / "config.json").read_bytes()
    assert run.main([*words, "SEED=1"]) in (65, 78)
    assert "settings.seed: 0 before, 1 now" in capsys.readouterr().out
    assert (tmp_path / "config.json").read_bytes() == first
    assert sorted(path.name for path in tmp_path.glob("*config.*")) == [
        "config.gin",
        "config.json",
        "operative_config.gin",
    ]


def test_a_start_that_did_something_is_kept(tmp_path, monkeypatch):
    """Negative control."""
    entry = cli.entry_function("pretrain")

    @functools.wraps(entry)
    def trains(**kwargs):
        (tmp_path / "metrics.jsonl").write_text(f"{kwargs['seed']}\n")
        raise errors.DataError("JI-X-001", "bad row")

    words = ["pretrain", *NEEDED["pretrain"], f"RUN_DIR={tmp_path}"]
    request = cli.parse_arguments([*words, "SEED=1"])
    written(tmp_path, "pretrain", kwargs_of("pretrain", f"RUN_DIR={tmp_path}"))
    kwargs = run.resolve(request, entry)
    monkeypatch.setattr(run, "resolve", lambda *_: kwargs)
    monkeypatch.setattr(cli, "entry_function", lambda _: trains)
    with pytest.raises(errors.DataError):
        run.run(request)
    assert record.read(tmp_path)[1]["seed"] == 1 and (tmp_path / "config.1.json").exists()
