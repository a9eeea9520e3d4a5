"""Study files: Hydra composes, pydantic validates; every problem of a study is reported at once."""
