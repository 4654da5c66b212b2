"""How the built-in market model was made: its tokenizer, its examples, its training."""
