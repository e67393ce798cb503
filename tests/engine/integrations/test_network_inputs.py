"""Inputs of a pipeline's network that were recorded, for other states."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import torch

from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.predictors import ModulePredictor

STATES, TIMES = torch.zeros(4, 1, 2, 2), torch.full((4,), 5)
EMBEDS = torch.tensor([1.0, 3.0])  # of two images, without a row for each of the network's four


def recorded():
    return NetworkInputs((STATES, 5), {"added_cond_kwargs": {"image_embeds": [EMBEDS]}})


def test_conditioning_without_a_row_for_each_is_passed_as_it_came():
    inputs = recorded()
    _, kwargs = inputs.arguments(STATES, TIMES, torch.arange(4))
    assert kwargs["added_cond_kwargs"]["image_embeds"][0] is EMBEDS
    with pytest.raises(ValueError, match=r"a row for each of the network's 4, or one for all, got .* \(2,\)"):
        inputs.arguments(STATES[:2], TIMES[:2], torch.tensor([2, 3]))


def test_a_network_sees_rows_in_the_pipeline_s_order():
    """Else what has no row for each would act on other images: an adapter of images repeats its own over the rows."""

    def network(sample, timestep, *, added_cond_kwargs, return_dict):
        return (sample + added_cond_kwargs["image_embeds"][0].repeat_interleave(2)[:, None, None, None],)

    predictor = ModulePredictor()
    predictor._start = SimpleNamespace(module=network, inputs=recorded(), chunks=1)
    x = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    got = predictor._on_host(x, np.full(4, 5.0, np.float32), {"row": np.array([2, 0, 3, 1])})
    np.testing.assert_array_equal(got[:, 0, 0, 0], [0 + 3, 1 + 1, 2 + 3, 3 + 1])
