"""Drafts into serving engines: folders that vLLM and SGLang load, their launch settings, and a judge of such folders.

Promises: what is written is read back and judged before it appears. Refuses to know: training, how anything is measured.
"""
