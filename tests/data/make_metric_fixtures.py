"""Write metric_peers.npz: what the peers' own functions say of the pairs of perturbed.py. Numbers only, no texts.

    python -m venv peers && peers/bin/pip install fuzzywuzzy==0.18.0 scikit-learn scipy rouge-score \
        neologdn emoji fugashi unidic-lite && peers/bin/pip install --no-deps lm-eval==0.4.13
    peers/bin/python tests/data/make_metric_fixtures.py SHARED/data

Without python-Levenshtein, which changes what fuzzywuzzy says. llm-jp-eval is on no package index; its metrics are
single calls of fuzzywuzzy and scipy, and those calls are made here, on texts that went the way of its evaluator (first
paragraph, strip, NFKC). set_f1 and parse_float are written out after src/llm_jp_eval/metrics (v1.4). The harness's
JSQuAD normalisation is emoji + neologdn; MGSM is the lm-eval module.
"""

import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import unicodedata
import warnings

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import perturbed  # noqa: E402

QUESTIONS = 400
PEERS = ("fuzzywuzzy", "scikit-learn", "scipy", "rouge-score", "neologdn", "emoji", "lm-eval")
EMOJI = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2702-\u27b0]+"
)


def nfkc(text):
    return unicodedata.normalize("NFKC", text)


def prediction(text):
    return nfkc(text.split("\n\n")[0].strip())


def number(text):
    try:
        return float(re.sub(r"[^0-9.]", "", text))
    except ValueError:
        return -2.0


def set_f1(text, gold):
    golds = [line.strip() for line in gold.split("\n")]
    texts = list({line.strip() for line in text.split("\n")})
    hits = sum(1 if line in golds else 0 for line in texts)
    precision, recall = hits / len(texts), hits / len(golds)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


def harness(text):
    import emoji
    import neologdn

    text = EMOJI.sub("", "".join("" if emoji.is_emoji(sign) else sign for sign in text))
    return " ".join(neologdn.normalize(text).split())


def of_spans(shared):
    from fuzzywuzzy import fuzz
    from rouge_score import rouge_scorer, tokenizers

    class Characters(tokenizers.Tokenizer):
        def tokenize(self, text):
            return list("".join(nfkc(text).lower().split()))

    rouge = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Characters())
    pairs = perturbed.span_pairs(shared, QUESTIONS)
    read = [(gold, prediction(text), text) for gold, text in pairs]
    return {
        "char_f1": np.array([fuzz.token_sort_ratio(p, nfkc(g[0])) for g, p, _ in read], np.uint8),
        "exact_match": np.array([p == nfkc(g[0]) for g, p, _ in read]),
        # Lines: the whole text and two golds, or there would be one line only.
        "set_f1": np.array([set_f1(nfkc(t), nfkc("\n".join(g[:2]))) for g, _, t in read]),
        "rouge_l": np.array([rouge.score(g[0], p)["rougeL"].fmeasure for g, p, _ in read]),
        "harness_exact": np.array([any(harness(t) == harness(x) for x in g) for g, _, t in read]),
    }


def of_labels(shared):
    from sklearn import metrics

    golds, texts = perturbed.labels(shared)
    return {
        "accuracy": metrics.accuracy_score(golds, texts),
        "macro_f1": metrics.f1_score(golds, texts, average="macro"),
        "mcc": metrics.matthews_corrcoef(golds, texts),
        "balanced_accuracy": metrics.balanced_accuracy_score(golds, texts),
    }


def of_similarities(shared):
    from scipy import stats

    golds, texts = perturbed.similarities(shared)
    numbers = [number(prediction(text)) for text in texts]
    return {
        "similarities": np.array(numbers),
        "pearson": stats.pearsonr(golds, numbers)[0],
        "spearman": stats.spearmanr(golds, numbers)[0],
    }


def of_numbers(shared):
    place = importlib.util.find_spec("lm_eval").submodule_search_locations[0]
    path = pathlib.Path(place) / "tasks/japanese_leaderboard/ja_leaderboard_mgsm.py"
    spec = importlib.util.spec_from_file_location("mgsm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    golds, texts = perturbed.number_texts(shared)
    right = [int(gold.replace(",", "")) for gold in golds] * 4
    found = [module._extract_answer(text) for text in texts]
    return {
        "numbers": np.array([np.nan if text == "[invalid]" else text for text in found], float),
        "mgsm": np.array(
            [
                module.process_results({"answer_number": gold}, [text])["acc"]
                for gold, text in zip(right, texts)
            ]
        ),
    }


def main():
    warnings.simplefilter("ignore")  # of fuzzywuzzy, that difflib is slow
    shared = pathlib.Path(sys.argv[1])
    found = of_spans(shared) | of_labels(shared) | of_similarities(shared) | of_numbers(shared)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PEERS]
    path = pathlib.Path(__file__).with_name("metric_peers.npz")
    np.savez_compressed(path, versions=np.array(versions), **found)
    print(path.stat().st_size, "bytes;", {name: np.shape(value) for name, value in found.items()})


if __name__ == "__main__":
    main()
