"""The packed file: planes, checksums, and weights from planes."""
