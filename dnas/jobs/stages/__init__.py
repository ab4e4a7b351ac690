"""The stages of a job, one file each, and what several of them share."""
