"""What a cache costs and saves on models of full size: real architectures, random weights, so never quality."""
