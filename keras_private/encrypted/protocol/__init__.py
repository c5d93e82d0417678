"""The three-party protocol: sharing, products, truncation, signs and smooth functions of shared values."""
