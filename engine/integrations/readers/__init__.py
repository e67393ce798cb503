"""How each class of diffusers' schedulers is read: its entries, checked, as noise levels and a sampler's options."""
