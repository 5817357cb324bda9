"""jinstr and transformers on one model: the same choices, the same answers.

pip install torch transformers; python -m pytest -m peers tests/evaluate
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.evaluate import engine_parity, small_model  # noqa: E402

pytestmark = pytest.mark.peers


def test_choices_and_answers_are_those_of_transformers(shared_data, tmp_path):
    model = small_model.write(tmp_path / "small", max_position_embeddings=2048)
    files = [
        str(shared_data / "eval" / f"{name}_valid.json") for name in ("jcommonsenseqa", "jsquad")
    ]
    found = engine_parity.compare(model.removeprefix("hf:"), *files, count=30)
    assert (found.choices, found.written) == (30, 30), found
    # Negative control: asked in other words, it answers otherwise.
    other = engine_parity.compare(model.removeprefix("hf:"), *files, count=5, template=1)
    assert other.written < 5
