"""The planner as a page: inputs that a person changes, and what the plan says to them; served on this machine, or one plan as a file."""
