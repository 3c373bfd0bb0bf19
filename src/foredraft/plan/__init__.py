"""Everything that searches: drafts to weigh, the schedule, what to run next."""

from foredraft import callable_room

callable_room(__name__)
