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

    tasks.add("qa", source("instructions", holdout=0.1, licence="CC0-1.0", commercial=True), [mentions])
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


SHAPES = """
    import glob
    import json
    import os
    import sys

    from jinstr.data import sources, tasks

    utterances = [
        {"name": ("user", "agent")[n % 2], "text": text}
        for n, text in enumerate(["こんにちは", "はい", "問い", "答え"])
    ]
    answer = {"text": "猫", "answer_start": 0}
    question = {"id": "q1", "question": "何がいる？", "answers": [answer]}
    paragraph = {"context": "猫がいる。", "qas": [question, question | {"id": "q2", "answers": []}]}
    choice = {"q_id": 7, "question": "どれ", "label": 2} | {f"choice{n}": f"候補{n}" for n in range(5)}
    ROWS = {
        "utterances": [{"id": "u", "utterances": utterances, "author": "甲"}] * 2,
        "squad": [{"version": "1", "data": [{"title": "猫", "paragraphs": [paragraph]}]}],
        "choices": [choice, choice | {"q_id": 8, "label": 0}],
    }
    os.makedirs("shapes", exist_ok=True)
    for name, rows in ROWS.items():
        with open(f"shapes/{name}.json", "w", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\\n" for row in rows))

    real = os.environ.get("REAL_DATA", "")
    PLACES = {"utterances": "instruction_ja.jsonl", "squad": "jaquad_train_*.json",
              "choices": "jcommonsenseqa_train_3k.json"}

    def source(name):
        path = f"{real}/sft/{PLACES[name]}" if real else f"shapes/{name}.json"
        return sources.SourceConfig(path=path, name=name)

    for name in ROWS:
        tasks.add(name, source(name))
"""

COMPARE = """
    import json
    import shapes
    from jinstr.data import sources
    from jinstr.data.eval_tasks import questions as questions_lib

    found = {}
    squad = sources.SourceConfig(task="squad", module="shapes", answers="first", limit=1)
    (other,) = sources.read(squad)
    for name in shapes.ROWS:
        files = list(sources.read(shapes.source(name)))
        task = list(sources.read(sources.SourceConfig(task=name, module="shapes")))
        found[name] = [len(files), task == files, other == files[0], sorted(files[0])]
    (asked,) = questions_lib.parse("choices", "shapes", 2)
    print(json.dumps([found, asked.chooses, [q.answer for q in asked.questions]]))
"""


@pytest.mark.slow
def test_tasks_of_dialogues_trees_and_choices_yield_all_that_files_yield(run):
    found, chooses, answers = run(COMPARE, shapes=SHAPES)
    assert [found[name][:2] for name in ("utterances", "squad", "choices")] == [
        [2, True],
        [1, True],
        [2, True],
    ]
    # Negative control: another task's examples are not these.
    assert [found[name][2] for name in found] == [False, True, False]
    assert "candidates" in found["choices"][3] and "candidates" not in found["squad"][3]
    assert chooses and answers == ["候補2", "候補0"]


@pytest.mark.slow
def test_tasks_of_real_files_yield_all_that_files_yield(run, shared_data, monkeypatch):
    monkeypatch.setenv("REAL_DATA", str(shared_data))
    found, chooses, _ = run(COMPARE, shapes=SHAPES)
    assert all(facts[1] for facts in found.values()) and chooses
    assert found["squad"][0] == 4057 and found["choices"][0] == 3000


@pytest.mark.slow
def test_sets_of_tasks_follow_the_files_and_modules_behind_them(run, tokenizer_path):
    """Also that a second start asks no child process, and imports no TensorFlow."""
    found = run(
        f"""
        import json, pathlib, sys
        from jinstr.data import prepare, sources, state

        config = prepare.PrepareConfig(cache_dir="cache", workers=1)
        asked = []
        ask = state._ask
        state._ask = lambda source: (asked.append(source.task), ask(source))[1]
        source = sources.SourceConfig(task="mine", module="my_module")

        def folder():
            places = prepare.ensure_prepared(
                prepare.expanded([source], config),
                tokenizer_path={tokenizer_path!r}, template="chatml", config=config,
            )
            return places[0].path

        def write(answer):
            row = {{"ID": "1", "text": "問い", "output": answer}}
            pathlib.Path("rows.jsonl").write_text(json.dumps(row) + "\\n", "utf-8")

        if __name__ == "__main__":
            write("答え")
            first, again = folder(), folder()
            counts = [len(asked)]
            write("別の答え")
            rows = folder()
            counts.append(len(asked))
            write("答え")
            back = folder()
            helper = pathlib.Path("my_helper.py")
            helper.write_text(helper.read_text("utf-8") + "VALUE = 1\\n", "utf-8")
            code = folder()
            counts.append(len(asked))
            print(json.dumps([first, again, rows, back, code, counts, "tensorflow" in sys.modules]))
        """,
        my_module="""
            import my_helper
            from jinstr.data import sources, tasks

            tasks.add("mine", sources.SourceConfig(path=my_helper.PATH))
        """,
        my_helper='PATH = "rows.jsonl"\n',
    )
    first, again, rows, back, code, counts, has_tensorflow = found
    assert first == again == back and len({first, rows, code}) == 3
    assert counts == [1, 1, 2] and not has_tensorflow


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
            examples = [row["examples"] for row in dataset.table(again)]
            epochs = [facts["epochs"] for facts in again.train.shares(1 << 14).values()]
            drawn = [count * times for count, times in zip(examples, epochs)]
            shape = list(again.train.read(0)["tokens"].shape)
            terms = [[row["licence"], row["commercial"]] for row in dataset.table(again)]
            print(json.dumps([names, shape, "seqio" in sys.modules, drawn[0] / drawn[1], terms]))
        """,
        my_tasks=MODULE,
    )
    names, shape, has_seqio, ratio, terms = found
    assert terms == [["CC0-1.0", True], ["", None], ["", None]]
    assert ratio == pytest.approx(3.0, rel=0.01)
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

        import pathlib
        import shutil
        from jinstr.data import state

        asked = []
        ask = state._ask
        state._ask = lambda source: (asked.append(source.tfds), ask(source))[1]
        (source,) = sources.parse("tfds:tiny_qa:train", tfds_dir="tfds")
        keys = [state.source_state(source, pathlib.Path("cache"), False)]
        keys.append(state.source_state(source, pathlib.Path("cache"), False))
        shutil.rmtree("tfds/tiny_qa")
        my_sets.ROWS.append(("海は何色ですか。", "青色です。"))
        my_sets.TinyQa(data_dir="tfds").download_and_prepare()
        keys.append(state.source_state(source, pathlib.Path("cache"), False))
        keys = [json.dumps(key) for key in keys]
        print(json.dumps([read("tiny_qa")[:2], read("wiki40b"), kinds, problem, keys, asked]))
        """,
        my_sets=BUILDER,
    )
    qa, wiki, kinds, problem, keys, asked = found
    assert {example["contents"][1] for example in qa} <= {"動物です。", "青色です。"}
    assert keys[0] == keys[1] != keys[2] and asked == ["tiny_qa", "tiny_qa"]
    assert "1.0.0" in keys[0] and "tiny_qa-train.tfrecord" in keys[0]
    assert qa[0]["roles"] == ["user", "assistant"] and qa[0]["genre"] == "open_qa"
    assert [(e["id"], e["text"]) for e in wiki] == [("Q39231", "富士山\n概要\n高い山。\n続き。\n")]
    assert kinds == ["chat", "lm"]
    assert "has the splits train, not 'test'" in problem
