"""The published Japanese benchmarks of jinstr: `BENCHMARKS[name]`, or `find(name)` for names that people type."""

from __future__ import annotations

from collections.abc import Mapping

from jinstr import errors, settings
from jinstr.data.eval_tasks import benchmark, metrics, official_files, reading, templates

_JGLUE = "JGLUE 1.1 (Kurihara et al., LREC 2022), https://github.com/yahoojapan/JGLUE"
_CLASSES = (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.mcc)
_SPANS = (metrics.char_f1_llm_jp_eval, metrics.exact_match, metrics.multiset_char_f1)

_ALL = (
    benchmark.Benchmark(
        name="jcommonsenseqa",
        version="1",
        read=official_files.by_rows(official_files.jcommonsenseqa),
        templates=templates.JCOMMONSENSEQA,
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
        read=official_files.by_rows(official_files.jnli),
        templates=templates.JNLI,
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
        read=official_files.squad,
        templates=templates.JSQUAD,
        chooses=False,
        metrics=_SPANS,
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
        templates=templates.MGSM,
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
        templates=templates.JMMLU,
        chooses=True,
        metrics=(metrics.accuracy,),
        main="accuracy",
        read_answer=reading.first_paragraph,
        max_new_tokens=16,
        stop=("\n",),
        source="JMMLU, https://github.com/nlp-waseda/JMMLU",
        licence="CC-BY-SA-4.0 (three subjects CC-BY-NC-ND-4.0)",
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
