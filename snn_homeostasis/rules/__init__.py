"""Rules: one short class each."""
