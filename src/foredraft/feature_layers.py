"""The hidden states of its target that a head reads where nobody says which, as Hugging Face counts them in `hidden_states`.

Refuses to know: how a head reads them, what a config calls them.
"""

BLOCK_FEATURES = 5  # hidden states that published heads of blocks of five layers read


def eagle3_feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The hidden states EAGLE-3 reads: those entering layers 2, L/2 and L−3."""
    if num_layers < 3:
        raise ValueError(
            f"an EAGLE-3 head reads hidden states 2, L/2 and L−3, but its target has {num_layers} layers; name three"
        )
    return 2, num_layers // 2, num_layers - 3


def block_feature_layers(num_layers: int, num: int = BLOCK_FEATURES) -> tuple[int, ...]:
    """The hidden states that published heads read, spread from the second layer's to the last but three's (one more than z-lab's
    count); of a target too shallow for `num` of them all but the last.
    """
    if num_layers < num + 3:
        return tuple(range(1, num_layers)) or (0,)
    return tuple(1 + round(1 + i * (num_layers - 4) / (num - 1)) for i in range(num))
