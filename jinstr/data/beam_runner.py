"""A function over many requests as an Apache Beam pipeline. Beam is imported only here, and only when asked for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from jinstr import errors

RUNNERS = {
    "direct": "DirectRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}


def each(
    function: Callable[[dict], None],
    requests: Sequence[dict],
    runner: str,
    *,
    workers: int,
    options: str = "",
) -> None:
    """Call a function of a module with every request, on the workers of a Beam runner; returns when all are done.

    runner: a key of RUNNERS, or the name of another of Beam's runners. workers: processes of the direct runner; others
    take theirs from `options`, which are those of Beam's command lines.
    Errors: ConfigError without Beam, or for options that it does not know; MachineError where a worker failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise errors.ConfigError(
            "JI-BEAM-001",
            f"RUNNER={runner} needs Apache Beam ({error}): pip install 'jinstr[beam]', in an environment of its own, "
            "for it wants older libraries than the lock file has; without it: PART=i/N and MERGE=True",
        ) from None
    words = [f"--runner={RUNNERS.get(runner, runner)}", *shlex.split(options)]
    if runner == "direct":
        words += [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    parsed = pipeline_options.PipelineOptions(words)
    if runner in (
        "direct",
        "dataflow",
    ):  # Flink and Spark have options of their own, which Beam does not know
        _check_options(parsed, words, runner)
    try:
        pipeline = beam.Pipeline(options=parsed)
    except ValueError as error:  # an unknown runner, a missing option
        raise errors.ConfigError("JI-BEAM-002", f"RUNNER={runner}: {error}") from None
    _ = (
        pipeline
        | beam.Create(list(requests), reshuffle=False)
        | beam.Reshuffle()  # so that every request may go to another worker
        | beam.Map(function)
    )
    try:
        pipeline.run().wait_until_finish()
    except (
        Exception
    ) as error:  # Beam has no class for what failed on a worker, or in starting a runner
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = next((line for line in lines if "JI-" in line), (lines or [repr(error)])[-1])
        raise errors.MachineError(
            "JI-BEAM-004",
            f"RUNNER={runner}: {told[:600]}; what was made is kept, so the same command goes on",
        ) from error


def _check_options(parsed, words: Sequence[str], runner: str) -> None:
    """Errors: ConfigError for options that Beam does not know, which it would pass over."""
    parsers: list = []
    parsed.get_all_options(add_extra_args_fn=parsers.append)
    _, unknown = parsers[0].parse_known_args(list(words))
    if unknown:
        raise errors.ConfigError(
            "JI-BEAM-003", f"BEAM_OPTIONS: Beam knows no {' '.join(unknown)} (RUNNER={runner})"
        )
