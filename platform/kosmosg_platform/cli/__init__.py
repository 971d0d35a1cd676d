"""The command `kosmosg`: `main` defines the subcommands, `generate`, `doctor`, `trace` and `track`
implement four of them, `completion` provides shell completion."""
