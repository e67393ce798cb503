"""Walks and grids between noises, for ``Engine.sample(noise=...)``."""

from stepfuse.requests.interpolation import interpolate_noise, interpolate_noise_grid

__all__ = ["interpolate_noise", "interpolate_noise_grid"]
