"""What runs of a server say of its other loads and lookaheads: a law of its own rows, a schedule, and the files to launch and watch it by.

Promises: no torch; nothing of the target or the machine needs to be known, what is not measured is said to be so. Refuses to know: how a
server is asked (`serving`).
"""
