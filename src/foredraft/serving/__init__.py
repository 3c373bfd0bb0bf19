"""Running servers: asked under load, measured by the client's clock and the engine's counters, watched by their pages of metrics.

Promises: no torch; what a server does not say stays unknown. Refuses to know: the laws; measuring must not know what is hoped for.
"""
