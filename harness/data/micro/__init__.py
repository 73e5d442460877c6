"""A micro world: a grammar of short English, six tasks made from it, and a tiny pretrained T5."""
