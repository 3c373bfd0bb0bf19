"""Runs engines, times steps, writes Observations. Refuses to know: the laws; measuring must not know what is hoped
for.
"""

from foredraft import callable_room

callable_room(__name__)
