"""Secrets are taken out, and nothing else is."""

import subprocess
import sys

import pytest

from jinstr import redact

CANARY = "c4nary-'\"\\-Zz91x7Lq"


@pytest.fixture
def environment(monkeypatch):
    for name in list(redact.os.environ):
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password", "MY_APIKEY_2"]
)
def test_values_of_secret_variables(name, environment):
    environment.setenv(name, CANARY)
    for spelled in (CANARY, repr({"a": CANARY}), redact.json.dumps([CANARY])):
        assert "91x7" not in redact.text(f"before {spelled} after")
    assert redact.tree({"a": [CANARY, 1, None]}) == {"a": [redact.MARK, 1, None]}
    assert redact.text("before and after") == "before and after"


def test_passwords_in_addresses_of_the_environment(environment):
    environment.setenv("DATABASE_URL", "postgres://me:p4ssw0rd!x@host/db")
    assert redact.text("the word p4ssw0rd!x is told") == f"the word {redact.MARK} is told"


@pytest.mark.parametrize(
    "name, value",
    [
        ("TOKENIZER", CANARY),  # no secret by its name
        ("MAX_TOKENS", CANARY),
        ("XKB_KEYBOARD", CANARY),
        ("MONKEY", CANARY),
        ("API_TOKEN", "short1"),  # short
        ("API_TOKEN", "pretrain"),  # a word
        ("API_TOKEN", "20251125"),  # a number
        ("SSH_KEY", sys.executable),  # a file
    ],
)
def test_what_is_no_secret_stays(name, value, environment):
    environment.setenv(name, value)
    assert redact.text(f"{value} is here") == f"{value} is here"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("DATA=https://me:pw@host/a.jsonl", "DATA=https://[redacted]@host/a.jsonl"),
        ("git+https://ghp_abc@host/x", "git+https://[redacted]@host/x"),
        ("HF_TOKEN=abcd", "HF_TOKEN=[redacted]"),
        ("--wandb-api-key=abcd x", "--wandb-api-key=[redacted] x"),
        ("{'password': 'abcd', 'b': 1}", "{'password': '[redacted]', 'b': 1}"),
        ("s3://b/k?X-Amz-Signature=ab12&part=1", "s3://b/k?X-Amz-Signature=[redacted]&part=1"),
        ("hf_" + "a1" * 17, "[redacted]"),
    ],
)
def test_keys_and_shapes(text, wanted, environment):
    assert redact.text(text) == wanted
    assert redact.tree({"a": text}) == {"a": wanted}
    # Negative control: people's text that is printed may speak of passwords.
    by_value = redact.text("HF_TOKEN=abcd", by_key=False)
    assert by_value == "HF_TOKEN=abcd"


@pytest.mark.parametrize(
    "text",
    [
        "TOKENIZER=tok/ja8k.model BATCH_TOKENS=8192 MAX_NEW_TOKENS=128",
        "me@example.jp: 鍵はどこ？ key=value, keys: [1, 2]",
        "19,101 tokens/s  37% of matmul peak",
        "https://host/a@b/c",
        "JI-CONFIG-010: SEED = True (bool), but pretrain.seed is int",
        "KeyError: 'tokens'",
        "password: secret, 合言葉: himitsu",
    ],
)
def test_ordinary_text_stays(text, environment):
    assert redact.text(text) == text


def test_fields_by_name(environment):
    found = redact.tree({"api_key": "abc", "tokenizer": "abc", "secret": "", "auth_token": 3})
    assert found == {"api_key": redact.MARK, "tokenizer": "abc", "secret": "", "auth_token": 3}


def test_what_nobody_caught_is_printed_without_secrets():
    code = (
        "import sys, os\nfrom jinstr import redact\n"
        "def fail():\n    print(sys.argv[1], os.environ['A_TOKEN'])\n"
        "    raise ValueError('bad ' + os.environ['A_TOKEN'])\n"
        "sys.exit(redact.guard(fail))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"X={CANARY}"],
        capture_output=True,
        text=True,
        env={"A_TOKEN": CANARY, "PYTHONPATH": str(redact.__file__).rpartition("/jinstr/")[0]},
        check=False,
    )
    assert done.returncode == 1 and "91x7" not in done.stdout + done.stderr
    assert done.stdout == f"X={redact.MARK} {redact.MARK}\n"
    # Negative control: the rest of the traceback is there.
    assert f"ValueError: bad {redact.MARK}" in done.stderr and "in fail" in done.stderr
