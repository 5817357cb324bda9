"""`jinstr reward`, `score` and `dpo` on the built-in rankings: what they keep, going on, adapters, and refusals."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from jinstr import run
from jinstr.rlhf import reward_model
from jinstr.text import render
from jinstr.train import serving, startup

MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 2
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
config.DecoderConfig.tie_embeddings = False
"""
COMMON = ["BATCH_TOKENS=2048", "SEQ_LEN=256", "EVAL_EVERY=0", "LOG_EVERY=1", "TENSORBOARD=False"]
COMMON += ["WORKERS=1"]


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """base: a model trained on text for two steps."""
    place = tmp_path_factory.mktemp("comparisons")
    (place / "model.gin").write_text(MODEL, "utf-8")
    words = ["pretrain", str(place / "model.gin"), f"DATA={world}/corpus.jsonl", "NUM_STEPS=2"]
    words += [f"TOKENIZER={tokenizer_path}", f"CACHE_DIR={place}/cache", "SAMPLES=0", *COMMON]
    assert run.main([*words, f"RUN_DIR={place}/base"]) == 0
    return place


def start(place, world, command, name, *words):
    usual = [f"INIT={place}/base", f"DATA={world}/rankings.jsonl", "TEMPLATE=chatml", "NUM_STEPS=6"]
    usual += [f"CACHE_DIR={place}/cache", f"RUN_DIR={place}/{name}", "LEARNING_RATE=1e-2", *COMMON]
    last = {word.partition("=")[0]: word for word in (*usual, *words)}
    return run.main([command, *last.values()])


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def losses(folder):
    return {line["step"]: line["train/loss"] for line in lines(folder) if "train/loss" in line}


def evaluated(folder):
    (found,) = [line for line in lines(folder) if "eval/rankings/accuracy" in line]
    return found


def arrays_of(folder, step):
    manifest = folder / "checkpoints" / str(step) / "manifest.json"
    arrays = json.loads(manifest.read_text("utf-8"))["arrays"]["params"]
    return {".".join(re.findall(r"\w+", name)) for name in arrays}


@pytest.fixture(scope="module")
def reward(place, world):
    words = [f"DEMONSTRATIONS={world}/instructions.jsonl", "NUM_STEPS=60", "LEARNING_RATE=3e-3"]
    assert start(place, world, "reward", "reward", *words) == 0
    return place / "reward"


def test_a_reward_model_learns_and_is_shifted(place, world, reward):
    found = losses(reward)
    assert found[1] == pytest.approx(np.log(2), abs=1e-6)  # its head begins as zeros
    assert np.mean([found[step] for step in range(41, 61)]) < 0.68
    facts = json.loads((reward / "reward.json").read_text("utf-8"))
    assert facts["count"] == 1000 and str(world) in facts["demonstrations"]
    assert arrays_of(reward, 60) >= {"score.kernel"}
    assert not any("head" in name for name in arrays_of(reward, 60))
    found = evaluated(reward)
    assert found["eval/rankings/prompts"] > 10 and 0 <= found["eval/rankings/accuracy"] <= 1
    model = reward_model.load(str(reward))
    rows = lines(world, "instructions.jsonl")
    asked = [
        [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows if isinstance(row["output"], str) and "messages" not in row
    ]  # fmt: skip
    # Not the very same texts as the demonstrations, which hold answers in lists too.
    scores = reward_model.score(model, asked[:300])
    assert abs(scores.mean()) < facts["spread"] and model.shift == facts["shift"]
    alone = np.concatenate([reward_model.score(model, [text]) for text in asked[:3]])
    np.testing.assert_allclose(alone, scores[:3], atol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(place, world, reward):
    words = [f"DEMONSTRATIONS={world}/instructions.jsonl", "SAVE_EVERY=3", "SCHEDULE=constant"]
    assert start(place, world, "reward", "whole", *words) == 0
    assert start(place, world, "reward", "parts", *words, "NUM_STEPS=3") == 0
    assert start(place, world, "reward", "parts", *words) == 0
    one, two = (serving.load_run(place / name, heads="score").params for name in ("whole", "parts"))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one, two)
    assert all(jax.tree.leaves(same)) and losses(place / "whole") == losses(place / "parts")
    third = serving.load_run(place / "parts", 3, heads="score").params  # negative control
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, third)))


@pytest.mark.slow
def test_a_reward_model_of_adapters(place, world):
    words = ["LORA_RANK=2", "LEARNING_RATE=1e-2", "NUM_STEPS=40"]
    assert start(place, world, "reward", "adapted", *words) == 0
    kept = arrays_of(place / "adapted", 40)
    assert "score.kernel" in kept and all("lora" in n or "score" in n for n in kept)
    found = losses(place / "adapted")
    assert found[1] == pytest.approx(np.log(2), abs=1e-6)
    assert np.mean([found[step] for step in range(21, 41)]) < 0.685
    assert start(place, world, "reward", "adapted", *words, "NUM_STEPS=42") == 0
    model = reward_model.load(str(place / "adapted"))
    talk = [{"role": "user", "content": "海は？"}, {"role": "assistant", "content": "青いです。"}]
    assert np.isfinite(reward_model.score(model, [talk])).all()
    # For others it is one model: the base with the adapters added to it.
    out = place / "adapted_exported"
    assert run.main(["convert", f"MODEL={place}/adapted", f"OUT={out}", "DTYPE=float32"]) == 0
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    wanted = np.asarray(model.params["blocks"]["attention"]["query"]["kernel"])
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(tensors[name], wanted[1].T, atol=1e-6)
    base = np.asarray(
        serving.load_run(place / "base").params["blocks"]["attention"]["query"]["kernel"]
    )
    assert np.abs(tensors[name] - base[1].T).max() > 1e-4  # negative control
    assert not any("lora" in name for name in tensors)


def test_scores_of_a_file(place, world, reward, capsys):
    out = place / "scored.jsonl"
    words = ["score", f"REWARD={reward}", f"INPUT={world}/rankings.jsonl", f"OUTPUT={out}"]
    assert run.main(words) == 0
    told = capsys.readouterr().out
    assert "r(score, characters)" in told and "300 lines of 300" in told
    rows = lines(place, "scored.jsonl")
    for row in rows[:20]:
        order = np.argsort([-score for score in row["scores"]])
        assert [row["ranks_by_score"][n] for n in order] == sorted(row["ranks_by_score"])
        assert len(row["ranks"]) == len(row["scores"])  # people's ranks stay
    assert run.main([*words, "KEEP=best"]) == 0
    best = lines(place, "scored.jsonl")
    for row, scored in zip(best, rows):
        chosen = scored["responses"][int(np.argmax(scored["scores"]))]
        assert row["messages"][-1] == {"role": "assistant", "content": chosen}
        assert row["score"] == max(scored["scores"])
    middle = float(np.median([score for row in rows for score in row["scores"]]))
    assert run.main([*words, "KEEP=above", f"MINIMUM={middle}"]) == 0
    kept = lines(place, "scored.jsonl")
    assert len(kept) == sum(score >= middle for row in rows for score in row["scores"])
    assert run.main([*words, "KEEP=above"]) == 78
    assert run.main([*words[:1], f"REWARD={place}/base", *words[2:]]) == 78
    assert "gives no scores" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(place, reward):
    words = [f"MODEL={reward}", f"OUT={place}/exported", "DTYPE=float32"]
    assert run.main(["convert", *words]) == 0
    return place / "exported"


def test_a_reward_model_leaves_as_sequence_classification(place, reward, exported, capsys):
    described = json.loads((exported / "config.json").read_text("utf-8"))
    assert described["architectures"] == ["LlamaForSequenceClassification"]
    facts = json.loads((reward / "reward.json").read_text("utf-8"))
    assert described["reward_shift"] == facts["shift"] and described["id2label"] == {"0": "reward"}
    assert described["pad_token_id"] != described["eos_token_id"]
    tensors = safetensors.numpy.load_file(exported / "model.safetensors")
    own = serving.load_run(reward, heads="score")
    assert np.array_equal(tensors["score.weight"], np.asarray(own.params["score"]["kernel"]).T)
    assert "lm_head.weight" not in tensors and not (exported / "generation_config.json").exists()
    card = (exported / "README.md").read_text("utf-8")
    assert "AutoModelForSequenceClassification" in card and "AutoModelForCausalLM" not in card
    assert "pipeline_tag: text-classification" in card
    # Negative control: a model that writes is exported as one; and nothing trains or writes with this one.
    assert run.main(["convert", f"MODEL={place}/base", f"OUT={place}/writes"]) == 0
    assert "AutoModelForCausalLM" in (place / "writes/README.md").read_text("utf-8")
    capsys.readouterr()
    assert start(place, place, "dpo", "none", f"INIT=hf:{exported}") == 78
    assert "LlamaForSequenceClassification" in capsys.readouterr().err


@pytest.mark.peers
def test_its_scores_in_transformers_are_those_here(world, reward, exported):
    """pip install torch transformers; python -m pytest -m peers tests/train/test_comparison_runs.py"""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    own = reward_model.load(str(reward))
    talks = []
    for row in lines(world, "rankings.jsonl")[:8]:
        for answer in row["responses"]:
            talks.append(
                [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": answer},
                ]
            )
    expected = reward_model.score(own, talks)
    theirs = transformers.AutoModelForSequenceClassification
    model, told = theirs.from_pretrained(exported, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    found = []
    for talk in talks:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == list(
            render.render(talk, own.template, own.tokenizer).tokens
        )
        with torch.no_grad():
            found.append(model(**inputs).logits[0, 0].item() - model.config.reward_shift)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01  # they differ among themselves
    # In one batch, padded behind: transformers finds the last token by the padding's id.
    both = tokenizer(
        [tokenizer.apply_chat_template(t, tokenize=False) for t in talks],
        add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        scores = model(**both).logits[:, 0].numpy() - model.config.reward_shift
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_reward_model_does_not_write(place, world, reward, capsys):
    (place / "ask.jsonl").write_text('{"prompt": "海は？"}\n', "utf-8")
    words = [f"MODELS={reward}", f"INPUT={place}/ask.jsonl", f"OUTPUT={place}/none.jsonl"]
    assert run.main(["generate", *words]) == 78 and "JI-INIT-009" in capsys.readouterr().err
    assert start(place, world, "dpo", "no", f"INIT={reward}", "SAMPLES=0") == 78
    assert "JI-INIT-009" in capsys.readouterr().err
    assert run.main(["replay", str(reward), "STEP=2"]) == 78
    assert "JI-REPLAY-009" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dpo", []),
        pytest.param("lora", ["LORA_RANK=2"], marks=pytest.mark.slow),
        pytest.param("simpo", ["LOSS=simpo", "BETA=2.0"], marks=pytest.mark.slow),
    ],
)
def test_preference_tuning(place, world, name, words):
    words = [*words, "SAMPLES=2", "MAX_NEW_TOKENS=4", "LEARNING_RATE=3e-3", "NUM_STEPS=20"]
    assert start(place, world, "dpo", name, *words) == 0
    kept = [line for line in lines(place / name) if "train/loss" in line]
    if name != "simpo":
        assert kept[0]["train/margin"] == 0  # policy and reference are the same at first
        assert np.mean([line["train/margin"] for line in kept[10:]]) > 0
        assert kept[0]["train/loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert np.mean([line["train/loss"] for line in kept[10:]]) < kept[0]["train/loss"]
    assert evaluated(place / name)["eval/rankings/pairs"] > 10
    assert len(lines(place / name, "samples.jsonl")) == 2
    before = serving.load_run(place / "base").params["norm_final"]
    after = serving.load_run(place / name).params["norm_final"]
    same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, after)))
    assert same == (name == "lora")  # under adapters all else stays


def test_a_policy_that_is_not_its_reference_is_found(place, world, monkeypatch, capsys):
    """As when one of them is read with another mask or from another checkpoint."""
    whole = startup.reference

    def spoiled(*arguments):
        found = whole(*arguments)
        found["head"]["kernel"] = found["head"]["kernel"] * 1.5
        return found

    monkeypatch.setattr(startup, "reference", spoiled)
    assert start(place, world, "dpo", "spoiled", "SAMPLES=0") == 78
    assert "JI-DPO-002" in capsys.readouterr().err


def test_an_answer_of_another_shape_is_refused_by_line(place, reward, capsys):
    path = place / "bad.jsonl"
    path.write_text('{"prompt": "海は？", "responses": ["青い"]}\n{"prompt": "山は？"}\n', "utf-8")
    words = ["score", f"REWARD={reward}", f"INPUT={path}", f"OUTPUT={place}/none.jsonl"]
    assert run.main(words) == 65
    assert f"{path}:2" in capsys.readouterr().err and not (place / "none.jsonl").exists()


@pytest.mark.slow
def test_kto_on_labels(place, world, capsys):
    rows = []
    for row in lines(world, "rankings.jsonl"):
        number = int(row["id"].partition("-")[2]) % len(row["ranks"])
        label = row["ranks"][number] == 1
        rows.append(
            {"prompt": row["prompt"], "completion": row["responses"][number], "label": label}
        )
    labels = place / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = [f"DATA={labels}", "NUM_STEPS=12", "SAMPLES=0"]
    assert start(place, world, "dpo", "kto", "LOSS=kto", *words) == 0
    found = lines(place / "kto")
    trained = [line for line in found if "train/loss" in line]
    assert trained[0]["train/loss"] == pytest.approx(0.5, abs=1e-4) and trained[0]["train/kl"] == 0
    assert trained[-1]["train/loss"] < 0.48 and trained[-1]["train/kl"] >= 0
    (held_out,) = [line for line in found if "eval/labels/auc" in line]
    assert held_out["eval/labels/auc"] > 0.5
    assert held_out["eval/labels/desired_score"] > held_out["eval/labels/undesired_score"]
    # Negative controls: comparisons are no labels, and labels no comparisons.
    capsys.readouterr()
    assert start(place, world, "dpo", "none", "LOSS=kto") == 78
    assert "answers with labels" in capsys.readouterr().err
    assert start(place, world, "reward", "none", words[0]) == 78
    assert "rankings or pairs" in capsys.readouterr().err
