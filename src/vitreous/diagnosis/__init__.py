"""What is wrong, the evidence, what to run next."""
