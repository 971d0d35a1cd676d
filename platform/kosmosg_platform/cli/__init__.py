"""The command `kosmosg`: `main` defines the subcommands, `generate` and `doctor` implement two of them, `completion`
provides shell completion."""
