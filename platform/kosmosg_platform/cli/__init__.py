"""The command `kosmosg`: `main` has its commands, `generate` and `doctor` do the work of two of them, `completion` says
what the shell may offer."""
