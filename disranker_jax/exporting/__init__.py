"""A trained model for other programs: ONNX, StableHLO, fewer tokens, and proof of parity."""
