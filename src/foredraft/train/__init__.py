"""From text to a trained draft: token folders, objectives, the loop.

Promises: what was seen, masked and counted is on disk beside what was trained. Refuses to know: the planner, laws,
reports.

Shape letters: B windows of a batch, T tokens of a window.
"""

from foredraft import callable_room

callable_room(__name__)
