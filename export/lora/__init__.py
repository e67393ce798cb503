"""LoRAs of diffusers, PEFT and kohya, fused into a bundle's weights and taken out again."""
