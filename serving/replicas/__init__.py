"""What computes, one process each.

`BatchedPromptEncoder`: prompts to conditions; `ImageDecoder`: conditions to images.
"""
