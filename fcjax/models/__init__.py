"""The networks: layers, attention, VAE, text encoder, UNet, binder, and the composer that joins them."""
