"""The application that you deploy: interleaved prompts in over HTTP, images out."""
