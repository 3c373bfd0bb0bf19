"""Propose, score, verify, commit: token ids in, token ids out.

Promises: what is emitted follows the target's probabilities whatever the drafter proposes, and a request's greedy tokens do not
depend on who runs beside it. Refuses to know: tokenizers, laws.
"""
