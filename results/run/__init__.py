"""The run folder: atomic writes, one writer, the journal, checkpoints, where it stands."""
