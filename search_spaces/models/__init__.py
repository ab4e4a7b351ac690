"""Where networks come from: sources, checkpoints, the small zoo, attention whose projections are layers."""
