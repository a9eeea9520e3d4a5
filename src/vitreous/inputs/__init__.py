"""Decoders and preprocessing: from the bytes of one file to the tensor an encoder was trained on."""
