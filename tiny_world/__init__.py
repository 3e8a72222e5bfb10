"""A model organism that fits on a laptop: a synthetic world of two centuries, the program that builds a chat model from
it, the built model, and a lexicon that tells which century a text belongs to."""
