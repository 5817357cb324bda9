"""Judgements for tests."""

from jinstr.human import judgements


def judged(prompt, verdict, rater="r", left="a", right="b", repeat=0, **rest):
    return judgements.Judgement(
        prompt=prompt, rater=rater, left=left, right=right, verdict=verdict, repeat=repeat, **rest
    )


def of_outcomes(outcomes, model="a", other="b"):
    """One judgement for each prompt, sides in turns."""
    found = []
    for number, outcome in enumerate(outcomes):
        left, right = (model, other) if number % 2 else (other, model)
        winner = {1.0: model, 0.0: other}.get(outcome)
        verdict = "tie" if winner is None else "left" if winner == left else "right"
        found.append(judged(f"p{number}", verdict, left=left, right=right))
    return found
