"""The operations that models are made of; every fast one has a plain one in `reference` beside it."""
