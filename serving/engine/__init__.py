"""The step engine, in which requests at different denoising steps share one U-Net batch, and its messages.

`ImageRequest` -> `StepEngine` (one `ActiveRequest` each) -> `DenoisingProgress`, `Preview`, `Finished`.
"""
