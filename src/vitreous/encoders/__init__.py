"""Pretrained weights together with the input they were trained on, loaded with a receipt."""
