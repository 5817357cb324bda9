"""The published Japanese benchmarks of jinstr: `BENCHMARKS[name]`, or `find(name)` for names that people type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jinstr import errors, settings
from jinstr.data.eval_tasks import (
    benchmark,
    file_checks,
    jglue,
    metrics,
    official_files,
    own_files,
    pfgen,
    reading,
    templates_choice,
    templates_written,
)

_JGLUE = "JGLUE 1.1 (Kurihara et al., LREC 2022), https://github.com/yahoojapan/JGLUE"
_CLASSES = (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.mcc)
_LIKENESS = (metrics.multiset_char_f1, metrics.rouge_l_characters)
_SPANS = (metrics.char_f1_llm_jp_eval, metrics.exact_match, *_LIKENESS)

_HARNESS = (metrics.exact_match_jsquad_harness, metrics.char_f1_jsquad_harness)

_ALL = (
    benchmark.Benchmark(
        name="jcommonsenseqa",
        version="1",
        read=file_checks.by_rows(jglue.jcommonsenseqa),
        templates=templates_choice.JCOMMONSENSEQA,
        chooses=True,
        metrics=(metrics.accuracy,),
        main="accuracy",
        read_answer=reading.first_paragraph,
        max_new_tokens=16,
        stop=("\n",),
        source=_JGLUE,
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="jnli",
        version="1",
        read=file_checks.by_rows(jglue.jnli),
        templates=templates_choice.JNLI,
        chooses=True,
        metrics=_CLASSES,
        main="accuracy",
        read_answer=reading.first_paragraph,
        max_new_tokens=8,
        stop=("\n",),
        source=_JGLUE,
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="jsquad",
        version="1",
        read=jglue.squad,
        templates=templates_written.JSQUAD,
        chooses=False,
        metrics=(*_SPANS, *_HARNESS),
        main="char_f1_llm_jp_eval",
        read_answer=reading.first_paragraph,
        max_new_tokens=25,
        source=_JGLUE,
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="mgsm_ja",
        version="1",
        read=official_files.mgsm,
        templates=templates_written.MGSM,
        chooses=False,
        metrics=(metrics.exact_match,),
        main="exact_match",
        read_answer=reading.last_number_harness,
        max_new_tokens=256,
        source="MGSM (Shi et al. 2022, arXiv:2210.03057), https://github.com/google-research/url-nlp",
        licence="CC-BY-4.0",
    ),
    benchmark.Benchmark(
        name="jmmlu",
        version="1",
        read=official_files.jmmlu,
        templates=templates_choice.JMMLU,
        chooses=True,
        metrics=(metrics.accuracy,),
        main="accuracy",
        read_answer=reading.first_paragraph,
        max_new_tokens=16,
        stop=("\n",),
        source="JMMLU, https://github.com/nlp-waseda/JMMLU",
        licence="CC-BY-SA-4.0 (three subjects CC-BY-NC-ND-4.0)",
    ),
    benchmark.Benchmark(
        name="jsts",
        version="1",
        read=file_checks.by_rows(jglue.jsts),
        templates=templates_written.JSTS,
        chooses=False,
        metrics=(metrics.pearson, metrics.spearman),
        main="pearson",
        read_answer=reading.similarity_llm_jp_eval,
        max_new_tokens=8,
        stop=("\n",),
        source=_JGLUE,
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="jemhopqa",
        version="1",
        read=file_checks.by_rows(official_files.jemhopqa),
        templates=templates_written.JEMHOPQA,
        chooses=False,
        metrics=_SPANS,
        main="char_f1_llm_jp_eval",
        read_answer=reading.first_paragraph,
        max_new_tokens=15,
        source="JEMHopQA (Ishii et al. 2023), https://github.com/aiishii/JEMHopQA",
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="niilc",
        version="1",
        read=official_files.niilc,
        templates=templates_written.NIILC,
        chooses=False,
        metrics=_SPANS,
        main="char_f1_llm_jp_eval",
        read_answer=reading.first_paragraph,
        max_new_tokens=180,
        source="NIILC-ECQA2015, https://github.com/mynlp/niilc-qa",
        licence="CC-BY-SA-4.0",
    ),
    benchmark.Benchmark(
        name="jaquad",
        version="1",
        read=jglue.squad,
        templates=templates_written.JSQUAD,
        chooses=False,
        metrics=_SPANS,
        main="char_f1_llm_jp_eval",
        read_answer=reading.first_paragraph,
        max_new_tokens=40,
        source="JaQuAD (So et al. 2022, arXiv:2202.01764), https://github.com/SkelterLabsInc/JaQuAD",
        licence="CC-BY-SA-3.0",
    ),
    benchmark.Benchmark(
        name="pfgen",
        version="1",
        read=pfgen.read,
        templates=templates_written.PFGEN,
        chooses=False,
        metrics=(metrics.rouge_l_characters, metrics.multiset_char_f1),
        main="rouge_l_characters",
        metrics_of=pfgen.metrics_of,
        max_new_tokens=300,
        stop=("Q:", "\n\n"),
        source="pfgen-bench, https://github.com/pfnet-research/pfgen-bench",
        licence="Apache-2.0",
    ),
    benchmark.Benchmark(
        name="written",
        version="1",
        read=file_checks.by_rows(own_files.written),
        templates=templates_written.OWN,
        chooses=False,
        metrics=(metrics.exact_match, metrics.char_f1_llm_jp_eval, *_LIKENESS),
        main="exact_match",
        read_answer=reading.first_paragraph,
        source="a file of input and target",
    ),
    benchmark.Benchmark(
        name="choices",
        version="1",
        read=file_checks.by_rows(own_files.choices),
        templates=templates_choice.OWN_CHOICES,
        chooses=True,
        metrics=_CLASSES,
        main="accuracy",
        read_answer=reading.first_paragraph,
        max_new_tokens=32,
        stop=("\n",),
        source="a file of input, choices and target",
    ),
)
BENCHMARKS: Mapping[str, benchmark.Benchmark] = {found.name: found for found in _ALL}


def find(name: str) -> benchmark.Benchmark:
    """The benchmark of this name. Errors: ConfigError with the nearest name."""
    if name not in BENCHMARKS:
        raise errors.ConfigError(
            "JI-EVAL-015",
            f"no benchmark {name}{settings.did_you_mean(name, BENCHMARKS)}; known: {', '.join(BENCHMARKS)}",
        )
    return BENCHMARKS[name]


def load(name: str, path: str) -> tuple[benchmark.Benchmark, tuple[benchmark.Example, ...]]:
    """The benchmark of this name and its examples at a path, with the metrics that the file itself makes possible.

    pfgen against a folder of official questions gets its three official scores, and their mean as the main one.
    Errors: ConfigError for the name, DataError for the file.
    """
    found = find(name)
    examples = found.read(path)
    more = found.metrics_of(path) if found.metrics_of else ()
    if more:
        found = dataclasses.replace(found, metrics=(*more, *found.metrics), main=found.name)
    return found, examples
