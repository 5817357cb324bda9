"""HELDOUT_LIST and EXCLUDE: what is written down reads back as the same prompts."""

import json

import pytest

from jinstr import errors
from jinstr.commands import prepare as prepare_command
from jinstr.data import bad_rows, dataset, prepare, prepare_parts, selection, sources

ODD = [
    "一行",
    "二段\n\n落",
    "行\u2028区切り",
    '"引用"で始まる',
    '"引用"',
    "改\r行",
    "  前後の空白 ",
]


def test_every_name_comes_back(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("".join(map(selection.list_line, ODD)).encode())
    assert selection.read_list(str(path)) == {name.strip() for name in ODD}
    path.write_text('一行\r\n"手で書いた\n', "utf-8")
    assert selection.read_list(str(path)) == {"一行", '"手で書いた'}
    with pytest.raises(errors.DataError, match="none.txt: no such file"):
        selection.read_list(str(tmp_path / "none.txt"))


def test_held_out_prompts_of_one_file_are_left_out_of_another(tmp_path, tokenizer_path):
    """Through `jinstr prepare HELDOUT_LIST=`; prompts hold empty lines and other line breaks."""
    breaks = ("\n\n", "\u2028", "、", "\n")
    prompts = [f"問い{n}{breaks[n % 4]}続き" for n in range(80)]
    for name in ("one", "two"):
        rows = [{"instruction": p, "input": "", "output": f"{name}の答え"} for p in prompts]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
    held = tmp_path / "held.txt"
    prepare_command.prepare(
        data=dataset.DataConfig(
            data=str(tmp_path / "one.jsonl"), holdout=0.3, seq_len=128, batch_tokens=256
        ),
        tokenizer=tokenizer_path,
        template="chatml",
        prepare_config=prepare.PrepareConfig(cache_dir=str(tmp_path / "cache"), workers=1),
        parts=prepare_parts.PartsConfig(),
        heldout_list=str(held),
        seed=0,
    )
    one = sources.SourceConfig(path=str(tmp_path / "one.jsonl"), holdout=0.3)
    wanted = set(sources.heldout_groups(one))
    assert {b for b in breaks for p in wanted if b in p} == set(breaks)
    report = bad_rows.Report()
    two = sources.SourceConfig(path=str(tmp_path / "two.jsonl"), exclude=str(held))
    left = {example["contents"][0] for example in sources.read(two, report)}
    assert left == set(prompts) - wanted and report.dropped == {"excluded": len(wanted)}
    assert 0 < len(left) < len(prompts)
