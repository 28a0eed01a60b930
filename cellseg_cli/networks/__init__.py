"""What is learned: encoder, decoder, heads, checkpoints, and running them on a field."""
