"""Programs that use a model: `python -m infer.<name> --help`."""
