"""Pure maths on tensors: no files, no models, no state."""
