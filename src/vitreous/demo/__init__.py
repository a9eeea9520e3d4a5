"""A synthetic 3D-OCT cohort with a planted, documented signal, and the small encoders pretrained on it."""
