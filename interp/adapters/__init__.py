"""Other doors into a model than transformers' attention interface."""
