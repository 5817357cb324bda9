"""Time to make and to read the workbooks of a study: 500 prompts, 3 models, 10 raters.

python tests/benchmarks/sheets_speed.py [OVERLAP]
"""

import json
import pathlib
import sys
import tempfile
import time

from jinstr import run

PROMPTS, MODELS, RATERS = 500, 3, 10
SENTENCE = "梅雨の時期は部屋の中に干し、扇風機の風を下から当てると早く乾きます。"


def main(overlap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers = pathlib.Path(folder, "answers.jsonl")
        names = [[f"model{n}"] for n in range(MODELS)]
        with answers.open("w", encoding="utf-8") as file:
            for n in range(PROMPTS):
                # 300 to 400 characters, all different.
                texts = [f"{n}の{m}。" + SENTENCE * (9 + (n + m) % 3) for m in range(MODELS)]
                row = {"id": n, "prompt": f"質問{n}", "responses": texts, "models": names}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        words = [f"STUDY={folder}/study", f"ANSWERS={answers}", f"RATERS={RATERS}"]
        start = time.perf_counter()
        assert run.main(["compare", "make", *words, f"OVERLAP={overlap}"]) == 0
        made = time.perf_counter()
        assert run.main(["compare", "read", f"STUDY={folder}/study"]) == 0
        read = time.perf_counter()
        rows = PROMPTS * MODELS * (MODELS - 1) // 2 * overlap
        paths = pathlib.Path(folder).glob("study/sheets/*")
        size = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{rows} rows in {RATERS} workbooks, {size:.1f} MB")
        print(f"made in {made - start:.1f} s, read in {read - made:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
