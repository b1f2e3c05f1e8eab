"""`lowrank-core train --optimizer all`: every optimizer, equally tuned, on the same work, as one command that goes on.

Losses come from many runs of one thread in the background; how they are chosen stands in `stages`, who takes part in
`contenders`. Seconds come from `seconds`, on a quiet machine.
"""
