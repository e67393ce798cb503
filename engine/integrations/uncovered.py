"""Why a class of diffusers' schedulers is no sampler here."""

from __future__ import annotations

from collections.abc import Mapping

_TOKENS = "its samples are tokens of a vocabulary, and a step of a table is a sum of numbers"
_FROM_SAMPLE = "it leads from a sample to its noise: Engine.encode does that, and no sampler"
_SHIFTED = "its noise levels are shifted by snr_shift_scale"
_SHARES = "its timesteps are shares of 1, without a number of training timesteps"
_STAGES = "it changes the sample's size from stage to stage, and a step keeps it"

#: By class: what a table of steps, or a schedule of noise levels, does not hold.
REASONS: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CosineDPMSolverMultistepScheduler": "its timesteps are angles, and its noise is of one Brownian path",
    "SCMScheduler": "its timesteps are angles, and its network's input and output are scaled by their sines",
    "ConsistencyDecoderScheduler": "it is of a decoder that is sampled in two steps, not of a denoiser",
    "CogVideoXDDIMScheduler": _SHIFTED,
    "CogVideoXDPMScheduler": _SHIFTED,
    "DDIMInverseScheduler": _FROM_SAMPLE,
    "DPMSolverMultistepInverseScheduler": _FROM_SAMPLE,
    "DDIMParallelScheduler": "it steps many timesteps of one sample at once; one by one its step is DDIMScheduler's",
    "DDPMParallelScheduler": "it steps many timesteps of one sample at once; one by one its step is DDPMScheduler's",
    "DDPMWuerstchenScheduler": _SHARES,
    "FlowMapEulerDiscreteScheduler": "its network is given the end of the step beside its beginning",
    "HeliosDMDScheduler": _STAGES,
    "HeliosScheduler": _STAGES,
    "IPNDMScheduler": "its noise levels are its own, at timesteps that are shares of 1; ipndm takes any schedule",
    "KarrasVeScheduler": "it adds noise before the network is called, at a level of its own",
    "LTXEulerAncestralRFScheduler": "its steps add noise on a flow, where euler adds none and lcm all",
    "MiniMaxH3Scheduler": "its network predicts the way to the data, at timesteps that rise from 0 to 1",
    "PiflowScheduler": "its network predicts a policy that is integrated in substeps, not one direction",
    "RFD4ProteinaScheduler": "its timesteps rise from noise to data, and its noise has a schedule of its own",
    "RePaintScheduler": "it goes back to noisier levels and draws the known region anew: Engine.sample takes a mask",
    "ScoreSdeVeScheduler": "its corrector's step is scaled by norms of the whole sample",
    "ScoreSdeVpScheduler": _SHARES,
    "UnCLIPScheduler": "its variance is predicted by the network, or of a kind of its own",
}


def reason_of(name: str) -> str:
    """Why a class is not covered, to stand behind its name; empty where there is nothing to say but that it is not."""
    return f" ({REASONS[name]})" if name in REASONS else ""
