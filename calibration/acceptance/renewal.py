"""Consecutive rounds along a measured text, where each round starts where the previous one ended.

In an engine, rounds start right after a rejection. They spend more time where drafts are rejected
and yield fewer tokens than rounds that start at random tokens. Both means follow from the
acceptance probabilities of a window, or approximately from their variance and autocorrelation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibration.records.acceptance import RENEWAL_GAMMAS, Renewal


def renewals(overlap: Sequence[float]) -> tuple[Renewal, ...]:
    """Expected rounds for a window's acceptance probabilities, for each γ that fits in it."""
    results = []
    for gamma in (gamma for gamma in RENEWAL_GAMMAS if gamma <= len(overlap)):
        places = len(overlap) - gamma + 1
        begins = [1.0] + [0.0] * (len(overlap) + 1)
        made = even = 0.0
        for place in range(places):
            alive = tokens = 1.0
            for step in range(gamma):
                passed = alive * overlap[place + step]
                begins[place + step + 1] += begins[place] * (alive - passed)
                alive = passed
                tokens += alive
            begins[place + gamma + 1] += begins[place] * alive
            made += begins[place] * tokens
            even += tokens
        begun = sum(begins[:places])
        results.append(Renewal(gamma, round(begun, 4), round(made, 4), round(even / places, 5)))
    return tuple(results)


def expected_ratio(
    gamma: int, *, alpha: float, variance: float, lags: Mapping[int, float], spread: float
) -> float:
    """Approximate tokens per consecutive round over tokens per round that starts at random.

    The acceptance probabilities are modelled as a stationary series with mean `alpha`, `variance`
    within windows, autocorrelation at some `lags` (interpolated; 0 beyond twice the longest) and
    standard deviation `spread` between windows. To second order, the share of rounds that start at
    a token is linear in the previous probabilities; its covariance with the tokens of such a round
    is summed over frequencies. The rms error on SmolLM2's records is 0.13 % at γ = 4, 0.7 % at 8
    and 2 % at 16.
    """
    if gamma < 1 or variance + spread**2 <= 0.0 or not 0.0 < alpha < 1.0:
        return 1.0
    step = np.arange(gamma)
    ends = np.arange(gamma + 1)  # drafts accepted in a round
    chance = np.append(alpha**step * (1.0 - alpha), alpha**gamma)
    # Derivative of the probability of each end by the acceptance at each position of the round.
    slope = np.where(ends[:, None] > step, alpha ** np.maximum(ends[:, None] - 1, 0), 0.0)
    slope[:gamma] *= 1.0 - alpha
    slope[step, step] = -(alpha**step)
    gain = np.array([np.sum(alpha ** np.arange(i, gamma)) for i in step])
    tokens = 1.0 + float(np.sum(alpha ** (step + 1)))
    places = 512
    apart = np.arange(places // 2 + 1)
    at = sorted(lags)
    shape = np.interp(apart, [0, *at, 2 * at[-1]], [1.0, *(lags[k] for k in at), 0.0])
    power = np.fft.fft(np.concatenate((shape, shape[-2:0:-1]))).real * variance / places
    angle = 2.0 * np.pi * np.fft.fftfreq(places)[1:, None]
    wave = np.exp(-1j * angle * (ends + 1))  # (frequencies, ends)
    ahead = np.exp(1j * angle * step)  # (frequencies, positions)
    answer = np.sum((wave @ slope) * ahead, axis=1) / (1.0 - wave @ chance)
    slow = -float(gain.sum()) / tokens  # response at frequency 0
    covariance = np.sum(power[1:] * (answer * (ahead.conj() @ gain)).real)
    covariance += (power[0] + spread**2) * slow * float(gain.sum())
    return max(1.0 / tokens, 1.0 + float(covariance) / tokens)
