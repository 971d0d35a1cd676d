"""The command `kosmosg`: `main` defines the subcommands, `generate`, `doctor` and `trace` implement three of
them, `completion` provides shell completion."""
