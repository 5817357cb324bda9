"""Where a card finds the folders that a run was given, and the texts of licences that lie there."""

import json

from jinstr import record
from jinstr.train import card, licences, lineage
from tests.train.test_card import free, make_run, unchecked


def test_a_relative_folder_of_a_base_is_found_from_anywhere(tmp_path, monkeypatch):
    """hf:models/llama beside runs/sft, and no name of the hub, where somebody else has a models/llama."""
    folder = tmp_path / "work/models/llama"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n", "utf-8")
    (folder / "LICENSE.txt").write_text("terms", "utf-8")
    (folder / "USE_POLICY.md").write_text("policy", "utf-8")
    (folder / "code.py").write_text("x", "utf-8")
    sft = make_run(
        tmp_path / "work/runs/sft", init="hf:models/llama", run_dir="runs/sft",
        sources=[free("p", "llama2")],
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    text = card.write_card(tmp_path, card.facts_of(sft)).read_text("utf-8")
    said = licences.front_matter(text)
    assert said["license"] == "llama2" and "base_model" not in said and "models/llama" not in text
    copied = licences.copy_texts(lineage.folders(sft), tmp_path / "elsewhere")
    assert copied == ["LICENSE.txt", "USE_POLICY.md"]
    folder.rename(tmp_path / "gone")
    text = card.write_card(tmp_path, card.facts_of(sft)).read_text("utf-8")
    said = licences.front_matter(text)
    assert "base_model" not in said and "models/llama" not in text and str(tmp_path) not in text
    assert "ベースモデル llama のライセンスは不明" in unchecked(text)
    # Negative controls: what lora.json resolved, a revision, and the cache say that it is a name of the hub.
    (sft / "lora.json").write_text(json.dumps({"init": "hf:models/llama", "lora": {}}), "utf-8")
    assert lineage.chain(sft)[1] == "hf:models/llama"
    (sft / "lora.json").write_text(json.dumps({"init": f"hf:{tmp_path}/gone"}), "utf-8")
    assert lineage.chain(sft)[1] == f"hf:{tmp_path}/gone"
    (sft / "lora.json").unlink()
    (tmp_path / "hub/models--models--llama/snapshots/main").mkdir(parents=True)
    assert lineage.chain(sft)[1] == "hf:models/llama"


def test_relative_folders_beside_an_absolute_run_dir(tmp_path, monkeypatch):
    """Where a run was started is recorded: RUN_DIR=/far/away INIT=hf:models/llama, and the card made elsewhere."""
    started = tmp_path / "work"
    (started / "models/llama").mkdir(parents=True)
    (started / "elsewhere").mkdir()
    settings = {"init": "hf:models/llama", "run_dir": str(tmp_path / "far/away")}
    monkeypatch.chdir(started)
    run_dir = tmp_path / "far/away"
    record.write(run_dir, record.of("sft", "0.1.0", settings), "", "")
    monkeypatch.chdir(started / "elsewhere")
    assert lineage.chain(run_dir)[1] == f"hf:{started}/models/llama"
    # Negative control: a record that does not say it.
    config = json.loads((run_dir / "config.json").read_text("utf-8"))
    assert config.pop("place") == str(started)
    (run_dir / "config.json").write_text(json.dumps(config), "utf-8")
    assert lineage.chain(run_dir)[1] != f"hf:{started}/models/llama"
    # The same settings tried in another folder: no change, and what they name stays where it was.
    (run_dir / "config.json").write_text(json.dumps(config | {"place": str(started)}), "utf-8")
    assert record.write(run_dir, record.of("sft", "0.1.0", settings), "", "") == []
    assert lineage.chain(run_dir)[1] == f"hf:{started}/models/llama"
    record.write(run_dir, record.of("sft", "0.1.0", settings | {"seed": 1}), "", "")
    now = json.loads((run_dir / "config.json").read_text("utf-8"))
    assert now["place"] == str(started / "elsewhere")


def test_texts_of_the_same_name_stay_apart(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE.txt").write_text(text, "utf-8")
    (tmp_path / "out").mkdir()
    found = licences.copy_texts([tmp_path / name for name in "abc"], tmp_path / "out")
    assert found == ["LICENSE.txt", "LICENSE.b.txt"]
    assert [(tmp_path / "out" / name).read_text("utf-8") for name in found] == ["one", "two"]
