"""How large coefficients are: float32 holds seven digits, and states are of the order of 1."""

import itertools
import warnings
from inspect import signature

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.samplers import SAMPLERS

SCALED, COSINE = sf.NoiseSchedule.scaled_linear(), sf.NoiseSchedule.squaredcos()
SCHEDULES = {
    "linear": sf.NoiseSchedule.linear(),
    "scaled": SCALED,
    "cosine": COSINE,
    "zero-snr": SCALED.rescale_zero_terminal_snr(),
    "flow": sf.NoiseSchedule.flow(3.0),
    "edm": sf.NoiseSchedule.edm(),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LEVELS = [
    {},
    *({"levels": one} for one in ("karras", "exponential", "beta", "lu")),
    *({"spacing": one} for one in ("leading", "trailing", "linspace")),
]
ORDERS = [{}, {"order": 3}]
LARGEST = 1e6
#: Two steps of these over a whole cosine schedule: the second slope is divided by its level, 0.006, over a length of
#: 20,000, as in diffusers.
WIDE = [(sampler, "cosine", "sample", 2) for sampler in ("heun", "kdpm2_ancestral")]


def tables(sampler):
    """Of every schedule, prediction, rule of noise levels and order that the sampler takes, with what they are of."""
    make = SAMPLERS[sampler]
    taken = signature(make).parameters.keys()
    for (name, schedule), kind, levels, order, steps in itertools.product(
        SCHEDULES.items(), PREDICTIONS, LEVELS, ORDERS, (2, 25)
    ):
        options = {"prediction_type": kind, **levels, **order}
        if options.keys() <= taken:
            try:
                yield make(schedule, steps, **options), (name, kind, steps), options
            except ValueError:  # not of this schedule, or nothing follows from noise estimates without signal
                continue


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm_strided"])
def test_no_coefficient_is_large(sampler):
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of leading timesteps that begin late
        for table, made, options in tables(sampler):
            count += 1
            weights = np.abs(np.nan_to_num(table.rows[:, 1:], posinf=0.0, neginf=0.0))  # bounds are infinite
            column = int(weights.max(axis=0).argmax())
            most = 4e6 if (sampler, *made) in WIDE else LARGEST
            assert weights[:, column].max() < most, (made, options, table.columns[1 + column])
    assert count
