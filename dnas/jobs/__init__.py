"""A whole job: planning, context, stages, progress; what a run folder keeps of it."""
