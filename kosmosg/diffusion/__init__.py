"""The frozen image decoder and what plugs into it.

`components` loads the parts of a Stable Diffusion pipeline, `stock` is what we share with the diffusers pipeline,
`schedulers` and `lora` plug into it; `decoder` is the frozen decoder that training uses.
"""
