"""From prompts to pictures: what stands around the denoiser in a bundle of a whole pipeline."""
