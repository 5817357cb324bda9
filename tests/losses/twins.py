"""Slow, obvious forms in NumPy that the losses are held against, one place at a time in f64, and their slopes."""

import math

import numpy as np


def slope(function, x, step=1e-5):
    """Gradient of a scalar function of an array, by central differences in f64."""
    x = np.array(x, np.float64)
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        here = x[index]
        x[index] = here + step
        above = function(x)
        x[index] = here - step
        out[index] = (above - function(x)) / (2 * step)
        x[index] = here
    return out


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x):
    return math.exp(log_sigmoid(x))


def masks(B, T, seed):
    """Masks of answers as they come: the end at once, no end, random lengths, a row left out; the last with holes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((B, T), bool)
    for b, length in enumerate([1, T, 0, *rng.integers(1, T + 1, B - 3)]):
        mask[b, :length] = True
    mask[-1] = rng.random(T) < 0.5
    mask[-1, -1] = True
    return mask
