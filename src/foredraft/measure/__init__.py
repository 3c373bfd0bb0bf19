"""Runs engines, times steps, writes Observations. Refuses to know: the laws; measuring must not know what is hoped
for.
"""
