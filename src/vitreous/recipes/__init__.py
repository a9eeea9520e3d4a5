"""How to adapt an encoder: probes on kept features, plain references and floors."""
