"""One round: draft γ tokens, verify them, gain Ω; when it pays, and how sure that is."""
