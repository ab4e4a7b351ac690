"""Quantizers and the layers that use them: grids, the fused mixture, the wrapper layer, conversion, calibration."""
