"""The language model, and text on its way to and from it."""
