"""The audit of what is trained: findings stop with the example as people read it, from one process or several."""

import json

import numpy as np
import pytest

from jinstr import errors
from jinstr.data import audit, loader, prepared, sources
from jinstr.text import tokenizer as tokenizer_lib

# Answers in capitals: what is trained is then not what people wrote.
CAPITALS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | upper }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def batch(sets):
    """A function of the loader's settings → (a batch of conversations, names of its segments, ids that end a turn)."""
    data = loader.Loader(sets[1:], loader.LoaderConfig(seq_len=256, batch_rows=4))
    found = {name: array.copy() for name, array in data.read(0).items()}
    trained = found["loss_weights"] > 0
    ends = {int(found["targets"][r, np.flatnonzero(trained[r])[-1]]) for r in range(4)}
    return found, data.example_ids(0), ends


def untrain_end(batch):
    row = batch["loss_weights"][0]
    first = np.flatnonzero((batch["segment_ids"][0] == 1) & (row > 0))
    row[first[-1]] = 0.0


def untrain(batch):
    batch["loss_weights"][0][batch["segment_ids"][0] == 1] = 0.0


def shift(batch):
    batch["targets"][0, :-1] = batch["targets"][0, 1:]


def count_on(batch):
    batch["positions"][0] += 1


def spoil(batch):
    batch["loss_weights"][0, 0] = np.nan


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (untrain_end, audit.UNTRAINED_END),
        (untrain, audit.NO_TRAINED_TOKEN),
        (shift, "targets are not the next tokens"),
        (count_on, "positions do not count from 0"),
        (spoil, "a loss weight is negative or not finite"),
    ],
)
def test_a_batch_is_checked_segment_by_segment(batch, tokenizer_path, capsys, spoil, problem):
    found, names, ends = batch
    tokenizer = tokenizer_lib.load(tokenizer_path)
    audit.check_batch(found, tokenizer, stop_ids=ends, names=names)
    assert capsys.readouterr().err == ""
    spoil(found)
    source, id, _ = names[0]
    with pytest.raises(errors.DataError, match=f"row 0, segment 1 .{source}, .*{id}.: {problem}"):
        audit.check_batch(found, tokenizer, stop_ids=ends, names=names)
    shown = capsys.readouterr().err
    assert f"example {id}" in shown and "<|im_start|>" in shown
    assert (shown.count("⟦") > 1) == (
        problem != audit.NO_TRAINED_TOKEN
    )  # one stands in the heading
    if problem == audit.UNTRAINED_END:
        audit.check_batch(found, tokenizer)  # who does not say how turns end cannot be told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_finding_of_prepare_shows_the_example(make, tmp_path, capfd, workers):
    rows = [{"id": f"r{n}", "instruction": "what", "output": f"answer {n}"} for n in range(40)]
    path, template = tmp_path / "a.jsonl", tmp_path / "capitals.jinja"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    template.write_text(CAPITALS, "utf-8")
    source = sources.SourceConfig(path=str(path))
    settings = dict(template=str(template), workers=workers, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(errors.DataError, match="JI-AUDIT-003: a, example r0: "):
        make(source, **settings)
    shown = capfd.readouterr().err
    assert "a, example r0: " in shown and "⟦ANSWER 0" in shown and "WHAT" in shown
    # Counted instead of stopping, by source; the negative control has no finding.
    with pytest.raises(errors.DataError, match="no examples are left"):
        make(source, audit="drop", **settings)
    (place,) = make(source, cache_dir=settings["cache_dir"])
    assert prepared.PreparedSet(place.path).manifest["audit"] == {}
