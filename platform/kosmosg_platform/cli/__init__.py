"""The command `kosmosg`: `main` has the verbs, `generate` and `doctor` what two of them do."""
