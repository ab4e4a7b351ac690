"""The job: its fields, its file, errors with line numbers, shipped presets."""
