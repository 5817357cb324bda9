"""Tokenizers of both kinds as seqio vocabularies: ids in Python, in TensorFlow and in a Task are the tokenizer's."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jinstr.samples import build
from jinstr.text import normalise, publish, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

pytest.importorskip("seqio")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# In a process of its own: TensorFlow stays out of this one.
SCRIPT = """
import json, pathlib, sys
import numpy as np, seqio, tensorflow as tf
from jinstr.data import sources, vocabularies
from jinstr.text import tokenizer as tokenizer_lib

folder = pathlib.Path(sys.argv[1])
lines = json.loads((folder / "lines.json").read_text("utf-8"))
found = {}
for name in sys.argv[2:]:
    vocabulary, own = vocabularies.vocabulary(name), tokenizer_lib.load(name)
    wanted = [own.encode(line) for line in lines]
    rows = tf.data.Dataset.from_tensor_slices(lines).map(vocabulary.encode_tf)
    through_tf = [row.tolist() for row in rows.as_numpy_iterator()]
    back = vocabulary.decode_tf(tf.ragged.constant(wanted[:3]).to_tensor(own.eos_id)).numpy()
    feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)
    task = "ids%d" % len(found)
    seqio.TaskRegistry.add(
        task,
        seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(
                {"inputs": lines[0], "targets": lines[1]}
            ),
            splits=["train"],
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
    )
    (example,) = sources.read(sources.SourceConfig(task=task))
    found[name] = {
        "lines": len(lines),
        "python": sum(vocabulary.encode(line) != ids for line, ids in zip(lines, wanted)),
        "tf": sum(row != ids for row, ids in zip(through_tf, wanted)),
        "decoded": [text.decode() for text in back] == [own.decode(ids) for ids in wanted[:3]],
        "fingerprint": example["tokenizer"] == own.fingerprint,
        "task": example["targets"] == [*wanted[1], own.eos_id],
        "equal": vocabulary == vocabularies.vocabulary(name),
        "other": vocabulary == seqio.ByteVocabulary(),
        "library": sum(map(list.__ne__, own._model.encode(lines), wanted))
        if hasattr(own, "_model")
        else None,
        "shifted": sum(row[1:] != ids for row, ids in zip(through_tf, wanted)),
    }
print(json.dumps(found))
"""


def run(folder, lines, *names):
    (folder / "script.py").write_text(SCRIPT, "utf-8")
    (folder / "lines.json").write_text(json.dumps(lines), "utf-8")
    done = subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder), *map(str, names)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(facts, lines):
    assert facts["lines"] == lines and facts["python"] == facts["tf"] == 0
    assert facts["decoded"] and facts["fingerprint"] and facts["task"] and facts["equal"]
    # Negative controls.
    assert not facts["other"] and facts["shifted"] == lines


def test_both_kinds(tmp_path):
    profile = normalise.NormaliseConfig(full_width_ascii=True)
    config = train_tokenizer.TokenizerTrainingConfig(
        vocab_size=1500, threads=1, add_dummy_prefix=True
    )
    texts = [row["text"] for row in build.hand_written()]
    train_tokenizer.train({"a": texts}, str(tmp_path / "tokenizer"), config, profile)
    model = tmp_path / "tokenizer.model"
    publish.write_tokenizer_files(tmp_path / "json", tokenizer_lib.load(model), "")
    lines = [*texts[:60], "ＡＢＣ </s><|im_end|>", " x"]
    for facts in run(tmp_path, lines, model, tmp_path / "json" / "tokenizer.json").values():
        check(facts, len(lines))


@pytest.mark.slow
def test_ten_thousand_real_lines(tmp_path, shared_data):
    lines = []
    for name in ("wiki_ja", "cpprefjp"):
        for row in (shared_data / "corpus" / f"{name}.jsonl").read_text("utf-8").splitlines():
            lines += [line for line in json.loads(row)["text"].split("\n") if line]
    names = sorted((shared_data / "tokenizers").glob("*.model"))
    assert len(lines) >= 10_000 and len(names) == 2
    lines = lines[:: len(lines) // 10_000][:10_000]
    for facts in run(tmp_path, lines, *names).values():
        check(facts, 10_000)
        assert facts["library"] == 0
