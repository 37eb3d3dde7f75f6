"""Universal state dicts: plain keys and merged weights from any adapted model, and back into any; see ``api``."""
