"""What this project asks about itself, on `mixcache.bench`. Run from the repository's root: `python -m studies.NAME`.

captions   how much of its caption a clip of the drawn world shows
guard      what a plan is worth whose profile is of another guidance scale
joined     what a `cfg` step costs where one call holds both branches
overhead   what the attachment itself costs
search     the settings of the peers that are worth measuring on a model, out of those in `grids`
full_size  what caching costs and saves on models of full size, with random weights
targets    what this project set itself, held against results of `mixcache bench`
readme     the README's figures, from docs/results
"""
