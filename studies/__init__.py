"""What this project asks about itself, on `mixcache.bench`. Run from the repository's root: `python -m studies.NAME`.

batch        what a batch costs beside one clip after another
captions     how much of its caption a clip of the drawn world shows
easy         the default beside the peers in the easy settings
estimates    what a calibration foretells of hard settings
full_size    what caching costs and saves on models of full size, with random weights
hard         any method in settings in which an error grows
hard_search  the settings of the peers for each of those
hard_page    the page of those
joined       what a `cfg` step costs where one call holds both branches
oracle       how far the default is from the best schedule
overhead     what the attachment itself costs
ranks        what one clip on several ranks costs
readme       the README's figures, from docs/results
search       the settings of the peers that are worth measuring on a model, out of those in `grids`
targets      what this project set itself, held against results of `mixcache bench`
wishes       what a wished speed-up delivers
"""
