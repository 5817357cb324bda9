"""metrics.jsonl over a resume, and what is counted as FLOPs."""

import json

import pytest

from jinstr.models import config as config_lib
from jinstr.train import flops, metrics


def steps(path):
    return [line["step"] for line in metrics.read_lines(path)]


def test_files_are_cut_back_and_the_rest_is_kept_aside(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, tensorboard=False, wandb="", start_step=0)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": 1.0 / step})
        writer.write_sample(step, "問い", "答え", True, "x")
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')  # cut off by a kill
    writer = metrics.MetricsWriter(tmp_path, tensorboard=False, wandb="", start_step=20)
    writer.write(21, {"train/loss": 0.5})
    writer.close()
    assert steps(tmp_path / "metrics.jsonl") == [10, 20, 21]
    assert steps(tmp_path / "metrics.jsonl.after_20") == [30]
    assert steps(tmp_path / "samples.jsonl") == [10, 20]
    json.loads((tmp_path / "metrics.jsonl").read_text("utf-8").split("\n")[-2])


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_line_separators_inside_text_end_no_line(tmp_path, mark):
    writer = metrics.MetricsWriter(tmp_path, tensorboard=False, wandb="", start_step=0)
    for step in (10, 20):
        writer.write_sample(step, "問い", f"一行目{mark}二行目", True, "x")
    writer.close()
    path = tmp_path / "samples.jsonl"
    assert [line["answer"] for line in metrics.read_lines(path)] == [f"一行目{mark}二行目"] * 2
    metrics.cut_back(path, 10)
    assert steps(path) == [10] and steps(tmp_path / "samples.jsonl.after_10") == [20]
    # Negative control: Python takes the mark for the end of a line.
    assert len(path.read_text("utf-8").splitlines()) == 2


def test_a_cut_line_is_never_written_on(tmp_path):
    path = tmp_path / "samples.jsonl"
    whole = '{"step": 10, "answer": "はい"}\n'.encode()
    # Killed inside a character.
    path.write_bytes(whole + '{"step": 20, "answer": "山'.encode()[:-1])
    assert steps(path) == [10]
    metrics.cut_back(path, 10)
    assert path.read_bytes() == whole and not (tmp_path / "samples.jsonl.after_10").exists()
    # Negative control: a file without a cut line is left as it is.
    path.write_bytes(whole.replace(b", ", b",  "))
    metrics.cut_back(path, 10)
    assert path.read_bytes() != whole


def test_flops_of_a_llama_shape_by_hand():
    config = config_lib.DecoderConfig(
        vocab_size=8000, hidden_size=256, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64,
        mlp_size=688,
    )  # fmt: skip
    weights = 6 * (256 * 256 + 2 * 256 * 128 + 256 * 256 + 3 * 256 * 688) + 256 * 8000
    assert flops.matmul_weights(config) == weights
    # Two segments of 100 and 28 tokens.
    wanted = 6 * weights * 128 + 6 * 6 * 256 * (100**2 + 28**2)
    assert flops.train_flops(config, 128, 100**2 + 28**2) == pytest.approx(wanted)
    assert flops.train_flops(config, 128, 128**2) > wanted
