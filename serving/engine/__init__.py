"""The step engine: `step_engine` denoises requests at different steps in one U-Net batch, `messages` are what it
gets and gives.
"""
