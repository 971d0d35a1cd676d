"""The frozen image decoder and what plugs into it.

`components` are the parts of a Stable Diffusion pipeline and where they come from, `stock` is what we share with the
pipeline of diffusers, `schedulers` and `lora` plug in; `decoder` is what training sees of it.
"""
