"""A run in the tools that teams watch their trainings with: scalars, the front, the assignments.

What such a log says is what the journal says: it is told again from the journal whenever a process takes the run up.
"""
