"""What a selection mode is worth: arms trained alike, on a pool of which a known part is spoilt.

A study goes from its `arms` over the detector it starts from (`start`) and its instances (`pools`)
to finished `runs`, from these to a `summary`, and from the stored result to the site's `tables`.
"""
