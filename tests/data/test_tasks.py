"""seqio tasks and TFDS sets: real ones, built on disk; what they yield equals what files yield."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("seqio")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """Run a script in a process of its own (TensorFlow stays out of this one); returns its last line as JSON."""

    def call(script, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), "utf-8")
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script), "utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return call


MODULE = """
    import seqio
    from jinstr.data import sources, tasks
    from jinstr.samples import build

    FOLDER = build.write("world", num_bytes=20_000)

    def mentions(targets, predictions):
        hits = sum(target in text for target, text in zip(targets, predictions))
        return {"mentions": hits / len(targets)}

    def source(name, **settings):
        return sources.SourceConfig(path=f"{FOLDER}/{name}.jsonl", **settings)

    tasks.add("qa", source("instructions", holdout=0.1), [mentions])
    tasks.add("talk", source("conversations"))
    tasks.add("prose", source("corpus"))
    tasks.add("ranked", source("rankings"))
    seqio.MixtureRegistry.add("mixed", [("qa", 3.0), ("talk", 1.0)])
"""


def test_tasks_yield_what_files_yield(run):
    """Both ways, every field; kinds, splits, mixtures and metrics too."""
    found = run(
        """
        import json
        from jinstr.data import sources, tasks
        import my_tasks

        def both(task, name, **settings):
            one = sources.read(sources.SourceConfig(task=task, module="my_tasks"))
            two = sources.read(my_tasks.source(name, **settings))
            one, two = list(one), list(two)
            return len(one), [{k: v for k, v in e.items()} for e in one] == [
                {k: e[k] for k in o} for o, e in zip(one, two)
            ]

        def kind(task):
            return tasks.kind(sources.SourceConfig(task=task, module="my_tasks"))

        print(json.dumps({
            "qa": both("qa", "instructions", holdout=0.1),
            "talk": both("talk", "conversations"),
            "prose": both("prose", "corpus"),
            "ranked": both("ranked", "rankings"),
            "other": both("talk", "conversations", limit=3),
            "kinds": [kind(task) for task in ("qa", "prose", "ranked")],
            "mixed": tasks.mixture(sources.SourceConfig(task="mixed", module="my_tasks")),
            "metrics": tasks.metrics(sources.SourceConfig(task="qa"))[0](["a"], ["ab"]),
        }))
        """,
        my_tasks=MODULE,
    )
    assert found["qa"][1] and found["talk"] == [30, True] and found["prose"][1]
    assert found["ranked"] == [300, True]
    assert found["kinds"] == ["chat", "lm", "prompts"]
    assert found["mixed"] == [["qa", 3.0], ["talk", 1.0]] and found["metrics"] == {"mentions": 1.0}


def test_a_mixture_is_prepared_and_known_again_without_tensorflow(run, tokenizer_path):
    found = run(
        f"""
        import json, sys
        from jinstr.data import dataset, prepare

        config = prepare.PrepareConfig(cache_dir="cache", workers=1)
        data = dataset.DataConfig(data="mixed,prose*0.5", module="my_tasks", seq_len=256, batch_tokens=512)

        def load():
            return dataset.load(
                data, tokenizer_path={tokenizer_path!r}, template="chatml", prepare_config=config, seed=0
            )

        if __name__ == "__main__":
            load()
            sys.modules["tensorflow"] = None
            again = load()
            names = [(s.name, s.rate) for s in again.sources]
            print(json.dumps([names, list(again.train.read(0)["tokens"].shape), "seqio" in sys.modules]))
        """,
        my_tasks=MODULE,
    )
    names, shape, has_seqio = found
    assert names == [["mixed.qa", 0.75], ["mixed.talk", 0.25], ["prose", 0.5]]
    assert shape == [2, 256] and not has_seqio


BUILDER = """
    import tensorflow_datasets as tfds

    ROWS = [("猫とは何ですか。", "動物です。"), ("空は何色ですか。", "青色です。")]

    class TinyQa(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = {"instruction": text, "context": text, "response": text, "category": text}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (question, answer) in enumerate(ROWS):
                yield number, {
                    "instruction": question, "context": "", "response": answer, "category": "open_qa",
                }

    class Wiki40b(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.3.0")

        def _info(self):
            text = tfds.features.Text()
            features = {"text": text, "version_id": text, "wikidata_id": text}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            text = "\\n_START_ARTICLE_\\n富士山\\n_START_SECTION_\\n概要\\n_START_PARAGRAPH_\\n高い山。_NEWLINE_続き。"
            yield 0, {"text": text, "version_id": "1", "wikidata_id": "Q39231"}
"""


def test_tfds_sets_built_on_disk(run):
    found = run(
        """
        import json
        import my_sets
        from jinstr import errors
        from jinstr.data import sources

        for builder in (my_sets.TinyQa, my_sets.Wiki40b):
            builder(data_dir="tfds").download_and_prepare()

        def read(name, **settings):
            return list(sources.read(sources.SourceConfig(tfds=name, tfds_dir="tfds", **settings)))

        try:
            read("tiny_qa", split="test")
        except errors.ConfigError as error:
            problem = str(error)
        kinds = [sources.kind(sources.SourceConfig(tfds=n, tfds_dir="tfds")) for n in ("tiny_qa", "wiki40b")]
        print(json.dumps([read("tiny_qa"), read("wiki40b"), kinds, problem]))
        """,
        my_sets=BUILDER,
    )
    qa, wiki, kinds, problem = found
    assert sorted(example["contents"][1] for example in qa) == ["動物です。", "青色です。"]
    assert qa[0]["roles"] == ["user", "assistant"] and qa[0]["genre"] == "open_qa"
    assert [(e["id"], e["text"]) for e in wiki] == [("Q39231", "富士山\n概要\n高い山。\n続き。\n")]
    assert kinds == ["chat", "lm"]
    assert "has the splits train, not 'test'" in problem
