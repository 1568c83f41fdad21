"""diffusers' pipelines as a host: which transformers, what their calls say, and what stands around them."""
