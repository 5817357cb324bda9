"""What a run asks of its sets: held-out parts that hold nothing, folders that were prepared before, Mixtures' rates."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from jinstr import errors
from jinstr.data import dataset, loader, mixing, mixtures, prepare, prepared, sources


@pytest.fixture
def load(tokenizer_path, tmp_path):
    def call(template="chatml", **settings):
        data = dataset.DataConfig(**{"seq_len": 128, "batch_tokens": 256} | settings)
        return dataset.load(
            data,
            tokenizer_path=tokenizer_path,
            template=template,
            prepare_config=prepare.PrepareConfig(cache_dir=str(tmp_path / "cache"), workers=1),
            seed=0,
        )

    return call


def test_a_source_of_which_nothing_is_held_out_trains(load, tmp_path, capsys, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("ただ一つの本文です。" * 50, "utf-8")
    found = load(data=str(path), holdout=0.01)
    assert found.held_out == {} and found.train.num_rows > 0
    notice = capsys.readouterr().out
    assert "one: nothing of it is held out" in notice and "HOLDOUT=0.01 chose none" in notice
    assert "'not held out': 1" in notice

    def never(*_):
        raise AssertionError("prepared again")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "make", never)
        assert load(data=str(path), holdout=0.01).held_out == {}
        assert "nothing of it is held out" in capsys.readouterr().out
    # Negative controls: a source with many groups has a part, and one without training data stops.
    rows = [{"text": f"文{n}です。"} for n in range(300)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    assert list(load(data=str(tmp_path / "many.jsonl"), holdout=0.1).held_out) == ["many"]
    assert "nothing of it" not in capsys.readouterr().out
    with pytest.raises(errors.DataError, match="one: no examples are left"):
        load(data=str(path), holdout=1.0)


def test_a_prepared_folder_must_fit_the_run(load, sets, world, tmp_path):
    corpus, talk = (place.path for place in sets)
    assert load(data=f"{corpus},{talk}").train.num_rows > 0
    assert load(data=talk, template="").train.num_rows > 0  # a command that has no template
    load(data=corpus, template="llm-jp-3")  # text has none
    with pytest.raises(errors.ConfigError, match="with TEMPLATE=chatml, and.*TEMPLATE=llm-jp-3"):
        load(data=talk, template="llm-jp-3")
    for name, value in {
        "holdout": 0.1,
        "exclude": "list.txt",
        "format": "alpaca",
        "fields": "output=回答",
        "answers": "first",
    }.items():
        with pytest.raises(
            errors.ConfigError, match=f"{name.upper()}={value} acts.*jinstr prepare"
        ):
            load(data=talk, **{name: value})
    folder = tmp_path / "other"
    shutil.copytree(corpus, folder)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["tokens"]["tokenizer"] = "0" * 16
    manifest["digest"] = prepared.manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(errors.ConfigError, match="another tokenizer .0000000000000000. than"):
        load(data=str(folder))


def test_a_template_file_is_kept_with_its_set(make, load, tmp_path, world):
    jinja = tmp_path / "my.jinja"
    text = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    jinja.write_text(text, "utf-8")
    source = sources.SourceConfig(path=f"{world}/conversations.jsonl")
    (place,) = make(source, template=str(jinja), cache_dir=str(tmp_path / "own"))
    assert (pathlib.Path(place.path) / "template.jinja").read_text("utf-8") == text
    moved = jinja.rename(tmp_path / "moved.jinja")
    load(data=place.path, template=str(moved), seq_len=512, batch_tokens=512)
    moved.write_text(text.replace("\n{{", " {{"), "utf-8")
    with pytest.raises(errors.ConfigError, match="JI-PREPARE-012"):
        load(data=place.path, template=str(moved), seq_len=512, batch_tokens=512)


@pytest.mark.parametrize("unit", ["tokens", "examples", "passes"])
def test_examples_of_a_mixture_come_at_its_rates(unit):
    """Beside another source whose share stays what was asked."""
    rows, examples = np.array([40, 500, 90]), np.array([400, 600, 90])
    inside = mixtures.converted([1.5, 0.5], unit, rows[:2], examples[:2])
    shares = mixing.row_shares([*inside, 2.0], unit, rows, examples)
    drawn = shares * examples / rows
    assert drawn[0] / drawn[1] == pytest.approx(3.0)
    if unit == "tokens":
        assert shares[:2].sum() == pytest.approx(0.5)
    elif unit == "examples":
        assert drawn[:2].sum() == pytest.approx(drawn[2])
    else:  # as many passes over the whole of the Mixture as over the other source
        assert shares[:2].sum() / 540 == pytest.approx(shares[2] / 90)
    # Negative control: the rates as they were, in the run's unit.
    naive = mixing.row_shares([1.5, 0.5, 2.0], unit, rows, examples) * examples / rows
    assert (naive[0] / naive[1] == pytest.approx(3.0)) == (unit == "examples")


@pytest.mark.parametrize("unit", ["tokens", "passes"])
def test_rates_of_packed_sets(sets, unit):
    """What the loader draws, counted in examples."""
    config = loader.LoaderConfig(seq_len=256, batch_rows=4, rate_unit=unit)
    asked = [
        prepared.PreparedSource(path=place.path, name=place.name, rate=rate)
        for place, rate in zip(sets, (0.75, 0.25))
    ]
    configs = [sources.SourceConfig(task=f"t{n}", mixture="m") for n in range(2)]
    steps = 1 << 14
    for places, right in ((mixtures.with_rates(configs, asked, config), True), (asked, False)):
        found = loader.Loader(places, config)
        epochs = [facts["epochs"] for facts in found.shares(steps).values()]
        counts = [prepared.PreparedSet(p.path).manifest["counts"]["examples"] for p in places]
        ratio = epochs[0] * counts[0] / (epochs[1] * counts[1])
        assert (ratio == pytest.approx(3.0, rel=0.01)) is right
    # A source of its own keeps its rate.
    alone = [sources.SourceConfig(task=f"t{n}") for n in range(2)]
    assert mixtures.with_rates(alone, asked, config) == tuple(asked)
