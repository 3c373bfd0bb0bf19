"""How large a group of places may be whose logits are there at once. Refuses to know: torch."""

# Bytes of the logits of a group, in the type they are multiplied in.
GROUP_BYTES = {"cpu": 2**25, "cuda": 2**29}
