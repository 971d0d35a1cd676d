"""The frozen image decoder (Stable Diffusion) and what plugs into it: components, schedulers, LoRA."""
