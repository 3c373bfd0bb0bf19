"""Propose, score, verify, commit: token ids only. Refuses to know tokenizers and laws."""
