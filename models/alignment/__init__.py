"""Alignment: audio tokens learn where the language model's embeddings lie, by CTC, without the language model."""
