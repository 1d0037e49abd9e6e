"""How draws are run: plans of `predict`, and the choice between them."""
