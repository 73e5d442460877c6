"""Which method runs on which architecture: each pair is trained on a tiny checkpoint, or refused in a sentence."""
