"""Many runs of foredraft's own verbs from one document: each in a process and a folder of its own, resumable, one by one or on Ray.

Promises: a cell that fails costs that cell and what needs it; what is done stays done. Refuses to know: torch, laws, what a
verb computes.
"""
