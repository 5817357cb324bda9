"""What a person sees of a long run: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys

import tqdm


class Progress:
    """Steps done, loss, tokens per second, utilisation, time left."""

    def __init__(self, num_steps: int, start_step: int):
        self._num_steps = num_steps
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=self._plain,
            dynamic_ncols=True,
        )

    def update(self, step: int, *, loss: float, tokens_per_second: float, mfu: float) -> None:
        text = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {mfu:.0%} of matmul peak"
        if self._plain:
            print(f"step {step}/{self._num_steps}  {text}", flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, step: int, values: dict[str, float]) -> None:
        """A line that stays above the bar."""
        line = f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._plain:
            print(line, flush=True)
        else:
            tqdm.tqdm.write(line)

    def close(self) -> None:
        self._bar.close()
