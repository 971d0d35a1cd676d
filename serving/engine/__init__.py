"""The step engine: `step_engine` denoises requests at different steps in one U-Net batch, `messages` defines its inputs
and outputs.
"""
